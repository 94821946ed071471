"""The README's code runs as it is printed. The script of the page on the subspace model runs with a
small model: a second process loads what the first one saved and prints the same logits, also with
the lines that differ for PEFT."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

for package in ("accelerate", "datasets", "peft", "safetensors", "transformers"):
    pytest.importorskip(package)

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGE = ROOT / "fastfood" / "guides" / "subspace_model.md"


def python_blocks(file):
    return re.findall(r"```python\n(.*?)```", file.read_text(), re.S)


def script(with_peft):
    [text] = [block for block in python_blocks(PAGE) if "sys.argv[1:]" in block]
    if with_peft:
        [changes] = re.findall(r"```diff\n(.*?)```", PAGE.read_text(), re.S)
        imports = [line[1:] for line in changes.splitlines() if re.match(r"\+(import|from)", line)]
        lines = changes.splitlines()[len(imports) :]
        for ours, theirs in zip(lines[::2], lines[1::2], strict=True):
            assert ours[0] == "-" and theirs[0] == "+" and ours[1:] in text
            text = text.replace(ours[1:], theirs[1:])
        text = "\n".join([*imports, text])
    return text.replace("max_steps=217", "max_steps=3").replace("d=1000", "d=50")


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


def test_the_code_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(README)
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert len(blocks) == 2
    assert names["x"].shape == (2, 11008)
    assert sum(p.numel() for p in names["model"].parameters() if p.requires_grad) == 1000
    assert (tmp_path / "task" / "adapter.safetensors").exists()
