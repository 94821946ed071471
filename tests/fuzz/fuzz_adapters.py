"""Damaged and forged adapter files: each loads as what it says or is refused by one clear error,
and a refused one leaves the model, and the folder that a merge was to write, as they were."""

import json
import os
import resource
import struct
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft_models import said
from small_net import net
from subspace_models import bert
from typer.testing import CliRunner

from fastfood import adapter
from fastfood.experiments.cli import app
from fastfood.subspace import SubspaceConfig, SubspaceModel, get_subspace_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's of transformers

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

TRIED = Counter()
MOST_MEMORY = 400 << 20  # bytes that no file of these sizes may make us take

numbers = st.one_of(
    st.integers(-2, 300), st.sampled_from([2**20, 2**31, 2**60, 2**63, 2**64, 10**400, 0.5, 1e400])
)
words = st.one_of(st.text(max_size=8), st.sampled_from(["", "said", "did", "custom", "\ud800"]))
values = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)
dtypes = st.sampled_from("F64 F32 F16 BF16 F8_E4M3 F8_E5M2 F4 F6_E2M3 I64 I8 U8 BOOL C64 X".split())
damages = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "drop", "insert", "repeat"]),
        st.integers(0, 1 << 16),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module", autouse=True)
def little_memory():
    """Checks that no input makes us take much memory; ru_maxrss is the peak so far, in KiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < MOST_MEMORY


def trained(**changes):
    model = get_subspace_model(net(), SubspaceConfig(d=20, seed=3, **changes))
    with torch.no_grad():
        model.theta.normal_()
    return model


def written(model, **how):
    with tempfile.TemporaryDirectory() as folder:
        return model.save_pretrained(folder, **how).read_bytes()


WAYS = [{}, {"dtype": torch.float16}, {"dtype": torch.float64}, {"levels": 5}, {"levels": 256}]
MODEL = trained()
FILES = [written(MODEL, **how) for how in WAYS] + [written(trained(method="did"))]
FOLDER = Path(tempfile.mkdtemp())
BASE, PLAIN = net(), net()
WRAPPED = get_subspace_model(net(), SubspaceConfig(d=20, seed=3))


def teardown_module():
    for path in FOLDER.iterdir():
        path.unlink()
    FOLDER.rmdir()


def damaged(content, changes):
    content = bytearray(content)
    for kind, place, some in changes:
        place %= len(content) + 1
        if kind == "flip":
            for i, byte in enumerate(some):
                if place + i < len(content):
                    content[place + i] ^= byte
        elif kind == "cut":
            del content[place:]
        elif kind == "drop":
            del content[place : place + some[0]]
        elif kind == "insert":
            content[place:place] = some
        else:
            content[place:place] = content[place : place + some[0]]
    return bytes(content)


def parsed(content):
    size = struct.unpack("<Q", content[:8])[0]
    outer = json.loads(content[8 : 8 + size])
    return outer, json.loads(outer["__metadata__"]["fastfood"]), content[8 + size :]


def assembled(outer, inner, data, sealed):
    """The file of these headers, with the checksum that fits it if it is to be sealed."""
    if sealed and isinstance(inner, dict):
        inner = inner | {"crc": "00000000"}
    metadata = outer.get("__metadata__")
    if isinstance(metadata, dict):
        outer = outer | {"__metadata__": metadata | {"fastfood": json.dumps(inner)}}
    header = json.dumps(outer, separators=(",", ":"))
    content = struct.pack("<Q", len(header)) + header.encode("utf-8", "surrogatepass") + data
    content = content.replace(rb"\"crc\": \"", adapter._CRC)
    content = struct.pack("<Q", len(content) - 8 - len(data)) + content[8:]
    if sealed and adapter._CRC in content:
        before, after = adapter._around_crc(content)
        content = before + adapter._checksum(before, after).encode() + after
    return content


def untouched(base):
    state = zip(base.state_dict().values(), PLAIN.state_dict().values(), strict=True)
    assert all(torch.equal(p, q) for p, q in state)
    assert all(p.requires_grad == (name != "frozen") for name, p in base.named_parameters())
    assert not any(module._forward_pre_hooks for module in base.modules())


def try_file(content):
    """The model that a file loads as, after checks that it is right, or None if it is refused."""
    path = FOLDER / adapter.FILE_NAME
    path.write_bytes(content)
    named = {"default": WRAPPED.theta.clone()}
    try:
        model = SubspaceModel.from_pretrained(BASE, path)
    except ValueError as error:
        assert str(path) in str(error) and len(str(error)) < 2000
        untouched(BASE)
        with pytest.raises(ValueError):
            WRAPPED.load_adapter(path, "new")
        assert WRAPPED.adapters.keys() == named.keys()
        assert torch.equal(WRAPPED.theta, named["default"])
        return None
    try:
        held = adapter.read(path)
        for name, tensor in held.tensors.items():
            assert torch.equal(getattr(model, name).detach(), tensor.float())
        for name in adapter.SETTINGS:
            assert getattr(model.subspace_config, name) == held.header[name]
        WRAPPED.load_adapter(path, "new")
        assert torch.equal(WRAPPED.adapters["new"].theta, model.theta)
        WRAPPED.delete_adapter("new")
        return held
    finally:
        untouched(model.unload())


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Makes a folder current in which no made-up name is a file."""
    monkeypatch.chdir(tmp_path)


