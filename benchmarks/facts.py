"""Collects the facts that a result is printed with (machine, versions, commit), and writes both."""

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


def first_line(*command):
    """The first line that a program prints, or None if it fails or prints nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout else None


def commit():
    """The clone's commit, with a + if files differ from it; without git, FASTFOOD_COMMIT."""
    head = first_line("git", "rev-parse", "HEAD")
    if not head:
        return os.environ.get("FASTFOOD_COMMIT", "unknown")
    changes = first_line("git", "status", "--porcelain", "--untracked-files=no")
    return head + ("+" if changes else "")


def processor():
    """The processor's name with family and model, because virtual machines hide real names."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    entries = {}
    for line in lines:
        name, _, value = line.partition(":")
        entries.setdefault(name.strip(), value.strip())
    if "model name" not in entries:
        return platform.processor() or platform.machine()
    numbers = [
        f"{name} {entries[key]}"
        for name, key in (("family", "cpu family"), ("model", "model"))
        if key in entries
    ]
    return entries["model name"] + (f" ({', '.join(numbers)})" if numbers else "")


def gpu():
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    driver = None
    if shutil.which("nvidia-smi"):
        driver = first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "gpu": properties.name,
        "memory": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "driver": driver or "unknown",
    }


def environment(device="cpu"):
    """The facts of this process and its machine, by name."""
    facts = {
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
    return facts | (gpu() if torch.device(device).type == "cuda" else {})


def write(path, facts, results):
    """Replaces the file in one step, so that a run that is cut short leaves the results so far."""
    path = Path(path)
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps({"environment": facts, "results": results}, indent=1) + "\n")
    new.replace(path)
