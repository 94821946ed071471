"""benchmarks/step.py and overhead.py as on a GPU, with stand-ins for its clock and profiler."""

import contextlib
import importlib.util
import json
import subprocess
import sys
import types

import gpu
import pytest
import torch

assert str(gpu.ROOT / "benchmarks") in sys.path  # what the modules below are found by
facts, gpu_tables = (
    pytest.importorskip(name, reason="needs the repository, not its copy")
    for name in ("facts", "gpu_tables")
)


@pytest.fixture
def step(monkeypatch):
    """benchmarks/step.py with a small model, and without settings of the whole process."""
    pytest.importorskip("transformers")
    step = pytest.importorskip("step")
    sizes = step.TINY | {"num_hidden_layers": 2}
    monkeypatch.setitem(step.SHAPES, "minilm", type(step.SHAPES["minilm"])(**sizes))
    monkeypatch.setattr(step.transformers.logging, "set_verbosity_error", lambda: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    return step


@pytest.fixture
def step_on_a_gpu(step, monkeypatch):
    """The same, as if the CPU were a GPU."""
    build, step.profiled = step.build_model, []

    def work(case):
        step.profiled.append(case.method)
        return {"busy": 2e-3, "launches": 1234}

    def elapsed(run, calls):
        run()
        return 3e-3 if getattr(run, "method", "") == "full-fused" else 6e-3

    on_the_cpu = {"cuda": "cpu"}
    monkeypatch.setattr(step, "build_model", lambda c, a, d: build(c, a, on_the_cpu.get(d, d)))
    monkeypatch.setattr(step, "elapsed", elapsed)
    monkeypatch.setattr(step, "gpu_work", work)
    monkeypatch.setattr(step, "warm_up", lambda: None)
    monkeypatch.setattr(step, "available", lambda device: 10**10)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "made up")
    monkeypatch.setattr(facts, "gpu", lambda: {"gpu": "made up"})
    return step


def run_steps(step, monkeypatch, tmp_path, methods, *options, fails=""):
    """The result of main() and the rows; the results of child processes are made up."""

    def child(command, **_):
        if command[1] != step.__file__:  # git, which step.py also calls
            return types.SimpleNamespace(returncode=1, stdout="", stderr="")
        printed = json.dumps({"peak": 5 * 10**6, "trainable": 7})
        code = int(command[-1] == fails)
        return types.SimpleNamespace(returncode=code, stdout=printed, stderr="a\nout of memory\n")

    monkeypatch.setattr(subprocess, "run", child)
    file = tmp_path / "step.json"
    command = ["step.py", "--methods", methods, "--json", str(file), "--repetitions", "2", *options]
    monkeypatch.setattr(sys, "argv", [*command, "--batch-size", "2", "--length", "8"])
    return step.main(), json.loads(file.read_text())["results"]


def test_a_training_step_on_the_cpu(step, monkeypatch, tmp_path, capsys):
    methods = "full,full-fused,said-streamed,did-resident"
    status, rows = run_steps(step, monkeypatch, tmp_path, methods, fails="did-resident")
    assert not status and [r["method"] for r in rows] == methods.split(",")
    assert rows[3]["reason"] == "out of memory" and "times" not in rows[3]
    assert 0 < rows[2]["projection"] < 1 and "busy" not in rows[0]
    printed = capsys.readouterr().out
    assert "| step | trainable | ms | / full | projection | peak, MB |" in printed
    [full] = [line for line in printed.splitlines() if line.startswith("| full, AdamW |")]
    assert full.split(" | ")[3] == "1.00" and "DID, resident: not run, out of memory" in printed


def test_a_training_step_on_a_gpu(step_on_a_gpu, monkeypatch, tmp_path, capsys):
    step = step_on_a_gpu
    methods = "full,full-fused,said-streamed,inference"
    options = ["--device", "cuda", "--autocast"]
    status, rows = run_steps(step, monkeypatch, tmp_path, methods, *options)
    assert not status and step.profiled == methods.split(",")
    assert {(r["busy"], r["launches"], r["autocast"]) for r in rows} == {(2e-3, 1234, True)}
    printed = capsys.readouterr().out
    assert "built anew" not in printed
    lines = printed.splitlines()
    heads = "| step | trainable | ms | / full | GPU busy, ms | launches | projection | peak, MB |"
    first = lines.index(heads) + 2
    assert lines[first] == "| full, AdamW | 7 | 6.0 | 2.00 | 2.0 | 1,234 |  | 5 |"
    assert lines[first + 1] == "| full, AdamW, fused | 7 | 3.0 | 1.00 | 2.0 | 1,234 |  | 5 |"
    assert lines[first + 2].startswith("| SAID, streamed | 7 | 6.0 | 2.00 | 2.0 | 1,234 | ")


