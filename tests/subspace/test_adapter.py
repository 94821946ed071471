"""Adapter files give back what was written, are small, and are refused if they are wrong."""

import json
import os
import struct

import pytest
import torch
from small_net import net
from torch import nn

from fastfood import adapter
from fastfood.quantize import quantize
from fastfood.subspace import SubspaceConfig, SubspaceModel, get_subspace_model

safetensors_torch = pytest.importorskip("safetensors.torch")


IDS = torch.arange(12).reshape(3, 4)


def by_kind(name):
    return name.rsplit(".", 1)[-1]


def trained(d=200, **settings):
    model = get_subspace_model(net(), SubspaceConfig(d=d, seed=2**64 - 1, **settings))
    with torch.no_grad():
        model.theta.normal_()
        if model.lambda_ is not None:
            model.lambda_.uniform_(0.5, 1.5)
    return model


def same_state(model, before):
    return all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and all(
        p.requires_grad == (name != "frozen") for name, p in model.named_parameters()
    )


@pytest.mark.parametrize("normalization", ["global", "tensor"])
@pytest.mark.parametrize("groups", ["layer", "tensor", by_kind])
@pytest.mark.parametrize("method", ["said", "did"])
def test_round_trip(tmp_path, method, groups, normalization):
    model = trained(method=method, groups=groups, normalization=normalization)
    logits = model(IDS)
    path = model.save_pretrained(tmp_path / "new" / "folder")
    assert [p.name for p in path.parent.iterdir()] == ["adapter.safetensors"]
    passed = {"groups": groups} if callable(groups) else {}
    for source in (path, path.parent, str(path)):
        other = SubspaceModel.from_pretrained(net(), source, **passed)
        assert torch.equal(other(IDS), logits)
        assert other.subspace_config == model.subspace_config
        assert torch.equal(other.theta, model.theta)
    assert torch.equal(other.merge_and_unload()(IDS), logits)


