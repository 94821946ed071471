"""Installs one wheel under many Pythons and torches, runs there the tests that need torch alone,
lets a compiler read our sources with the headers of each torch, as the sdist would, and prints the
table: `python tests/tools/matrix.py dist/NAME.whl --python 3.10,3.14 --torch 2.10,newest`. With
--extras also the tests of the subspace model and of the studies, under the newest versions of all
that they need.

Environments are made with uv in the folder --out, one at a time, and removed again. A cell that is
done stays there as a file. So a call that was killed can be repeated and goes on, and the table
holds all cells of the wheel, whichever call made them. Interpreters are versions, names on PATH or
paths. A CPU build of torch that uv finds by UV_FIND_LINKS is taken before the CUDA build of the
index.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("hypothesis", "numpy", "pytest", "pytest-timeout", "safetensors", "setuptools")
# The files whose results depend on the versions of Python and torch.
TESTS = (
    "operators/test_loading",
    "operators/test_ops",
    "operators/test_hadamard",
    "operators/test_hadamard_autograd",
    "operators/test_projection",
    "operators/test_golden",
)
EXTRAS = "[experiments,grpo,hub,peft]"
EXTRA_TESTS = ("subspace", "experiments")
FACTS = """
import json, platform, torch, fastfood
from fastfood import ops
print(json.dumps({
    "python": platform.python_version(),
    "torch": torch.__version__.split("+")[0],
    "cuda": torch.version.cuda or "none",
    "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    "registered": "yes" if ops.has_kernels("cuda") else "no",
    "installed": fastfood.__file__,
    "headers": torch.__path__[0] + "/include",
}))
"""
# Left out: tests of large sizes and of instruction sets, which depend on neither version and take
# most of the time.
EXCEPT = "not (8192 or two_billion or two_to_the_thirty or every_instruction_set)"
# As an error, so that a cell fails whose CUDA library does not load.
CUDA_LOADS = "error:fastfood works on the CPU alone"
COLUMNS = {
    "Python": "python",
    "torch": "torch",
    "torch's CUDA": "cuda",
    "GPU": "gpu",
    "CUDA library registered": "registered",
    "its headers fit": "fit",
    "extras": "extras",
    "passed": "passed",
    "skipped": "skipped",
    "failed": "failed",
}


class CellFailed(Exception):
    """A step of a cell that did not end well; the text is the reason."""


def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--python", default="3.10,3.11,3.12,3.13,3.14", help="interpreters")
    parser.add_argument("--torch", default="2.10,newest", help="2.N, or newest")
    parser.add_argument("--extras", action="store_true", help="test subspaces and studies too")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "matrix")
    parser.add_argument("--free", type=float, default=25, help="GB that have to be free for a cell")
    return parser.parse_args()


def run(*command, **options):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **options
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise CellFailed(f"{Path(command[0]).name}: " + " ".join(lines[-4:]))
    return done.stdout


def uv(cache, *arguments):
    program = shutil.which("uv", path=sysconfig.get_path("scripts")) or shutil.which("uv")
    if not program:
        sys.exit("the matrix is made with uv, which is not on PATH: pip install uv")
    return run(program, "--cache-dir", cache, "--quiet", *arguments)


def count(report):
    """Reads a JUnit file: how many tests passed, were skipped and failed, and which failed."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    kinds = [{child.tag for child in case} for case in cases]
    bad = [c.get("name") for c, k in zip(cases, kinds, strict=True) if k & {"failure", "error"}]
    skipped = sum("skipped" in k for k in kinds)
    return {
        "passed": len(cases) - len(bad) - skipped,
        "skipped": skipped,
        "failed": len(bad),
        "names": bad,
    }


def fit(headers):
    """Compiles the sources that include torch's headers with the ones in a folder; "yes", or raises
    CellFailed."""
    target = re.search(r"TORCH_TARGET_VERSION=\w+", (ROOT / "CMakeLists.txt").read_text())[0]
    for source in ("torch_cpu.cpp", "torch_cuda.cpp"):
        command = ["c++", "-std=c++17", "-fsyntax-only", "-D" + target, "-isystem", headers]
        run(*command, ROOT / "csrc" / source)
    return "yes"


