"""The program that compares the CUDA backend with the CPU's, here on the emulator: it finds no
difference, and it would find one."""

import re
import subprocess
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "fastfood_compare_emulated"
if not PROGRAM.exists():
    pytest.skip("built with FASTFOOD_TESTS=1", allow_module_level=True)
KINDS = ["words", "normals", "transform", "plain kernel", "orders", "projection"]
KINDS += ["projection on a base", "adjoint"]


def compare(*options):
    """Runs the program; returns (exit code, its lines, {kind: (entries compared, different)})."""
    done = subprocess.run([PROGRAM, *options], capture_output=True, text=True)
    found = re.findall(r"^(.+): (\d+) compared, (\d+) differ", done.stdout, re.M)
    counts = {kind: (int(compared), int(differ)) for kind, compared, differ in found}
    return done.returncode, done.stdout.splitlines(), counts


@pytest.mark.parametrize("memory", [[], ["--exact"]], ids=["guards", "exact"])
def test_every_kind_is_compared_and_nothing_differs(memory):
    code, lines, counts = compare("--quick", "--most", "20000", *memory)
    assert code == 0, lines
    assert sorted(counts) == sorted([*KINDS, "so far", "in all"])
    assert all(compared > 0 and differ == 0 for compared, differ in counts.values())


@pytest.mark.parametrize("what", ["value", "guard"])
def test_what_is_spoiled_differs(what):
    """A wrong entry in each result, and a byte written behind each array."""
    code, lines, counts = compare("--quick", "--most", "5000", "--spoil", what)
    assert code == 1 and sum(line.startswith("differs: ") for line in lines) == 40
    assert all(compared == differ for compared, differ in counts.values()), counts


def test_time_is_kept():
    code, lines, counts = compare("--seconds", "0")
    assert code == 0 and counts == {"in all": (0, 0)}
    left_out = int(re.search(r"(\d+) left out", lines[-1])[1])
    assert left_out > 3000


def test_other_options_are_refused():
    code, lines, _ = compare("--quickly")
    assert code == 2 and "wanted an option" in lines[-1]