@pytest.mark.parametrize("weights", ["resident", "streamed"])
def test_an_adapter_gives_the_same_bits_wherever_it_was_trained(tmp_path, device, weights):
    """All weights, on the CPU and on the device."""
    config = SubspaceConfig(d=200, seed=3, normalization="tensor")
    model = get_subspace_model(net().to(device), config, weights=weights)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(3):
        model(IDS.to(device)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    path = model.save_pretrained(tmp_path)
    places = [torch.device("cpu"), device]
    there, here = (
        SubspaceModel.from_pretrained(net().to(place), path).merge_and_unload() for place in places
    )
    moved = False
    for p, q, r in zip(there.parameters(), here.parameters(), net().parameters(), strict=True):
        assert torch.equal(p, q.cpu())
        moved |= not torch.equal(p, r)
    assert moved and torch.equal(model.merge_and_unload().head.weight.cpu(), there.head.weight)


def test_saving_needs_no_forward_and_loading_writes_the_weights(tmp_path):
    model = trained()
    model.save_pretrained(tmp_path)
    loaded = SubspaceModel.from_pretrained(net(), tmp_path)
    assert torch.equal(loaded.wrapped.head.weight, model.merge_and_unload().head.weight)


@pytest.mark.parametrize("method", ["said", "did"])
def test_sizes_at_d_200(tmp_path, method):
    model = trained(method=method, normalization="global")
    assert model.save_pretrained(tmp_path, dtype=torch.float16).stat().st_size <= 1024
    assert model.save_pretrained(tmp_path).stat().st_size <= 1536
    assert model.save_pretrained(tmp_path, levels=16).stat().st_size <= 640
    assert model.save_pretrained(tmp_path, levels=4).stat().st_size <= 512


@pytest.mark.parametrize("levels", [None, 16])
def test_files_are_reproducible(tmp_path, levels):
    first = trained().save_pretrained(tmp_path, levels=levels)
    contents = set()
    for _ in range(8):
        torch.manual_seed(0)
        model = SubspaceModel.from_pretrained(net(), first)
        contents.add(model.save_pretrained(tmp_path / "again", levels=levels).read_bytes())
    assert contents == {first.read_bytes()}


def test_float16_files_load_as_float32(tmp_path):
    model = trained()
    model.save_pretrained(tmp_path, dtype=torch.float16)
    loaded = SubspaceModel.from_pretrained(net(), tmp_path)
    assert loaded.theta.dtype == loaded.lambda_.dtype == torch.float32
    assert torch.equal(loaded.theta, model.theta.half().float())
    assert torch.equal(loaded.lambda_, model.lambda_.half().float())


@pytest.mark.parametrize("wide", [False, True])
def test_quantised_files_load_as_the_numbers_on_their_levels(tmp_path, wide):
    model = get_subspace_model(net().double() if wide else net(), SubspaceConfig(d=200))
    with torch.no_grad():
        model.theta.normal_()
        model.lambda_.uniform_(0.5, 1.5)
    path = model.save_pretrained(tmp_path, levels=16)
    loaded = SubspaceModel.from_pretrained(net().double() if wide else net(), path)
    dtype = torch.float64 if wide else torch.float32
    assert loaded.theta.dtype == loaded.lambda_.dtype == dtype
    q = quantize(model.theta, 16)
    assert torch.equal(loaded.theta, q.dequantize(dtype))
    assert len(loaded.theta.unique()) == 16
    assert torch.equal(loaded.lambda_, model.lambda_.half().to(dtype))  # 8 numbers on 16 levels
    held = adapter.read(path)
    assert held.header["levels"] == 16
    assert held.bits == {"theta": q.bits, "lambda_": quantize(model.lambda_, 16).bits}


def test_what_a_file_holds(tmp_path):
    model = trained(method="did", groups=by_kind)
    held = adapter.read(model.save_pretrained(tmp_path, dtype=torch.float16).parent)
    assert held.path == tmp_path / "adapter.safetensors"
    assert held.header["groups"] == "custom" and "levels" not in held.header
    assert held.header["D"] == 610 and held.header["base"] == adapter.base_hash(model)
    assert torch.equal(held.tensors["theta"], model.theta.half())
    assert held.bits == {"theta": 16 * 200}


def test_values_out_of_range_are_not_written(tmp_path):
    model = trained()
    with torch.no_grad():
        model.theta[3] = 1e6
    with pytest.raises(ValueError, match="theta: wanted values that are finite in torch.float16"):
        model.save_pretrained(tmp_path, dtype=torch.float16)
    with pytest.raises(ValueError, match="theta: wanted values that are finite in torch.float16"):
        model.save_pretrained(tmp_path, levels=16)
    with pytest.raises(ValueError, match="dtype: wanted one of"):
        model.save_pretrained(tmp_path, dtype=torch.int8)
    with pytest.raises(ValueError, match="levels: wanted 1 to 256, got 0"):
        trained().save_pretrained(tmp_path, levels=0)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = trained().save_pretrained(tmp_path)
    old = path.read_bytes()

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        trained(d=100).save_pretrained(tmp_path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["adapter.safetensors"]


def changed_head():
    model = net()
    with torch.no_grad():
        model.head.weight[0, 0] += 1e-6
    return model


def changed_frozen():
    model = net()
    with torch.no_grad():
        model.frozen[1] = 2
    return model


def renamed():
    model = net()
    model.top = model.head
    del model.head
    return model


def wider():
    model = net()
    model.head = nn.Linear(8, 3)
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: net(1), "other base weights.*same seed as in training"),
        (changed_head, "other base weights"),
        (changed_frozen, "other base weights"),
        (lambda: net().double(), "other parameter names, shapes, types or groups"),
        (renamed, "other parameter names, shapes, types or groups"),
        (wider, r"D = 610, this one has D = 619"),
        (lambda: net().requires_grad_(False), "cannot be put on this model"),
    ],
)
def test_other_bases_are_refused_and_left_alone(tmp_path, build, message):
    path = trained().save_pretrained(tmp_path)
    base = build()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    flags = [p.requires_grad for p in base.parameters()]
    with pytest.raises(ValueError, match=message) as caught:
        SubspaceModel.from_pretrained(base, tmp_path)
    assert str(path) in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert [p.requires_grad for p in base.parameters()] == flags
    assert not any(module._forward_pre_hooks for module in base.modules())


