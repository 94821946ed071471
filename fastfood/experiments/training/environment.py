"""What a process computes with: versions of libraries, and hardware."""

import os
import platform
from functools import cache
from importlib import metadata
from pathlib import Path

import fastfood

LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "optuna", "numpy", "scikit-learn")


@cache
def environment() -> dict:
    """The versions and the hardware of this process."""
    versions = {"python": platform.python_version(), "fastfood": fastfood.__version__}
    versions |= {name: metadata.version(name) for name in LIBRARIES}
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = models[0] if models else platform.processor()
    hardware = {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform()}
    return {"versions": versions, "hardware": hardware}
