"""What a result has to say of where it was measured, and the file that it is written to."""

import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

import fastfood

ROOT = Path(__file__).resolve().parent.parent


def said(*command):
    """The first line that a program prints, or None where it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout else None


def commit():
    """Of the clone, with a + where files differ; FASTFOOD_COMMIT says it for a copy without git."""
    head = said("git", "rev-parse", "HEAD")
    if not head:
        return os.environ.get("FASTFOOD_COMMIT", "unknown")
    return head + ("+" if said("git", "status", "--porcelain", "--untracked-files=no") else "")


def processor():
    """Its name where Linux gives one, with family and model: virtual machines hide what it is."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = {}
    for line in lines:
        name, _, value = line.partition(":")
        told.setdefault(name.strip(), value.strip())
    if "model name" not in told:
        return platform.processor() or platform.machine()
    numbers = [
        f"{name} {told[key]}"
        for name, key in (("family", "cpu family"), ("model", "model"))
        if key in told
    ]
    return told["model name"] + (f" ({', '.join(numbers)})" if numbers else "")


def gpu():
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    driver = None
    if shutil.which("nvidia-smi"):
        driver = said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "gpu": properties.name,
        "memory": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "driver": driver or "unknown",
    }


def environment(device="cpu"):
    """Names to facts of this process and its machine."""
    found = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "fastfood": fastfood.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
    }
    return found | (gpu() if torch.device(device).type == "cuda" else {})


def write(path, facts, results):
    """Replaces the file at once: what is cut short leaves the results so far."""
    path = Path(path)
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps({"environment": facts, "results": results}, indent=1) + "\n")
    new.replace(path)
