"""Describes what a process computes with: versions of libraries, and hardware."""

import os
import platform
import re
import sys
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib import metadata, util
from pathlib import Path

import fastfood

LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "optuna", "numpy", "scikit-learn")
OPTIONAL = ("peft", "trl")  # libraries that some methods and objectives need
DRIVER = Path("/proc/driver/nvidia/version")


@cache
def environment() -> dict:
    """The versions and the hardware of this process. The hardware has the entry `gpus` only if the
    process has computed on a GPU before the first call."""
    versions = {"python": platform.python_version(), "fastfood": fastfood.__version__}
    versions |= {name: metadata.version(name) for name in (*LIBRARIES, *_installed(OPTIONAL))}
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = models[0] if models else platform.processor()
    hardware = {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform()}
    gpus = _gpus()
    return {"versions": versions, "hardware": hardware | ({"gpus": gpus} if gpus else {})}


def _installed(names: Iterable[str]) -> list[str]:
    return [name for name in names if util.find_spec(name) is not None]


def _gpus() -> list[dict]:
    """The visible GPUs, an entry for each kind: its name, how many there are, the memory of one in
    GiB, and the versions of the driver (None if unknown) and of torch's CUDA runtime."""
    torch = sys.modules.get("torch")  # a process without torch computes on no GPU
    # Asking a GPU for its properties takes memory on it, so a process that uses none does not ask.
    if torch is None or not torch.cuda.is_initialized():
        return []
    visible = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    kinds = Counter((gpu.name, round(gpu.total_memory / 2**30, 1)) for gpu in visible)
    made_with = {"driver": _driver(), "cuda": torch.version.cuda}
    return [
        {"name": name, "count": count, "memory_gib": memory, **made_with}
        for (name, memory), count in kinds.items()
    ]


def _driver() -> str | None:
    """The version of the NVIDIA driver, such as 535.129.03."""
    text = DRIVER.read_text() if DRIVER.is_file() else ""
    version = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text)
    return version[1] if version else None