def try_cell(room, cache, wheel, python, torch, extras):
    """One row of the table, from an environment in `room`."""
    wanted = "torch" if torch == "newest" else f"torch=={torch}.*"
    uv(cache, "venv", "--python", python, room / "venv")
    program = room / "venv" / "bin" / "python"
    uv(cache, "pip", "install", "--python", program, f"{wheel}{EXTRAS * extras}", wanted, *PACKAGES)
    shutil.copytree(ROOT / "tests", room / "tests", ignore=shutil.ignore_patterns("*.so"))
    shutil.copy(ROOT / "pyproject.toml", room)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    facts = json.loads(run(program, "-W", CUDA_LOADS, "-c", FACTS, cwd=room, env=environment))
    if not Path(facts.pop("installed")).is_relative_to(room / "venv"):
        raise CellFailed("fastfood was not imported from the wheel")
    facts["fit"] = fit(facts.pop("headers"))
    command = [program, "-m", "pytest", "--junitxml", room / "report.xml", "--durations=25"]
    command += ["-k", EXCEPT, "-p", "no:cacheprovider"]
    command += [f"tests/{name}.py" for name in TESTS]
    command += [f"tests/{name}" for name in EXTRA_TESTS if extras]
    done = subprocess.run(command, cwd=room, env=environment, capture_output=True, text=True)
    if not (room / "report.xml").exists():
        raise CellFailed("pytest: " + " ".join((done.stdout + done.stderr).splitlines()[-4:]))
    (room.parent / f"{Path(python).name}-{torch}.log").write_text(done.stdout)
    return facts | {"extras": "yes" if extras else "no"} | count(room / "report.xml")


def cell(place, wheel, python, torch, extras):
    """`try_cell` in a room of its own, or a row with the reason why it was not possible."""
    room = Path(tempfile.mkdtemp(prefix=f"{Path(python).name}-{torch}-", dir=place))
    try:
        return try_cell(room, place / "cache", wheel, python, torch, extras)
    except CellFailed as reason:
        return {"python": Path(python).name, "torch": torch, "reason": str(reason)}
    finally:
        shutil.rmtree(room)
        uv(place / "cache", "cache", "clean", "torch")  # no other cell uses this build of torch


def numbers(version):
    return [int(part) for part in version.split(".")]


def table(rows):
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|" + "---|" * len(COLUMNS)
    done = [row for row in rows if "reason" not in row]
    for row in sorted(done, key=lambda row: [numbers(row["python"]), numbers(row["torch"])]):
        yield "| " + " | ".join(str(row[key]) for key in COLUMNS.values()) + " |"
    yield ""
    for row in rows:
        if "reason" in row:
            yield f"Python {row['python']}, torch {row['torch']}: {row['reason']}"
        for name in row.get("names", ()):
            yield f"Python {row['python']}, torch {row['torch']} fails {name}"


def make_room(place, wanted):
    """Empties the cache if less than `wanted` GB are free, and exits if that is not enough."""
    for _ in range(2):
        free = shutil.disk_usage(place).free / 1e9
        if free >= wanted:
            return
        uv(place / "cache", "cache", "clean")
    sys.exit(f"--free: wanted {wanted} GB in {place}, got {free:.0f} GB")


def main():
    options = read_arguments()
    wheel, place = options.wheel.resolve(), options.out.resolve()
    place.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()[:12]
    for python in options.python.split(","):
        for torch in options.torch.split(","):
            kind = "-extras" * options.extras
            file = place / f"{digest}-{Path(python).name}-{torch}{kind}.json"
            if file.exists() and "passed" in json.loads(file.read_text()):
                continue
            make_room(place, options.free)
            start = time.monotonic()
            row = cell(place, wheel, python, torch, options.extras)
            file.write_text(json.dumps(row, indent=1) + "\n")
            print(f"{file.stem}: {time.monotonic() - start:.0f} s, {row}", file=sys.stderr)
    rows = [json.loads(file.read_text()) for file in sorted(place.glob(f"{digest}-*.json"))]
    print(*table(rows), sep="\n")
    sys.exit(any(row.get("failed", 1) for row in rows))


if __name__ == "__main__":
    main()
