"""Runs everything that needs a GPU, by one command: `make gpu`, or

    python tests/tools/gpu.py --out build/gpu [--minutes 10] [--parts tests,sanitizer,fwht,...]
    python tests/tools/gpu.py --dry-run

It takes the installed package and a clone, and builds nothing. It runs the tests that take a
device, the comparison of the GPU's kernels with the CPU's, alone and under compute-sanitizer, and
the benchmarks. Steps run in order of value, each within its share of the time that is left; one
that fails, runs out of time or cannot run does not stop the next. The folder gets gpu.json with
every result and where it was measured, gpu.log with what the steps printed, and tables.md.
"""

import argparse
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from matrix import count

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

# All files with tests that take a device; the tests of other files run on the CPU alone.
TESTS = (
    "operators/test_ops",
    "operators/test_hadamard",
    "operators/test_hadamard_autograd",
    "operators/test_blocks",
    "operators/test_projection",
    "operators/test_adjoint_sum",
    "operators/test_random_numbers",
    "operators/test_golden",
    "operators/test_features",
    "operators/test_threads",
    "subspace/test_subspace_gradients",
    "subspace/test_subspace",
    "subspace/test_streamed",
    "subspace/test_adapter",
    "subspace/test_named_adapters",
    "subspace/test_compiled",
    "subspace/test_overhead",
    "subspace/test_architectures",
    "subspace/test_ecosystem",
    "subspace/test_peft",
    "subspace/test_distributed",
)
SELECTED = "cuda or any_form_of_call"  # hypothesis draws the device of any_form_of_call
PROGRAM = ROOT / "tests" / "native" / "fastfood_compare"
BUILD = "FASTFOOD_CUDA=1 FASTFOOD_TESTS=1 python setup.py build_ext --inplace"
PARTS = ("tests", "sanitizer", "fwht", "projection", "step", "overhead")
METHODS = "full-fused,did-resident,said-resident,said-streamed,lora"
TRAININGS = {  # options of benchmarks/step.py for each model; the last one fits in 24 GB
    "minilm": f"--batch-size 32 --length 64 --methods {METHODS}",
    "roberta-large": f"--batch-size 32 --length 128 --autocast --methods {METHODS}",
    "llama-7b": "--dtype bfloat16 --batch-size 1 --length 512 --checkpointing"
    " --methods inference,said-streamed",
}
GRACE = 10  # seconds that a step has to end after it was asked to
INNER = 0.8  # the share of a step's other seconds during which fastfood_compare starts new cases
FOUND_BY_THE_SANITIZER = 9  # compute-sanitizer's exit code where it found an error


@dataclass
class Step:
    part: str
    name: str
    share: float  # weight of this step when the remaining time is divided among remaining steps
    command: list  # "{seconds}" in it becomes INNER times the seconds that the step has
    needs: list  # files of the clone that it reads
    lacking: str = ""  # why it cannot run; empty if it can
    report: Path | None = None  # the JUnit or JSON file that it writes


