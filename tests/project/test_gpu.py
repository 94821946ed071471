"""`make gpu` where there is no GPU: what it would run, that its steps need nothing else, the
benchmarks' cases with stand-ins for a GPU's clock and profiler, and tables of made-up numbers."""

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import gpu
import pytest
import torch

ROOT = Path(__file__).parents[2]
BENCHMARKS = ("facts", "fwht", "gpu_fwht", "gpu_projection", "gpu_tables", "gpu_timing")
# importing gpu.py puts their folder on the path
facts, fwht, gpu_fwht, gpu_projection, gpu_tables, gpu_timing, projection = (
    pytest.importorskip(name, reason="needs the repository, not its copy")
    for name in (*BENCHMARKS, "projection")
)

# --- The steps -----------------------------------------------------------------------------------


def run_gpu(*options):
    command = [sys.executable, ROOT / "tests" / "tools" / "gpu.py", *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_the_dry_run_names_all_steps_in_order(tmp_path):
    command = ["make", "--silent", "gpu", "DRY=1", f"PYTHON={sys.executable}", f"OUT={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    names = [line.split(":")[0] for line in done.stdout.splitlines() if not line.startswith(" ")]
    steps = ["tests", "compare", "memcheck", "racecheck", "fwht", "projection"]
    steps += ["step-minilm", "step-roberta-large", "step-llama-7b", "overhead"]
    assert names == [*steps, f"results in {tmp_path}"]
    assert all(f"reads tests/{name}.py" in done.stdout for name in gpu.TESTS)
    assert done.stdout.endswith("step-roberta-large.json, step-llama-7b.json, overhead.json\n")


def test_the_dry_run_takes_parts_and_sees_what_is_missing(tmp_path, monkeypatch):
    done = run_gpu("--dry-run", "--parts", "fwht", "--out", tmp_path, "--minutes", "2")
    assert "at most 120 s" in done.stdout and "-m pytest" not in done.stdout
    monkeypatch.setattr(gpu, "TESTS", ("operators/test_ops", "operators/test_gone"))
    options = types.SimpleNamespace(minutes=1, out=tmp_path)
    missing = gpu.show_plan(gpu.plan(["tests"], tmp_path, tmp_path), options)
    assert missing == [ROOT / "tests" / "operators" / "test_gone.py"]


def imported_at_once(path):
    """The names of the modules that a file imports at its top level."""
    body = ast.parse(path.read_text()).body
    names = [alias.name for n in body if isinstance(n, ast.Import) for alias in n.names]
    return names + [n.module for n in body if isinstance(n, ast.ImportFrom)]


def test_a_benchmark_s_files_are_all_named(tmp_path):
    steps = gpu.plan(["fwht", "projection", "step", "overhead"], tmp_path, tmp_path)
    for step in steps:
        for file in step.needs:
            paths = [file.with_name(f"{name}.py") for name in imported_at_once(file)]
            assert {path for path in paths if path.exists()} <= set(step.needs), step.name


def test_training_steps_need_transformers(tmp_path, monkeypatch):
    first, *_, last = gpu.training_steps(tmp_path)
    command = first.command[2:]
    assert command[:4] == ["--device", "cuda", "--model", "minilm"]
    assert command[-2:] == ["--json", tmp_path / "step-minilm.json"] and not first.lacking
    assert (last.part, last.command[-1]) == ("overhead", tmp_path / "overhead.json")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = {step.lacking for step in gpu.training_steps(tmp_path)}
    assert found == {f"{sys.executable} has no transformers"}


def test_bad_options_are_refused():
    for options in (["--parts", "test"], ["--minutes", "0"]):
        done = run_gpu("--dry-run", *options)
        assert done.returncode == 2 and "wanted parts among tests,sanitizer" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    done = run_gpu("--out", tmp_path / "out")
    assert done.returncode == 1 and done.stderr.startswith("no GPU: ") and not done.stdout
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def takes_a_device(path):
    """Whether a test of this file asks for the fixture, for `everywhere`, or for two GPUs."""
    text = path.read_text()
    if 'usefixtures("everywhere")' in text or "needs two GPUs" in text:
        return path.name != Path(__file__).name
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    return any(
        f.name.startswith("test_") and "device" in [a.arg for a in f.args.args] for f in functions
    )


def test_all_tests_that_take_a_device_are_run():
    tests = ROOT / "tests"
    files = [path for path in tests.rglob("test_*.py") if takes_a_device(path)]
    found = {str(path.relative_to(tests).with_suffix("")) for path in files}
    assert found == set(gpu.TESTS)


def test_the_sanitizer_s_steps(tmp_path, monkeypatch):
    tool, program = tmp_path / "compute-sanitizer", tmp_path / "fastfood_compare"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(gpu, "PROGRAM", program)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    assert all("is not there" in step.lacking for step in gpu.sanitizer_steps())
    for file, text in ((program, ""), (tool, "#!/bin/sh\necho --padding arg\n")):
        file.write_text(text)
        file.chmod(0o755)
    compare, memcheck, racecheck = gpu.sanitizer_steps()
    assert not compare.lacking and not memcheck.lacking and not racecheck.lacking
    assert memcheck.command[:5] == [str(tool), "--tool", "memcheck", "--padding", "256"]
    assert gpu.words(racecheck, 110)[-4:] == [str(program), "--quick", "--seconds", "80"]


def make_step(name, code, part="fwht", report=None):
    return gpu.Step(part, name, 1, [sys.executable, "-c", code], [], "", report)


WRITES = "import pathlib, sys; pathlib.Path({!r}).write_text({!r}); sys.exit({})"
SLEEPS = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a job in the background
try:
    time.sleep(600)
except KeyboardInterrupt:
    print("in all: 7 compared, 0 differ")
"""


def test_each_step_stands_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "GRACE", 2)
    monkeypatch.setattr(facts, "gpu", lambda: {"gpu": "made up", "memory": 2**30})
    file, xml = tmp_path / "fwht.json", tmp_path / "tests.xml"
    suite = '<testsuite><testcase name="a"/><testcase name="b"><failure/></testcase></testsuite>'
    steps = [
        make_step("no GPU", "print('no GPU: none'); raise SystemExit(2)", "sanitizer"),
        make_step("tests", WRITES.format(str(xml), suite, 1), "tests", xml),
        make_step("sleeps", SLEEPS, "sanitizer"),
        make_step("hazards", "print('RACECHECK SUMMARY: 3 hazards displayed')", "sanitizer"),
        make_step("silent", "pass", "sanitizer"),
        gpu.Step("sanitizer", "lacking", 1, ["nothing"], [], "it is not there"),
        make_step("half", WRITES.format(str(file), '{"results": [1, 2]}', 3), report=file),
        make_step("fine", WRITES.format(str(file), '{"results": [1, 2]}', 0), report=file),
    ]
    monkeypatch.setattr(gpu_tables, "TABLES", {})
    options = types.SimpleNamespace(out=tmp_path, minutes=1)
    steps[2].share = 0.4  # 3 s until it is asked to end: Python has to have started
    gpu.run(steps, options, tmp_path)
    entries = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    found = {e["name"]: (e["status"], e["said"]) for e in entries}
    assert found == {
        "no GPU": ("failed", "no GPU: none"),
        "tests": ("failed", "1 passed, 0 skipped, 1 failed, b"),
        "sleeps": ("out of time", "in all: 7 compared, 0 differ"),
        "hazards": ("failed", "RACECHECK SUMMARY: 3 hazards displayed"),
        "silent": ("failed", ""),
        "lacking": ("skipped", "it is not there"),
        "half": ("failed", "2 rows"),
        "fine": ("ok", "2 rows"),
    }
    assert entries[1]["results"]["names"] == ["b"] and entries[-1]["results"] == [1, 2]
    assert "| sleeps | out of time |" in (tmp_path / "tables.md").read_text()


# --- The benchmarks' cases -----------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch):
    """Replaces each measurement by one call, timed by the processor's clock."""

    def elapsed(run, calls):
        run()
        return 1e-3 * calls

    monkeypatch.setattr(gpu_timing, "elapsed", elapsed)
    monkeypatch.setattr(gpu_timing, "captured", lambda run, calls: run)
    monkeypatch.setattr(gpu_timing, "synchronize", lambda: None)
    monkeypatch.setattr(gpu_timing, "REPETITIONS", 1)
    for module in (gpu_fwht, gpu_projection):
        monkeypatch.setattr(module, "warm_up", lambda: None)


def test_the_sections_of_the_transform(no_gpu, monkeypatch, tmp_path):
    calls = []

    def peer(x, *arguments):
        calls.append((x.dtype, x.shape[-1], arguments))
        if x.shape[-1] == 4096:
            raise RuntimeError("not this size")

    dao = types.SimpleNamespace(hadamard_transform=peer, hadamard_transform_28N=peer)
    monkeypatch.setitem(sys.modules, "fast_hadamard_transform", dao)
    hadacore = types.SimpleNamespace(hadamard_transform=peer)
    monkeypatch.setitem(sys.modules, "hadacore", hadacore)
    monkeypatch.setattr(gpu_fwht, "SMALL", [(1, 128), (2, 4096)])
    monkeypatch.setattr(gpu_fwht, "EAGER", [(1, 128)])
    monkeypatch.setattr(gpu_fwht.large, "__defaults__", (1 << 12,))
    monkeypatch.setattr(gpu_fwht.orders, "__defaults__", (1 << 12,))
    monkeypatch.setattr(gpu_fwht, "LOGS", (1, 5, 16))
    gpu_fwht.imported.cache_clear()
    gpu_fwht.run("cpu", tmp_path / "fwht.json")
    gpu_fwht.imported.cache_clear()
    results = json.loads((tmp_path / "fwht.json").read_text())["results"]
    of = {(r["section"], r["dtype"], r["n"]): set(r["times"]) for r in results}
    ours = {"copy", "ours"}
    assert of["small", "bfloat16", 128] == ours | {"ours, new", "Dao", "HadaCore"}
    assert of["small", "float32", 4096] == ours | {"ours, new"}
    assert of["large", "float32", 32] == ours | {"ours, diagonals", "ours, in place", "Dao"}
    assert of["large", "bfloat16", 1 << 16] == of["large", "float64", 2]
    assert of["large", "float64", 2] == ours | {"ours, diagonals", "ours, in place"}
    assert of["orders", "bfloat16", 14336] == ours | {"ours, in place", "Dao"}
    assert of["orders", "float32", 29568] == ours | {"ours, in place"}
    assert (torch.bfloat16, 128, (False,)) in calls and (torch.float32, 32, (32**-0.5,)) in calls
    made = "\n".join(gpu_tables.fwht_tables(results))
    assert made.count("rows of n that fill 256 MB") == 4 and "| 2^16 |" in made


def test_a_failure_of_ours_is_none_of_a_peer(no_gpu):
    def fails():
        raise RuntimeError("of ours")

    with pytest.raises(RuntimeError, match="of ours"):
        gpu_timing.in_turn({"copy": lambda: None, "ours": fails})
    assert list(gpu_timing.in_turn({"copy": lambda: None, "Dao": fails})) == ["copy"]


def test_a_call_in_a_graph_is_one_of_many(no_gpu, monkeypatch):
    monkeypatch.setattr(gpu_timing, "elapsed", lambda run, calls: 3.0 * calls)
    [found] = gpu_timing.in_graphs({"copy": lambda: None}, calls=100).values()
    assert found["median"] == found["least"] == found["most"] == pytest.approx(0.03)


def test_the_projection_s_cases(no_gpu, tmp_path):
    gpu_projection.run("cpu", tmp_path / "p.json", rows=5000, logs=(8, 10))
    results = json.loads((tmp_path / "p.json").read_text())["results"]
    assert [(r["section"], r["L"]) for r in results] == [
        ("projection", 256),
        ("projection", 1024),
        ("pieces", 1024),
        ("peers", 1024),
    ]
    offsets = gpu_projection.cuts(5000, "cpu")
    assert len(offsets) == 391 and offsets[0] == 0 and offsets[-1] == 5000
    assert bool((offsets.diff() >= 0).all())
    tables = "\n".join(gpu_tables.projection_tables(results))
    assert "| 2^8 |" in tables and "The adjoint of 16 gradients at once takes " in tables


def test_the_processor_s_results_are_files_too(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(fwht, "cases", lambda arguments: [("call", 1, 16), ("memory", 2, 64)])
    file = tmp_path / "file.json"
    monkeypatch.setattr(sys, "argv", ["fwht.py", "--repetitions", "1", "--json", str(file)])
    fwht.main()
    found = json.loads(file.read_text())
    assert [(r["section"], r["n"]) for r in found["results"]] == [("call", 16), ("memory", 64)]
    assert found["results"][0]["times"]["ours"] > 0
    assert found["environment"]["torch"] == torch.__version__
    options = ["--D", "5000", "--d", "20", "--repetitions", "1", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["projection.py", *options])
    projection.main()
    [found] = json.loads(file.read_text())["results"]
    assert (found["d"], found["D"], found["L"]) == (20, 5000, 256)
    assert found["times"]["adjoint"] > 0


# --- The tables ----------------------------------------------------------------------------------


def times(**seconds):
    """Made-up times; the arguments are in microseconds."""
    return {k: {"median": v / 1e6, "least": 0, "most": 0} for k, v in seconds.items()}


def row(section, dtype, n, more=(), **seconds):
    sizes = {"section": section, "dtype": dtype, "rows": 4, "n": n}
    return sizes | dict(more) | {"times": times(**seconds)}


FWHT = [
    row("small", "bfloat16", 128, copy=3, ours=5),
    row("large", "float32", 256, copy=4, ours=5, Dao=100),
    row("large", "float32", 512, copy=4, ours=8),
    row("orders", "bfloat16", 3072, {"K": 12}, copy=4, ours=6),
]
PROJECTION = [
    {"section": "projection", "D": 1000, "L": L, "d": 2}
    | {"times": times(fill=2, read=4, forward=L / 128, adjoint=6)}
    for L in (1024, 256)
]


def trained(method, model="a", **more):
    facts = {"model": model, "dtype": "bfloat16", "batch_size": 2, "length": 8, "device": "cuda"}
    return facts | {"autocast": True, "checkpointing": False, "method": method} | more


def timed_step(method, name, seconds, **more):
    found = {"step": name, "times": {"step": {"median": seconds}}, "peak": 3e9}
    return trained(method, busy=0.004, launches=2345, **found) | more


STEP_A = [
    timed_step("full-fused", "full", 0.02),
    timed_step("full", "slow", 0.04),
    timed_step("lora", "LoRA", 0.03, autocast=False),
    trained("vera", step="VeRA", reason="none"),
]
STEP_B = [timed_step("full-fused", "full", 1.5, model="b"), timed_step("x", "X", 3, model="b")]
del STEP_B[1]["busy"]  # what is cut short has none
OVERHEAD = [
    {"method": name, "forward": 1, "backward": 2.5, "optimizer": 0.5, "step": step}
    | {"fastfood": 3, "operators": 4567, "launches": 89}
    for name, step in (("full", 8), ("full-fused", 4), ("said-resident", 6))
]
MEASURED = {
    "environment": {"gpu": "made up", "memory": 3 * 2**30, "torch": "0", "command": "python x"},
    "steps": [
        {"name": name, "part": part, "status": "ok", "said": "", "seconds": 4.2, "results": rows}
        for name, part, rows in (
            ("tests", "tests", {"passed": 3}),
            ("fwht", "fwht", FWHT),
            ("projection", "projection", PROJECTION),
            ("step-a", "step", STEP_A),
            ("step-b", "step", STEP_B),
            ("overhead", "overhead", OVERHEAD),
        )
    ],
}


MEASURED["steps"][1] |= {"status": "out of time", "said": "4 rows", "seconds": 9}
MEASURED["steps"].append({"name": "late", "part": "step", "status": "skipped", "said": ""})
MEASURED["steps"][-1]["seconds"] = 0


def test_tables_from_a_file(tmp_path):
    (tmp_path / "gpu.json").write_text(json.dumps(MEASURED))
    command = [sys.executable, ROOT / "benchmarks" / "gpu_tables.py", tmp_path / "gpu.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[0] == "gpu made up, memory 3 GiB, torch 0"
    for line in (
        "| fwht | out of time | 4 rows | 9 |",
        "| bfloat16 | 4 x 128 | 3.00 | 5.00 |",
        "| n | copy, us | ours / copy | Dao-AILab / copy |",
        "| 2^8 | 4.00 | 1.25 | 25 |",
        "| 2^9 | 4.00 | 2.00 |  |",
        "| bfloat16 | 3072 | 12 | 1.50 |",
        "| model | step | ms | / full | GPU busy, ms | launches | peak, MB |",
        "| a, bfloat16, 2 x 8, autocast | full | 20.0 | 1.00 | 4.0 | 2,345 | 3,000 |",
        "| a, bfloat16, 2 x 8, autocast | slow | 40.0 | 2.00 | 4.0 | 2,345 | 3,000 |",
        "| a, bfloat16, 2 x 8 | LoRA | 30.0 |  | 4.0 | 2,345 | 3,000 |",
        "| b, bfloat16, 2 x 8, autocast | X | 3,000.0 | 2.00 |  |  | 3,000 |",
        "a, bfloat16, 2 x 8, autocast, VeRA: not run, none",
        "| said, resident | 1.0 | 2.5 | 0.5 | 6.0 | 1.50 | 3 | 4,567 | 89 |",
    ):
        assert line in lines, line
    first = lines.index("| 2^8 | 2.00 |  | 6.00 | 1.00 |  | 1.50 |  |")
    assert lines[first + 1] == "| 2^10 | 8.00 |  | 6.00 | 4.00 |  | 1.50 |  |"