def test_groups_must_be_those_of_the_training(tmp_path):
    trained(groups=by_kind).save_pretrained(tmp_path / "custom")
    trained().save_pretrained(tmp_path / "layer")
    with pytest.raises(ValueError, match="groups: wanted a function, as in training, got None"):
        SubspaceModel.from_pretrained(net(), tmp_path / "custom")
    with pytest.raises(ValueError, match="groups: wanted none beside 'layer', got <function"):
        SubspaceModel.from_pretrained(net(), tmp_path / "layer", groups=by_kind)
    with pytest.raises(ValueError, match="other parameter names, shapes, types or groups"):
        SubspaceModel.from_pretrained(
            net(), tmp_path / "custom", groups=lambda name: name == "head.bias"
        )


def rewrite(path, change):
    """Changes the header or tensors of a file, and leaves out its checksum."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["fastfood"])
    tensors = safetensors_torch.load(content)
    del header["crc"]
    change(header, tensors)
    path.write_bytes(safetensors_torch.save(tensors, {"fastfood": json.dumps(header)}))


def test_files_from_before_the_checksum_load(tmp_path):
    model = trained()
    path = model.save_pretrained(tmp_path)
    rewrite(path, lambda *_: None)
    assert "crc" not in adapter.read(path).header
    assert torch.equal(SubspaceModel.from_pretrained(net(), path).theta, model.theta)


@pytest.mark.parametrize("how", [{"dtype": torch.float16}, {"levels": 4}], ids=["half", "levels"])
def test_every_flipped_byte_is_refused(tmp_path, how):
    path = trained(d=20).save_pretrained(tmp_path, **how)
    content = path.read_bytes()
    adapter.read(path)
    for place in range(len(content)):
        for flip in (1 << place % 8, 255):
            damaged = bytearray(content)
            damaged[place] ^= flip
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match="adapter.safetensors: "):
                adapter.read(path)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def no_header(path):
    safetensors_torch.save_file({"theta": torch.ones(3)}, path)


def foreign_header(path):
    safetensors_torch.save_file({"theta": torch.ones(3)}, path, {"fastfood": "[1]"})


def pickled(path):
    torch.save({"theta": torch.ones(3)}, path)


def deeply_nested(path):
    metadata = {"fastfood": 10**5 * "[" + 10**5 * "]"}
    safetensors_torch.save_file({"theta": torch.ones(3)}, path, metadata)


def header(**values):
    return lambda path: rewrite(path, lambda header, _: header.update(values))


def without(name):
    return lambda path: rewrite(path, lambda header, _: header.pop(name))


def tensors(**values):
    return lambda path: rewrite(path, lambda _, tensors: tensors.update(values))


def flipped(path):
    """The content with one bit of its last number changed, which stays finite."""
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


def quantised(theta):
    """A file with levels, and with this alone."""

    def change(header, tensors):
        header["levels"] = 4
        tensors.clear()
        tensors["theta"] = theta

    return lambda path: rewrite(path, change)


def no_theta(path):
    rewrite(path, lambda _, tensors: tensors.pop("theta"))


def no_lambda(path):
    rewrite(path, lambda _, tensors: tensors.pop("lambda_"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "damaged or not a safetensors file"),
        (lambda path: path.write_bytes(b""), "damaged or not a safetensors file"),
        (lambda path: path.write_bytes(b"\xff" * 100), "damaged or not a safetensors file"),
        (pickled, "damaged or not a safetensors file"),
        (no_header, "not a fastfood adapter"),
        (foreign_header, "not a fastfood adapter"),
        (header(format=2), "format: wanted 1, got 2"),
        (without("seed"), "lacks seed"),
        (without("base"), "lacks base"),
        (flipped, r"damaged, checksum: wanted [0-9a-f]{8}, got '[0-9a-f]{8}'"),
        (header(crc=0), "damaged, checksum: wanted [0-9a-f]{8}, got 0"),
        (header(brc="01234567"), "damaged, its header has unknown entries: brc"),
        (quantised(torch.zeros(3, dtype=torch.uint8)), "theta: the code is damaged: .*got 3"),
        (quantised(torch.ones(192)), r"theta: wanted a code of shape \(n,\) and type torch.uint8"),
        (header(method="lora"), "method: wanted 'said' or 'did', got 'lora'"),
        (header(d="200"), "d: wanted an integer, got '200'"),
        (header(d=True), "d: wanted a number or a word, got a bool"),
        (header(format=1.0), "not a fastfood adapter, its header has no format"),
        (header(format=[1]), "not a fastfood adapter, its header has no format"),
        (header(D="610"), "D: wanted a number from 1 on, got '610'"),
        (header(levels=257), "levels: wanted an integer from 1 to 256, got 257"),
        (deeply_nested, "not a fastfood adapter, its header has no format"),
        (header(d=199), r"theta: wanted shape \[191\], got \[192\]"),
        (header(method="did"), r"lambda_: wanted shape None, got \[8\]"),
        (header(D=611), "D = 611"),
        (header(base="0"), "base: wanted 8 and 32 hex digits, got '0'"),
        (header(base="\ud800"), r"base: wanted 8 and 32 hex digits, got '.ud800'"),
        (header(base=f"{0:08}-{0:032}"), "trained on a model with other parameter names"),
        (header(groups=["layer"]), "groups: wanted a number or a word, got a list"),
        (header(groups="block"), "groups: wanted"),
        (tensors(theta=torch.full((192,), float("nan"))), "theta: wanted a vector of finite"),
        (tensors(theta=torch.ones(192, dtype=torch.int32)), "theta: wanted a vector of finite"),
        (tensors(theta=torch.ones(192).to(torch.float8_e4m3fn)), "theta: wanted a vector of"),
        (
            tensors(theta=torch.full((192,), 1e39, dtype=torch.float64)),
            "theta: wanted values that are finite in torch.float32",
        ),
        (tensors(theta=torch.ones(0)), "theta: wanted a vector of finite"),
        (tensors(theta=torch.ones(192, 1)), "theta: wanted a vector of finite"),
        (no_theta, "damaged, it lacks theta"),
        (tensors(extra=torch.ones(2)), r"extra: wanted shape None, got \[2\]"),
        (no_lambda, r"lambda_: wanted shape \[8\], got None"),
    ],
)
def test_damaged_and_foreign_files_are_refused(tmp_path, damage, message):
    path = trained().save_pretrained(tmp_path)
    damage(path)
    base = net()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        SubspaceModel.from_pretrained(base, tmp_path)
    assert str(path) in str(caught.value)
    assert same_state(base, before)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="adapter.safetensors"):
        SubspaceModel.from_pretrained(net(), tmp_path / "adapter.safetensors")


def test_the_hash_is_of_theta_0_and_made_once(tmp_path, monkeypatch):
    model = trained()
    model(IDS)
    wanted = adapter.base_hash(get_subspace_model(net(), model.subspace_config))
    assert adapter.base_hash(model) == wanted
    monkeypatch.setattr(adapter, "_digest", None)
    model.save_pretrained(tmp_path)
    monkeypatch.undo()
    assert adapter.base_hash(model.double()) != wanted
    monkeypatch.setattr(adapter, "_CHUNK", 16)
    assert adapter.base_hash(model.float()) != wanted  # the hash is defined by chunks