def find_sanitizer():
    """compute-sanitizer's path, or None."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [
        Path(home, folder) for home in homes if home for folder in ("bin", "compute-sanitizer")
    ]
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, places)])
    return shutil.which("compute-sanitizer", path=path)


def knows(program, option):
    """Whether the help text of a program names an option."""
    try:
        done = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return option in done.stdout


def test_step(room):
    files = [f"tests/{name}.py" for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--durations=5"]
    # a file whose imports fail, because a package is missing, does not stop the others
    command += ["--continue-on-collection-errors"]
    command += ["--junitxml", room / "tests.xml", "-k", SELECTED, *files]
    lacking = [name for name in ("pytest", "hypothesis") if not importlib.util.find_spec(name)]
    needs = [ROOT / file for file in [*files, "pyproject.toml"]]
    reason = f"{sys.executable} has no {' and no '.join(lacking)}" if lacking else ""
    return Step("tests", "tests", 3, command, needs, reason, room / "tests.xml")


def sanitizer_steps():
    """The comparison in full, and then under memcheck, which sees accesses beyond arrays, and under
    racecheck, which sees threads that race for shared memory."""
    sanitizer, lacking = find_sanitizer(), ""
    if not os.access(PROGRAM, os.X_OK):
        lacking = f"{PROGRAM.relative_to(ROOT)} is not there; where nvcc is, {BUILD} makes it"
    limit = ["--seconds", "{seconds}"]
    yield Step("sanitizer", "compare", 1, [PROGRAM, *limit], [], lacking)
    if not sanitizer:
        lacking = lacking or "compute-sanitizer is on no PATH and in no CUDA_HOME"
    code = ["--error-exitcode", str(FOUND_BY_THE_SANITIZER)]
    padding = ["--padding", "256"] if sanitizer and knows(sanitizer, "--padding") else []
    for tool, share, more, options in (
        # --exact: without it another array may follow an array, and hide writes beyond its end
        ("memcheck", 2, padding, ["--exact"]),
        ("racecheck", 1, [], ["--quick"]),
    ):
        command = [sanitizer or "compute-sanitizer", "--tool", tool, *more, *code]
        command += [PROGRAM, *options]
        yield Step("sanitizer", tool, share, [*command, *limit], [], lacking)


def benchmark_step(part, name, share, out, imports, options=(), lacking=""):
    """A step that runs a benchmark, which imports others of its folder."""
    folder, file = ROOT / "benchmarks", out / f"{name}.json"
    needs = [folder / f"{script}.py" for script in (part, *imports, "facts")]
    command = [sys.executable, needs[0], "--device", "cuda", *options, "--json", file]
    return Step(part, name, share, command, needs, lacking, file)


def training_steps(out):
    """Training steps of whole models, and the benchmark of what a step costs besides arithmetic."""
    found = importlib.util.find_spec("transformers")
    lacking = "" if found else f"{sys.executable} has no transformers"
    imports = ["overhead", "projection", "gpu_tables", "gpu_timing"]
    for model, options in TRAININGS.items():
        options = ["--model", model, *options.split()]
        yield benchmark_step("step", f"step-{model}", 2, out, imports, options, lacking)
    yield benchmark_step("overhead", "overhead", 1, out, [], [], lacking)


def plan(parts, out, room):
    """The steps of these parts, the most valuable first."""
    steps = [test_step(room), *sanitizer_steps()]
    for name, share in (("fwht", 2), ("projection", 1)):
        steps.append(benchmark_step(name, name, share, out, [f"gpu_{name}", "gpu_timing"]))
    steps += training_steps(out)
    return [step for step in steps if step.part in parts]


def limit(steps, i, seconds_left):
    """Seconds for step i: its share of the seconds that are left for it and the steps after it."""
    able = [step.share for step in steps[i:] if not step.lacking]
    return seconds_left * steps[i].share / sum(able)


def words(step, seconds):
    inner = INNER * max(1, seconds - GRACE)
    return [str(word).replace("{seconds}", f"{inner:.0f}") for word in step.command]


def shown(step, seconds):
    """The command as one would type it in the clone's root."""
    return shlex.join(words(step, seconds)).replace(f"{ROOT}/", "")


def end(process):
    """Asks a step's processes to end, so that they can write their results, and after GRACE seconds
    kills them."""
    for sign, patience in ((signal.SIGINT, GRACE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, sign)
            process.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def execute(command, seconds, room, log):
    """(exit code, None if it ran out of time; seconds taken; what it printed)."""
    start, place = time.monotonic(), log.stat().st_size if log.exists() else 0
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            cwd=room,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=os.setpgrp,  # a group of its own: `end` ends all processes that it started
        )
        try:
            code = process.wait(max(1, seconds - GRACE))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                end(process)
    printed = log.read_bytes()[place:].decode(errors="replace")
    return code, time.monotonic() - start, printed


def said(step, printed):
    """Reads what a step left: (a line that sums it up, whether that is a failure, further entries
    for gpu.json)."""
    if step.part == "tests" and step.report.exists():
        found = count(step.report)
        line = f"{found['passed']} passed, {found['skipped']} skipped, {found['failed']} failed"
        line += "".join(f", {name}" for name in found["names"][:10])
        return line, found["failed"] > 0 or not found["passed"], {"results": found}
    if step.part == "sanitizer":
        lines = re.findall(r"(?:in all|so far): .*", printed)[-1:]
        lines += re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", printed)
        clean = [re.search(r" 0 differ|: 0 errors|: 0 hazards", line) for line in lines]
        if lines:
            return "; ".join(lines), not all(clean), {}
    if step.report and step.report.exists():
        results = json.loads(step.report.read_text())["results"]
        return f"{len(results)} rows", not results, {"results": results}
    return " ".join(printed.strip().splitlines()[-1:])[:200], True, {}