@settings(max_examples=3000)
@given(st.sampled_from(FILES), damages)
def test_adapter_file_bytes(content, changes):
    TRIED["test_adapter_file_bytes"] += 1
    changed = damaged(content, changes)
    assert try_file(changed) is None or changed == content


@st.composite
def forged(draw):
    """A file whose headers an attacker could have written."""
    outer, inner, data = parsed(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["inner", "tensor", "outer", "data", "metadata"]))
        tensor = outer.get(draw(st.sampled_from(["theta", "lambda_"])))
        if kind == "inner" and isinstance(inner, dict):
            name = draw(st.sampled_from([*sorted(inner), "levels", "new"]))
            inner = {k: v for k, v in inner.items() if k != name}
            inner |= draw(st.just({}) | values.map(lambda v, name=name: {name: v}))
        elif kind == "tensor" and isinstance(tensor, dict):
            sizes = st.lists(st.integers(0, 30) | st.sampled_from([2**60, 2**64, -1]), max_size=3)
            fields = {"dtype": dtypes, "shape": sizes, "data_offsets": sizes | values}
            name = draw(st.sampled_from(sorted(fields)))
            tensor[name] = draw(fields[name])
        elif kind == "outer":
            name = draw(st.sampled_from(["theta", "lambda_", "extra", "../x", "__metadata__"]))
            outer.pop(name, None)
            if draw(st.booleans()):
                outer[name] = draw(values | st.just({"dtype": "F32", "shape": [0]}))
        elif kind == "data":
            data = damaged(data, draw(damages))
        else:
            inner = draw(values)
    return assembled(outer, inner, data, draw(st.booleans()))


@settings(max_examples=4000)
@given(forged())
def test_forged_adapter_headers(content):
    TRIED["test_forged_adapter_headers"] += 1
    try_file(content)


@settings(max_examples=1000)
@given(st.sampled_from(FILES[3:5]), damages, st.booleans())
def test_broken_codes_of_levels(content, changes, sealed):
    TRIED["test_broken_codes_of_levels"] += 1
    outer, inner, data = parsed(content)
    start, stop = outer["theta"]["data_offsets"]
    code = damaged(data[start:stop], changes)
    data = data[:start] + code + data[stop:]
    for name in ("theta", "lambda_"):
        first, last = outer[name]["data_offsets"]
        shift = len(code) - (stop - start)
        moved = [first + shift * (first >= stop), last + shift * (last >= stop)]
        outer[name] |= {"data_offsets": moved, "shape": [moved[1] - moved[0]]}
    if not sealed:
        del inner["crc"]
    try_file(assembled(outer, inner, data, sealed))


