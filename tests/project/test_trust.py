"""What the library never does unasked: it loads no pickle, runs no code of a checkpoint, and uses
no network if all files are at hand."""

import ast
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from subspace_models import SMALL, mlp

import fastfood
from fastfood.experiments.data import tasks
from fastfood.experiments.data.checkpoints import load_tokenizer
from fastfood.experiments.settings.measurement import Settings, complete
from fastfood.experiments.training import models

transformers = pytest.importorskip("transformers")
SOURCES = sorted(Path(fastfood.__file__).parent.rglob("*.py"))
LOADERS = ("AutoConfig", "AutoTokenizer", "auto", "cls", "AutoModelForMaskedLM")


def calls(part=""):
    for path in (path for path in SOURCES if part in path.parts or not part):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield f"{path.name}:{node.lineno}", ast.unparse(node.func), node


def test_nothing_in_the_sources_unpickles():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            banned = {"pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
            assert not banned & set(names), f"{path}:{node.lineno}"
    for place, name, node in calls():
        allowed = ("json.load", "json.loads", "tomllib.load", "tomllib.loads")
        loads = name.split(".")[-1] in ("load", "loads", "read_pickle")
        assert not loads or name in allowed, f"{place}: {name}"
        assert "allow_pickle" not in [keyword.arg for keyword in node.keywords], place
        assert name not in ("eval", "exec", "compile", "__import__"), f"{place}: {name}"


def test_checkpoints_are_loaded_without_pickles_and_remote_code():
    """Every loader of transformers that we call says so: by default it asks the user."""
    assert models.SAFELY == {"use_safetensors": True, "trust_remote_code": False}
    found = 0
    for place, name, node in calls("experiments"):
        owner, _, method = name.rpartition(".")
        if method != "from_pretrained" or owner == "SubspaceModel":  # adapters are safetensors
            continue
        assert owner.split(".")[-1] in LOADERS, f"{place}: {name}"
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        safely = [ast.unparse(k.value) for k in node.keywords if k.arg is None]
        weights = owner.split(".")[-1] not in ("AutoConfig", "AutoTokenizer")
        assert "SAFELY" in safely if weights else given["trust_remote_code"] == "False", place
        found += 1
    assert found == 9


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def planted(tmp_path):
    """The bytes of a pickle, and the folder that would tell of its execution."""
    ran = tmp_path / "ran"
    content = pickle.dumps(Planted(ran))
    pickle.loads(content)
    ran.rmdir()
    yield content
    assert not ran.exists()


def settings(model, data=None, **changes):
    given = {"task": "glue/sst2", "model": str(model), "data": str(data), "max_length": 16}
    return complete(Settings(**given | changes))


def test_pickles_in_an_adapter_folder(planted, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ("adapter.bin", "adapter_model.bin", "pytorch_model.bin", "adapter.pt"):
        (folder / name).write_bytes(planted)
    with pytest.raises(FileNotFoundError, match="no such adapter file"):
        fastfood.SubspaceModel.from_pretrained(mlp(), folder)
    (folder / "adapter.safetensors").write_bytes(planted)
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        fastfood.SubspaceModel.from_pretrained(mlp(), folder)


def test_pickles_in_a_folder_of_peft(planted, tmp_path):
    peft = pytest.importorskip("peft")
    from fastfood.peft import SaidConfig

    peft.get_peft_model(mlp(), SaidConfig(d=30)).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(planted)
    with pytest.raises(pickle.UnpicklingError, match="[Ww]eights.only"):
        peft.PeftModel.from_pretrained(mlp(), tmp_path / "adapter")


def test_pickles_in_a_model_folder(planted, tmp_path, monkeypatch):
    """Even a harmless one is refused, and the message says what to do."""
    monkeypatch.setattr(torch, "load", None)
    folder = tmp_path / "model"
    config = transformers.BertConfig(**SMALL, num_labels=2)
    config.architectures = ["BertForSequenceClassification"]
    config.save_pretrained(folder)
    harmless = transformers.BertForSequenceClassification(config).state_dict()
    for write in (
        lambda path: torch.save(harmless, path),
        lambda path: path.write_bytes(planted),
    ):
        write(folder / "pytorch_model.bin")
        with pytest.raises(ValueError, match="^model: wanted .*safetensors"):
            models.build_base(settings(folder, tmp_path), 2, seed=0)
        from fastfood.experiments.adapters import _base

        with pytest.raises(ValueError, match="^model: wanted a checkpoint .*safetensors"):
            _base(str(folder), None, None, 0, "float32")


def test_pickles_in_a_data_folder(planted, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for ending in ("pkl", "pickle", "pt", "npy", "arrow"):
        (folder / f"train.{ending}").write_bytes(planted)
    with pytest.raises(ValueError, match="^data: wanted a file train as .jsonl, .csv, .parquet"):
        tasks.text_parts(settings("any", folder))
    for ending in ("jsonl", "csv", "parquet"):
        (folder / f"train.{ending}").write_bytes(planted)
        with pytest.raises(ValueError, match=f"^data: .*train.{ending}"):
            tasks.text_parts(settings("any", folder))
        (folder / f"train.{ending}").unlink()


def test_code_in_a_model_folder_is_not_run(tmp_path, monkeypatch):
    """Not even by an answer on standard input, where transformers would ask."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder, ran = tmp_path / "model", tmp_path / "ran"
    folder.mkdir()
    classes = {
        "AutoConfig": "code.Config",
        "AutoModelForSequenceClassification": "code.Model",
        "AutoTokenizer": ["code.Tokenizer", None],
    }
    (folder / "code.py").write_text(f"import os\nos.mkdir({str(ran)!r})\n")
    written = {"model_type": "new", "auto_map": classes, "architectures": ["Model"]}
    (folder / "config.json").write_text(json.dumps(written))
    tokenizer = {"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="^model: .*custom code"):
        models.build_base(settings(folder, tmp_path), 2, seed=0)
    with pytest.raises(ValueError, match="^model: .*custom code"):
        load_tokenizer(str(folder))
    writes = Settings(objective="sft", task="arithmetic", model=str(folder))
    with pytest.raises(ValueError, match="^model: .*custom code"):
        tasks.load_task(writes)
    with pytest.raises(ValueError, match="^model: .*custom code"):
        models.build_base(writes, 0, seed=0)
    assert not ran.exists()


OFFLINE = """
import socket, sys

def refuse(*arguments, **options):
    raise SystemExit(f"asked the network: {arguments}")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
import fastfood
from typer.testing import CliRunner
from fastfood.experiments.cli import app

out, golden = sys.argv[1:]
tiny = "--dims 20 --seeds 1 --max-steps 1 --eval-rows 4 --full-lrs 1e-3 --lrs 0.1 --method said"
for command in (
    ["adapter", "inspect", golden],
    ["adapter", "diff", golden, golden],
    ["adapter", "verify", golden, "--model", out + "/model"],
    ["d90", *tiny.split(), "--workers", "1", "--out", out + "/study"],
):
    result = CliRunner().invoke(app, command)
    print(command[:2], result.exit_code, result.output)
"""


def test_nothing_is_asked_of_the_network(tmp_path):
    """Importing, adapters, local models and d90 on digits; in this process and in its workers."""
    config = transformers.BertConfig(**SMALL, num_labels=2)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    golden = Path(__file__).parents[1] / "fixtures" / "golden_adapter.safetensors"
    (tmp_path / "sitecustomize.py").write_text(OFFLINE.split("import fastfood")[0])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    ran = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(tmp_path), str(golden)],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": paths},
    )
    assert "network" not in ran.stdout + ran.stderr
    assert ran.returncode == 0, ran.stderr
    codes = [line.split("] ")[1][0] for line in ran.stdout.splitlines() if line.startswith("['")]
    assert codes == ["0", "0", "1", "0"], ran.stdout  # the golden file is of another model
