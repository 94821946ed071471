"""The commands `fastfood adapter ...` on a small BERT: what they print, write and refuse, and the
exit codes."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich")
CliRunner = pytest.importorskip("typer.testing").CliRunner
transformers = pytest.importorskip("transformers")
pytest.importorskip("safetensors.torch")

from subspace_models import IDS, SMALL, move  # noqa: E402

import fastfood  # noqa: E402
import fastfood.adapter  # noqa: E402
from fastfood.experiments.cli import app  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden_adapter.safetensors"


def run(*arguments):
    return CliRunner().invoke(app, ["adapter", *map(str, arguments)])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A BERT with a trained head, and a tokenizer."""
    from tokenizers import Tokenizer, models

    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    config = transformers.BertConfig(**SMALL, num_labels=3)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "good": 1}, unk_token="[UNK]"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def headless(tmp_path_factory):
    """The same without a head or a tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**SMALL)).save_pretrained(folder)
    return folder


def base(folder, **options):
    cls = transformers.AutoModelForSequenceClassification
    return cls.from_pretrained(folder, dtype=torch.float32, **options)


def adapted(model, d=30, seed=5, **settings):
    wrapped = fastfood.get_subspace_model(
        model, fastfood.SubspaceConfig(d=d, seed=seed, **settings)
    )
    return move(wrapped).eval()


@pytest.fixture
def file(checkpoint, tmp_path):
    return adapted(base(checkpoint)).save_pretrained(tmp_path / "adapter")


def refused(result, command, message, outcome="error", code=2):
    assert result.exit_code == code, result.output
    assert result.stderr.startswith(f"fastfood adapter {command}: {outcome}: "), result.stderr
    assert message in result.stderr and result.stderr.count("\n") == 1
    return True


def test_inspect_shows_the_header_and_the_numbers():
    result = run("inspect", GOLDEN, "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    held = fastfood.adapter.read(GOLDEN)
    assert held.header.items() <= facts.items()
    assert (facts["bytes"], facts["d"], facts["m"], facts["D"]) == (1584, 300, 8, 45_330)
    assert facts["bits"] == 32 * 300
    norm = math.sqrt(sum(x * x for x in held.tensors["theta"].tolist()))
    assert facts["theta"]["norm"] == pytest.approx(norm, rel=1e-12)
    values = held.tensors["lambda_"].tolist()
    assert (facts["lambda_"]["least"], facts["lambda_"]["greatest"]) == (min(values), max(values))
    assert facts["theta"]["stored"] == "float32" and facts["theta"]["shape"] == [292]

    text = run("inspect", GOLDEN).stdout
    for word in ("said", "45330", "81985529216486895", held.header["base"], "1584", "292"):
        assert word in text


def test_inspect_shows_a_code(checkpoint, tmp_path):
    model = adapted(base(checkpoint), d=300, method="did")
    path = model.save_pretrained(tmp_path, levels=16)
    facts = json.loads(run("inspect", tmp_path, "--json").stdout)
    held = fastfood.adapter.read(path)
    assert facts["levels"] == 16 and facts["crc"] == held.header["crc"]
    assert facts["m"] == 0 and "lambda_" not in facts
    assert facts["theta"]["stored"] == "code" and facts["theta"]["distinct"] == 16
    assert facts["bits"] == facts["theta"]["bits"] == held.bits["theta"] < 16 * 300 / 2


def test_verify_knows_the_base(checkpoint, file):
    for path in (file, file.parent):
        result = run("verify", path, "--model", checkpoint)
        assert result.exit_code == 0, result.stderr
        assert result.stdout.startswith("OK: ") and result.stderr == ""
    result = run("verify", file, "--model", checkpoint, "--dtype", "bfloat16")
    refused(result, "verify", "other parameter names, shapes, types", "refused", 1)
    result = run("verify", file, "--model", checkpoint, "--labels", 2)
    refused(result, "verify", "D = ", "refused", 1)


def test_verify_makes_a_new_head_from_the_seed(headless, tmp_path):
    transformers.set_seed(7)
    model = adapted(base(headless, num_labels=3))
    file = model.save_pretrained(tmp_path)
    options = ["--model", headless, "--labels", 3]
    options += ["--task-class", "AutoModelForSequenceClassification"]
    assert run("verify", file, *options, "--seed", 7).exit_code == 0
    result = run("verify", file, *options)
    refused(result, "verify", "initialise a new head with the same seed", "refused", 1)
    result = run("verify", file, "--model", headless)  # its own class has no head
    refused(result, "verify", "was trained on a model with D = ", "refused", 1)


def test_verify_refuses_a_damaged_file(checkpoint, file):
    content = bytearray(file.read_bytes())
    content[-4] ^= 1
    file.write_bytes(content)
    result = run("verify", file, "--model", checkpoint)
    refused(result, "verify", "checksum: wanted ", "refused", 1)


@pytest.mark.parametrize("how", [{}, {"levels": 16}], ids=["float32", "levels"])
def test_merging_changes_no_bit_of_the_logits(checkpoint, tmp_path, how):
    path = adapted(base(checkpoint)).save_pretrained(tmp_path / "adapter", **how)
    model = fastfood.SubspaceModel.from_pretrained(base(checkpoint).eval(), path)
    out = tmp_path / "new" / "merged"
    result = run("merge", path, "--model", checkpoint, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"wrote {out}\n"
    assert [p.name for p in out.parent.iterdir()] == ["merged"]
    merged = base(out).eval()
    assert type(merged) is transformers.BertForSequenceClassification
    with torch.no_grad():
        wanted = model(IDS).logits
        assert torch.equal(merged(IDS).logits, wanted)
        assert not torch.equal(base(checkpoint).eval()(IDS).logits, wanted)
    assert transformers.AutoTokenizer.from_pretrained(out).get_vocab() == {"[UNK]": 0, "good": 1}


def test_merging_does_without_a_tokenizer(headless, tmp_path):
    bare = transformers.AutoModel.from_pretrained(headless, dtype=torch.float32)
    path = adapted(bare).save_pretrained(tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    result = run("merge", path, "--model", headless, "--out", tmp_path / "merged")
    assert result.exit_code == 0, result.stderr
    assert "has no tokenizer" in result.stderr
    names = {p.name for p in (tmp_path / "merged").iterdir()}
    assert names == {"config.json", "model.safetensors"}


def test_merging_overwrites_nothing(checkpoint, file, tmp_path, monkeypatch):
    for out in (file.parent, file):
        before = file.read_bytes()
        result = run("merge", file, "--model", checkpoint, "--out", out)
        refused(result, "merge", f"out: wanted a new or empty folder, got {out}")
        assert file.read_bytes() == before and len(list(file.parent.iterdir())) == 1

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    result = run("merge", file, "--model", checkpoint, "--out", tmp_path / "merged")
    refused(result, "merge", "disk full")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_merging_another_base_writes_nothing(headless, file, tmp_path):
    result = run("merge", file, "--model", headless, "--out", tmp_path / "merged")
    refused(result, "merge", "was trained on a model with D = ")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("command", ["verify", "merge"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "/no/model"], "transformers can load, got '/no/model'"),
        (["--model", "BASE", "--task-class", "BertForNothing"], "no model class 'BertForNothing'"),
        (["--model", "BASE", "--dtype", "int8"], "dtype: wanted one of float32, "),
        (["--model", "PLAIN"], "names no architectures: give --task-class"),
    ],
)
def test_bad_models_end_with_exit_code_2(checkpoint, file, tmp_path, command, options, message):
    transformers.BertConfig(**SMALL).save_pretrained(tmp_path / "plain")
    places = {"BASE": checkpoint, "PLAIN": tmp_path / "plain"}
    options = [places.get(option, option) for option in options]
    options += ["--out", tmp_path / "merged"] if command == "merge" else []
    refused(run(command, file, *options), command, message)
    assert not (tmp_path / "merged").exists()


def test_diff_of_files_with_the_same_settings(checkpoint, tmp_path):
    model = adapted(base(checkpoint))
    theta, lambda_ = model.theta.tolist(), model.lambda_.tolist()
    first = model.save_pretrained(tmp_path / "first")
    result = run("diff", first, first.parent)
    assert result.exit_code == 0 and "the same" in result.stdout
    with torch.no_grad():
        model.theta[2] += 0.5
        model.lambda_[1] -= 0.25
    second = model.save_pretrained(tmp_path / "second")
    result = run("diff", first, second, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["same"] is False and found["settings"] == {}
    assert found["theta"]["distance"] == pytest.approx(0.5, rel=1e-6)
    product = sum(a * b for a, b in zip(theta, model.theta.tolist(), strict=True))
    cosine = product / math.hypot(*theta) / math.hypot(*model.theta.tolist())
    assert found["theta"]["cosine"] == pytest.approx(cosine, rel=1e-12)
    wanted = [b - a for a, b in zip(lambda_, model.lambda_.tolist(), strict=True)]
    assert found["lambda_"]["difference"] == wanted and wanted[1] == -0.25
    text = run("diff", first, second).stdout
    assert "theta distance" in text and "0.5" in text and "-0.25" in text


def test_diff_of_zeros_has_no_cosine(checkpoint, tmp_path):
    config = fastfood.SubspaceConfig(d=30, method="did")
    path = fastfood.get_subspace_model(base(checkpoint), config).save_pretrained(tmp_path)
    result = run("diff", path, path, "--json")
    found = json.loads(result.stdout)
    assert found["theta"] == {"distance": 0, "cosine": None} and found["lambda_"] == {}
    assert result.exit_code == 0 and found["same"] is True


def test_diff_of_files_with_other_settings(checkpoint, file, tmp_path):
    other = adapted(base(checkpoint), d=40, method="did").save_pretrained(tmp_path / "other")
    result = run("diff", file, other, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["settings"] == {"d": [30, 40], "method": ["said", "did"]}
    assert found["theta"] == found["lambda_"] == {} and not found["same"]
    text = run("diff", file, other).stdout.split()
    assert text == ["d", "30", "40", "method", "said", "did"]
    result = run("diff", file, GOLDEN, "--json")
    assert {"d", "seed", "D", "base"} == json.loads(result.stdout)["settings"].keys()


@pytest.mark.parametrize("damage", [None, b"", b"no adapter"])
@pytest.mark.parametrize(
    "arguments", [["inspect", "BAD"], ["diff", "BAD", GOLDEN], ["diff", GOLDEN, "BAD"]]
)
def test_missing_and_foreign_files_end_with_exit_code_2(tmp_path, damage, arguments):
    bad = tmp_path / "bad.safetensors"
    if damage is not None:
        bad.write_bytes(damage)
    result = run(*(bad if argument == "BAD" else argument for argument in arguments))
    refused(result, arguments[0], str(bad))
    assert result.stdout == ""


def test_verify_of_a_missing_file_is_an_error(checkpoint, tmp_path):
    result = run("verify", tmp_path / "none", "--model", checkpoint)
    refused(result, "verify", "no such file or folder")


def test_help_is_light():
    heavy = ["transformers", "safetensors", "matplotlib", "optuna"]
    commands = ["inspect", "verify", "merge", "diff"]
    code = f"""
import sys
from fastfood.experiments.cli import app
for command in {commands}:
    try:
        app(["adapter", command, "--help"])
    except SystemExit:
        print(command, [name for name in {heavy} if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in commands:
        assert f"adapter {command} [OPTIONS]" in ran.stdout
        assert f"{command} []" in ran.stdout.splitlines()