@settings(max_examples=1000)
@given(
    st.text(max_size=30) | st.sampled_from(["..", "/", "a/b", "~", "a\0b", "x" * 300, "//", "."])
)
def test_names_of_adapters(name):
    TRIED["test_names_of_adapters"] += 1
    os.environ["HF_HUB_OFFLINE"] = "1"
    with pytest.raises(OSError):
        SubspaceModel.from_pretrained(BASE, name)
    untouched(BASE)


def run(*arguments):
    """Runs a command and returns its exit code, after checking that it printed no traceback."""
    result = CliRunner().invoke(app, ["adapter", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1, 2)
    if result.exit_code == 2 or (result.exit_code == 1 and arguments[0] == "verify"):
        assert result.stderr.startswith("fastfood adapter ") and result.stderr.count("\n") == 1
    return result.exit_code


@settings(max_examples=200)
@given(forged() | st.builds(damaged, st.sampled_from(FILES), damages))
def test_adapter_inspect_and_diff(content):
    TRIED["test_adapter_inspect_and_diff"] += 1
    path, good = FOLDER / adapter.FILE_NAME, FOLDER / "good.safetensors"
    path.write_bytes(content)
    good.write_bytes(FILES[0])
    codes = [run("inspect", path), run("inspect", path, "--json")]
    compared = [run("diff", path, good), run("diff", good, path, "--json")]
    assert codes in ([0, 0], [2, 2]) and (codes[0] == 2) == (compared[0] == 2) == (compared[1] == 2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    bert().float().save_pretrained(folder)
    return folder


@settings(max_examples=150)
@given(data=st.data())
def test_adapter_verify_and_merge(checkpoint, data):
    TRIED["test_adapter_verify_and_merge"] += 1
    base = transformers.BertForSequenceClassification.from_pretrained(checkpoint)
    model = get_subspace_model(base, SubspaceConfig(d=20))
    content = damaged(written(model), data.draw(damages | st.just([])))
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, adapter.FILE_NAME), Path(folder, "merged")
        path.write_bytes(content)
        verified = run("verify", path, "--model", checkpoint)
        merged = run("merge", path, "--model", checkpoint, "--out", out)
        assert (verified == 0) == (merged == 0)
        left = {p.name for p in Path(folder).iterdir()} - {path.name}
        assert left == (set() if merged else {"merged"})
        if not merged:
            assert {"config.json", "model.safetensors"} <= {p.name for p in out.iterdir()}


PEFT_BASE = bert().float().eval()
PEFT_PLAIN = {name: p.clone() for name, p in PEFT_BASE.state_dict().items()}


@settings(max_examples=200)
@given(data=st.data())
def test_peft_folders(data):
    TRIED["test_peft_folders"] += 1
    with tempfile.TemporaryDirectory() as folder:
        model = peft.get_peft_model(bert().float(), said())
        model.save_pretrained(folder)
        path = Path(folder, "adapter_config.json")
        kept = json.loads(path.read_text())
        ours = "d seed normalization groups projection gradient weights base_hash".split()
        changed = data.draw(st.lists(st.sampled_from(ours), min_size=1, max_size=3))
        for name in changed:
            kept[name] = data.draw(values)
        path.write_text(json.dumps(kept))
        weights = Path(folder, "adapter_model.safetensors")
        content = data.draw(st.just([]) | damages)
        weights.write_bytes(damaged(weights.read_bytes(), content))
        try:
            loaded = peft.PeftModel.from_pretrained(PEFT_BASE, folder)
        except (TypeError, ValueError):  # of a setting: before anything is changed
            assert not hasattr(PEFT_BASE, "peft_config")
        except Exception:  # PEFT's own, of the file: the model is wrapped by then
            assert content or {"d", "groups"} & set(changed)  # theta and lambda_ of another size
            layers = [m for m in PEFT_BASE.modules() if m._forward_pre_hooks]
            next(iter(layers[0]._forward_pre_hooks.values())).__self__.unload()
            del PEFT_BASE.peft_config
        else:
            loaded.unload()
        assert all(p.requires_grad for p in PEFT_BASE.parameters())
        for name, p in PEFT_BASE.state_dict().items():
            assert torch.equal(p, PEFT_PLAIN[name])
        assert not any(module._forward_pre_hooks for module in PEFT_BASE.modules())
