"""The README's code as it stands, but in small. The fine-tuning script: a second process loads what
the first one saved and prints the same logits; and so with the two lines for PEFT."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastfood.hub

for package in ("accelerate", "datasets", "peft", "safetensors", "transformers"):
    pytest.importorskip(package)

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def script(with_peft):
    [text] = [block for block in BLOCKS if "checkpoint, data, out = sys.argv[1:]" in block]
    text = text.replace("max_steps=217", "max_steps=3").replace("d=1000", "d=50")
    if not with_peft:
        return text
    [lines] = [block for block in BLOCKS if "from fastfood.peft import" in block]
    imports, calls = lines.replace("d=1000", "d=50").split("\n\n")
    ours = re.findall(r"    model = fastfood\..*\n", text)
    assert len(ours) == len(calls.splitlines()) == 2
    for line, call in zip(ours, calls.splitlines(), strict=True):
        text = text.replace(line, f"    {call}\n")
    return f"{imports}\n{text}"


@pytest.mark.parametrize("with_peft", [False, True], ids=["fastfood", "peft"])
def test_the_script_reloads_identical_logits(
    with_peft, model_folder, data, tmp_path, monkeypatch, capsys
):
    (tmp_path / "finetune.py").write_text(script(with_peft))
    folders = [str(model_folder), str(data / "glue" / "sst2"), "out"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["finetune.py", *folders])
    runpy.run_path("finetune.py", run_name="__main__")  # trains
    found = capsys.readouterr().out.splitlines()[-1]
    done = subprocess.run(
        [sys.executable, "finetune.py", *folders],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == found and found.count("[") == 4
    saved = list((tmp_path / "out").iterdir())
    assert sum(file.stat().st_size for file in saved if file.suffix == ".safetensors") < 1024
    assert any((tmp_path / "runs").glob("checkpoint-3"))  # the first run trained


def block(words):
    [text] = [block for block in BLOCKS if words in block]
    return text


def test_the_transforms_and_the_projections_run():
    names = {}
    exec(block("hadamard_transform_KN, random_signs"), names)
    assert names["z"].dtype == torch.bfloat16
    names = {"fastfood": fastfood, "torch": torch}
    exec(block("P.rows_adjoint(rows, 0)").replace("355_362_818", "35_536"), names)
    assert names["rows"].shape == (4096,) and names["x"].shape == (10, 4096)


def test_what_else_a_model_can_do_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pushed = []
    monkeypatch.setattr(fastfood.hub, "push_to_hub", lambda model, name: pushed.append(name))
    text = block("model.push_to_hub")
    first = text.index("model.add_adapter")
    base = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64))
    names = {"fastfood": fastfood, "torch": torch, "base": base}
    exec(text[:first], names)
    with torch.no_grad():
        names["model"].theta.normal_()
    exec(text[first:], names)
    assert type(names["plain"]) is torch.nn.Sequential and pushed == ["user/my-task"]
    assert (tmp_path / "my-task" / "adapter.safetensors").stat().st_size < 500


def test_every_block_of_code_is_run():
    run = ("sys.argv[1:]", "fastfood.peft import", "random_signs", "P.rows_adjoint", "push_to_hub")
    assert len(BLOCKS) == len(run) and all(block(words) for words in run)
