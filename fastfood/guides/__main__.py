"""`python -m fastfood.guides` runs every guide at its small setting, each in a new process, and
stops at the first that fails."""

import shlex
import subprocess
import sys
import time

from . import GUIDES

for name, small in GUIDES.items():
    command = ["-m", f"fastfood.guides.{name}", *shlex.split(small)]
    print(f"\n== python {shlex.join(command)}", flush=True)
    start = time.perf_counter()
    failed = subprocess.run([sys.executable, *command]).returncode
    print(f"-- {time.perf_counter() - start:.0f} s", flush=True)
    if failed:
        sys.exit(f"{name}: wanted exit code 0, got {failed}")