def run_step(step, seconds, room, log):
    """Runs a step and returns its entry of gpu.json."""
    entry = {"part": step.part, "name": step.name, "command": shown(step, seconds)}
    entry |= {"limit": round(seconds), "seconds": 0.0}
    if step.lacking:
        return entry | {"status": "skipped", "said": step.lacking}
    if step.report:
        step.report.unlink(missing_ok=True)  # an earlier run may have left one
    with log.open("a") as file:
        print(f"\n--- {step.name}: {entry['command']}", file=file)
    code, entry["seconds"], printed = execute(words(step, seconds), seconds, room, log)
    line, bad, more = said(step, printed)
    status = "failed" if code or bad else "ok"
    return entry | {"status": "out of time" if code is None else status, "said": line} | more


def run(steps, options, room):
    """Runs all, writing the files anew after each; returns the entries."""
    from facts import environment
    from gpu_tables import tables

    log = options.out / "gpu.log"
    log.unlink(missing_ok=True)
    deadline = time.monotonic() + 60 * options.minutes
    measured = {"environment": environment("cuda"), "steps": []}
    for i, step in enumerate(steps):
        seconds = 0 if step.lacking else limit(steps, i, deadline - time.monotonic())
        entry = run_step(step, seconds, room, log)
        measured["steps"].append(entry)
        line = f"{entry['seconds']:.0f} s of {entry['limit']}, {entry['said']}"
        print(f"{step.name}: {entry['status']}, {line}", flush=True)
        (options.out / "gpu.json").write_text(json.dumps(measured, indent=1) + "\n")
        (options.out / "tables.md").write_text("\n".join(tables(measured)) + "\n")
    return measured["steps"]


def show_plan(steps, options):
    """Prints what would run; returns the files that steps need and that are not there."""
    left = 60 * options.minutes
    for i, step in enumerate(steps):
        if step.lacking:
            print(f"{step.name}: skipped, {step.lacking}")
            continue
        seconds = limit(steps, i, left)
        left -= seconds
        print(f"{step.name}: at most {seconds:.0f} s: {shown(step, seconds)}")
        for path in step.needs:
            print(f"    reads {path.relative_to(ROOT)}")
    files = [step.report.name for step in steps if step.report and step.part != "tests"]
    print(f"results in {options.out}: {', '.join(['gpu.json', 'gpu.log', 'tables.md', *files])}")
    named = [*(path for step in steps for path in step.needs), ROOT / "benchmarks/gpu_tables.py"]
    return [path for path in named if not path.exists()]


def why_no_gpu():
    """A line that says why nothing can run, or "" where there is a GPU and our kernels load."""
    try:
        import torch

        from fastfood.loading import why_no_kernels
    except ImportError as error:
        return f"{sys.executable}: {error}: install the wheel there, or name a Python in PYTHON="
    if not torch.cuda.is_available():
        return f"no GPU: torch {torch.__version__} sees none; --dry-run shows what would run"
    return why_no_kernels("cuda")


def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--parts", default=",".join(PARTS), help="of these, with commas")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    options.parts, options.out = options.parts.split(","), options.out.resolve()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown or options.minutes <= 0:
        parser.error(f"wanted parts among {','.join(PARTS)} and minutes above 0")
    return options


def main():
    options = read_arguments()
    # not in the clone, whose fastfood/ would hide the installed package
    room = Path(tempfile.mkdtemp(prefix="fastfood-gpu-"))
    try:
        steps = plan(options.parts, options.out, room)
        if options.dry_run:
            missing = show_plan(steps, options)
            sys.exit("".join(f"missing: {path}\n" for path in missing) or 0)
        reason = why_no_gpu()
        if reason:
            sys.exit(reason)
        shutil.copytree(ROOT / "tests", room / "tests", ignore=shutil.ignore_patterns("native"))
        shutil.copy(ROOT / "pyproject.toml", room)
        options.out.mkdir(parents=True, exist_ok=True)
        # as an exception, so that the step is ended and the room removed
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        done = run(steps, options, room)
        print((options.out / "tables.md").read_text())
        sys.exit(any(entry["status"] in ("failed", "out of time") for entry in done))
    finally:
        shutil.rmtree(room)


if __name__ == "__main__":
    main()
