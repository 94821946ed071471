"""The README's fine-tuning script as it stands, but for fewer steps: a second process loads what
the first one saved and prints the same logits; and so with the two lines for PEFT."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

for package in ("accelerate", "datasets", "peft", "safetensors", "transformers"):
    pytest.importorskip(package)

BLOCKS = re.findall(
    r"```python\n(.*?)```", Path(__file__).parent.parent.joinpath("README.md").read_text(), re.S
)


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
def test_the_script_reloads_identical_logits(with_peft, model_folder, data, tmp_path):
    (tmp_path / "finetune.py").write_text(script(with_peft))
    folders = [str(model_folder), str(data / "glue" / "sst2"), "out"]
    found = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "finetune.py", *folders],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.splitlines()[-1])
    assert found[0] == found[1] and found[0].count("[") == 4
    saved = list((tmp_path / "out").iterdir())
    assert sum(file.stat().st_size for file in saved if file.suffix == ".safetensors") < 1024
    assert any((tmp_path / "runs").glob("checkpoint-3"))  # the first run trained