def test_without_room_for_two_models_they_are_built_anew(
    step_on_a_gpu, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(step_on_a_gpu, "available", lambda device: 10**6)
    methods = "full,inference"
    status, rows = run_steps(step_on_a_gpu, monkeypatch, tmp_path, methods, "--device", "cuda")
    assert not status and [r["method"] for r in rows] == methods.split(",")
    assert "built anew" in capsys.readouterr().out


def test_what_fails_on_a_gpu_is_told(step_on_a_gpu, monkeypatch, tmp_path, capsys):
    step, cuda, find = step_on_a_gpu, ["--device", "cuda"], importlib.util.find_spec
    status, rows = run_steps(step, monkeypatch, tmp_path, "full,lora", *cuda, fails="lora")
    assert status and rows[1]["failed"] and rows[1]["reason"] == "out of memory"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name != "peft" and find(name))
    status, rows = run_steps(step, monkeypatch, tmp_path, "full,lora", *cuda, fails="lora")
    assert not status and rows[1]["reason"] == "peft is not installed"
    assert "LoRA, r = 8: not run, peft is not installed" in capsys.readouterr().out


def test_autocast_is_of_the_forward_alone(step):
    seen = []
    arguments = types.SimpleNamespace(dtype="float32", d=10, authors=None, checkpointing=False)
    for arguments.autocast in (True, False):
        model = step.build_model(step.SHAPES["minilm"], arguments, "cpu")
        arguments.batch_size, arguments.length = 2, 8
        model.classifier.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
        for method in ("full", "inference"):
            step.Case(method, model, arguments)()
        assert not torch.is_autocast_enabled("cpu")
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert seen == [torch.bfloat16] * 2 + [torch.float32] * 2


def event(name, device, microseconds=0.0, annotation=False):
    span = types.SimpleNamespace(elapsed_us=lambda: microseconds)
    facts = {"device_type": device, "time_range": span, "is_user_annotation": annotation}
    return types.SimpleNamespace(name=name, **facts)


@pytest.fixture
def overhead():
    pytest.importorskip("transformers")
    return pytest.importorskip("overhead")


def test_a_gpu_s_work_is_kernels_and_copies(overhead, monkeypatch):
    cpu, cuda = overhead.DeviceType.CPU, overhead.DeviceType.CUDA
    events = [
        event("fastfood::perturbed", cpu),
        event("aten::mm", cpu),
        event("cudaLaunchKernel", cpu, 4.0),
        event("fastfood::transform(float*)", cuda, 10.0),
        event("Memcpy HtoD", cuda, 5.0),
        event("Optimizer.step#AdamW.step", cuda, 400.0, annotation=True),
    ]

    @contextlib.contextmanager
    def profile(activities):
        yield types.SimpleNamespace(events=lambda: events)

    monkeypatch.setattr(overhead, "profile", profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert overhead.gpu_work(lambda: None) == {"busy": pytest.approx(15e-6), "launches": 2}
    case = types.SimpleNamespace(device=torch.device("cuda"), step=lambda: None)
    assert overhead.count(case) == {"fastfood": 1, "operators": 2, "launches": 2}


def test_the_overhead_of_a_step(overhead, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(overhead.SHAPE, "num_hidden_layers", 1)
    monkeypatch.setattr(overhead.fastfood.units, "SMALL", overhead.fastfood.units.SMALL)
    monkeypatch.setattr(overhead, "IN_A_ROW", 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    file = tmp_path / "overhead.json"
    monkeypatch.setattr(sys, "argv", ["overhead.py", "--repetitions", "1", "--json", str(file)])
    overhead.main()
    rows = json.loads(file.read_text())["results"]
    assert [r["method"] for r in rows] == list(overhead.METHODS)
    calls = {r["method"]: r["fastfood"] for r in rows}
    assert calls["full"] == 0 < calls["did-resident"] and calls["said-streamed"] > 0
    made = "\n".join(gpu_tables.overhead_table(rows))
    assert "| said, streamed |" in made and "| fastfood calls | operators | launches |" in made
