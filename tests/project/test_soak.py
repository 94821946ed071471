"""A short form of `make soak`, in a process of its own."""

import subprocess
import sys
from pathlib import Path

WORK = ("transform", "projection", "adjoint", "SAID, resident", "SAID, streamed", "adapters")


def test_memory_does_not_grow():
    script = Path(__file__).parents[1] / "tools" / "soak.py"
    done = subprocess.run(
        [sys.executable, script, "--steps", "300", *WORK], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.count("| ok |") == len(WORK), done.stdout
