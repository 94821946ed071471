"""DID and SAID against the dense matrix of P and the plain model's gradients, and what users do
with them: accumulate, checkpoint, generate, convert, copy, merge, train with a Trainer."""

import copy
import inspect
import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastfood.subspace import SubspaceConfig, get_subspace_model

transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 41,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
IDS = torch.randint(3, 41, (3, 7), generator=torch.Generator().manual_seed(1))
IDS[:, -1] = 2  # the sequence end, where BART's head reads
LABELS = torch.tensor([0, 1, 1])


class Mlp(nn.Module):
    def __init__(self, sizes=(5, 7, 6, 3)):
        super().__init__()
        self.embed = nn.Linear(sizes[0], sizes[1])
        self.blocks = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(sizes[1:]))
        self.out = nn.Linear(sizes[-1], 2)

    def forward(self, x):
        x = torch.tanh(self.embed(x))
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.out(x)


def mlp():
    torch.manual_seed(0)
    return Mlp().double()


def bert(**changes):
    torch.manual_seed(0)
    config = transformers.BertConfig(**SMALL | changes, num_labels=2)
    return transformers.BertForSequenceClassification(config).double()


def albert():
    torch.manual_seed(0)
    config = transformers.AlbertConfig(
        **SMALL, embedding_size=8, num_labels=2, classifier_dropout_prob=0.0
    )
    return transformers.AlbertForSequenceClassification(config).double()


def bart():
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=41,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=24,
        dropout=0.0,
        num_labels=2,
    )
    return transformers.BartForSequenceClassification(config).double()


def t5():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=41,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config).double()


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=41,
        n_positions=24,
        n_embd=16,
        n_layer=2,
        n_head=2,
        eos_token_id=2,
        pad_token_id=2,
    )
    return transformers.GPT2LMHeadModel(config)


def loss_of(model):
    """One scalar of any of the models above, in the dtype of its weights."""
    base = getattr(model, "base_model", model)
    if not isinstance(model, transformers.PreTrainedModel) and not hasattr(base, "config"):
        x = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(4, 5)
        weight = base.embed.weight
        return model(x.to(weight.dtype)).double().square().sum()
    labels = IDS if hasattr(model, "lm_head") else LABELS
    return model(input_ids=IDS, labels=labels).loss


def wrap(model, d=30, **settings):
    return get_subspace_model(model, SubspaceConfig(d=d, seed=5, **settings))


def move(model, seed=0):
    """Takes theta and lambda_ away from where all mistakes vanish."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.theta += 0.3 * torch.randn(model.theta.shape, generator=generator)
        if model.lambda_ is not None:
            model.lambda_ += torch.rand(model.lambda_.shape, generator=generator)
    return model


def expected(model, plain, loss=loss_of):
    """Loss and gradients of theta and lambda_, through the dense P and the plain model."""
    config, theta = model.subspace_config, model.theta.detach()
    named = [(name, p) for name, p in plain.named_parameters() if p.requires_grad]
    D = sum(p.numel() for _, p in named)
    P = model.projection.to_dense(torch.float64)
    assert P.shape == (D, len(theta))
    group = {segment.name: segment.group for segment in model._segments}
    factors, rows_group = [], []
    for name, p in named:
        norm = (D / p.numel()) ** 0.5 if config.normalization == "tensor" else 1.0
        scale = 1.0 if model.lambda_ is None else model.lambda_[group[name]].item()
        factors.append(torch.full((p.numel(), 2), norm, dtype=torch.float64))
        factors[-1][:, 1] *= scale
        rows_group.append(torch.full((p.numel(),), group[name]))
    norms, scales = torch.cat(factors).T
    rows_group = torch.cat(rows_group)
    step, start = scales * (P @ theta), 0
    with torch.no_grad():
        for _, p in named:
            p += step[start : start + p.numel()].view(p.shape)
            start += p.numel()
    value = loss(plain)
    grads = torch.autograd.grad(value, [p for _, p in named], allow_unused=True)
    flat = [
        torch.zeros(p.numel()) if g is None else g.reshape(-1)
        for g, (_, p) in zip(grads, named, strict=True)
    ]
    g = torch.cat(flat).double()
    lambda_grad = torch.zeros(len(model.group_names), dtype=torch.float64)
    lambda_grad.index_add_(0, rows_group, norms * (P @ theta) * g)
    return value, P.T @ (scales * g), None if model.lambda_ is None else lambda_grad


def check_gradients(model, plain, loss=loss_of):
    value, theta_grad, lambda_grad = expected(model, plain, loss)
    got = loss(model)
    got.backward()
    torch.testing.assert_close(got, value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model.theta.grad, theta_grad, rtol=1e-7, atol=1e-9)
    assert theta_grad.norm() > 1e-6
    if lambda_grad is not None:
        torch.testing.assert_close(model.lambda_.grad, lambda_grad, rtol=1e-7, atol=1e-9)
        assert lambda_grad.norm() > 1e-6


def layer(name):
    return name.split(".")[0]


@pytest.mark.parametrize("groups", ["layer", "tensor", layer])
@pytest.mark.parametrize("normalization", ["global", "tensor"])
@pytest.mark.parametrize("method", ["said", "did"])
def test_gradients_match_the_dense_matrix(method, normalization, groups):
    config = {"method": method, "normalization": normalization, "groups": groups}
    check_gradients(move(wrap(mlp(), **config)), mlp())


def test_moved_to_each_device(device):
    model = move(wrap(mlp())).to(device)
    _, theta_grad, lambda_grad = expected(move(wrap(mlp())), mlp())
    model(
        torch.linspace(-1, 1, 20, dtype=torch.float64, device=device).reshape(4, 5)
    ).square().sum().backward()
    torch.testing.assert_close(model.theta.grad.cpu(), theta_grad)
    torch.testing.assert_close(model.lambda_.grad.cpu(), lambda_grad)


@pytest.mark.parametrize("projection", ["dense", "sparse"])
def test_other_projections(projection):
    check_gradients(move(wrap(mlp(), projection=projection)), mlp())


@pytest.mark.parametrize("normalization", ["global", "tensor"])
@pytest.mark.parametrize("build", [bert, albert, bart, t5])
def test_gradients_of_transformers(build, normalization):
    check_gradients(move(wrap(build(), normalization=normalization)), build())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant):
    model = move(wrap(bert()))
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    check_gradients(model.train(), bert())


def test_large_gradients_go_alone(monkeypatch):
    monkeypatch.setattr("fastfood.subspace._ALONE", 20)
    check_gradients(move(wrap(mlp(), d=4, method="did")), mlp())
    check_gradients(move(wrap(mlp(), d=5, groups=lambda _: 0, normalization="tensor")), mlp())


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    frozen=st.integers(0, 1),
    method=st.sampled_from(["said", "did"]),
    seed=st.integers(0, 2**64 - 1),
)
def test_gradients_for_any_shape(sizes, frozen, method, seed):
    def build():
        torch.manual_seed(0)
        model = Mlp((5, *sizes)).double()
        model.embed.weight.requires_grad_(not frozen)
        return model

    D = sum(p.numel() for p in build().parameters() if p.requires_grad)
    config = SubspaceConfig(d=min(D, 9), method=method, seed=seed)
    value, theta_grad, _ = expected(move(model := get_subspace_model(build(), config)), build())
    loss = loss_of(model)
    loss.backward()
    torch.testing.assert_close(loss, value)
    torch.testing.assert_close(model.theta.grad, theta_grad)


def test_recurrent_weights_get_gradients():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed = nn.Linear(5, 4)
            self.lstm = nn.LSTM(4, 3, num_layers=2, bidirectional=True)
            self.scale = nn.ParameterList(
                [nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(6))]
            )

        def forward(self, x):
            y = self.lstm(self.embed(x))[0]
            return y * self.scale[0] + sum(p.sum() for p in self.scale)

    check_gradients(move(wrap(Recurrent().double())), Recurrent().double())
    model = move(wrap(Recurrent().double()))
    y = model(torch.ones(2, 5).double())
    merged = model.merge_and_unload()
    assert all(isinstance(w, nn.Parameter) for w in merged.lstm._flat_weights)
    assert torch.equal(merged(torch.ones(2, 5).double()), y)


@pytest.mark.filterwarnings("ignore")
def test_compiled_training_is_the_same():
    plain, model = move(wrap(mlp())), move(wrap(mlp()))
    compiled = torch.compile(model, backend="aot_eager")
    x = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(4, 5)
    for _ in range(3):
        for one in (plain, compiled):
            one.zero_grad()
            one(x).square().sum().backward()
        torch.testing.assert_close(model.theta.grad, plain.theta.grad)
        torch.testing.assert_close(model.lambda_.grad, plain.lambda_.grad)
        for one in (plain, model):
            with torch.no_grad():
                one.theta -= 0.01 * one.theta.grad


def test_data_parallel_is_refused():
    with pytest.raises(RuntimeError, match="use DistributedDataParallel"):
        wrap(mlp())._replicate_for_data_parallel()


def test_sparse_gradients_are_gathered():
    def build():
        torch.manual_seed(0)
        return nn.ModuleDict({"e": nn.Embedding(7, 4, sparse=True), "o": nn.Linear(4, 2)}).double()

    def loss(model):
        base = getattr(model, "base_model", model)
        if base is not model:
            model.refresh()
        return base["o"](base["e"](torch.tensor([1, 4, 4]))).square().sum()

    model = move(wrap(build(), d=9))
    plain = build()
    plain["e"].sparse = False
    value, theta_grad, _ = expected(model, plain, loss)
    loss(model).backward()
    torch.testing.assert_close(model.theta.grad, theta_grad)


def test_second_order():
    model = move(wrap(mlp()))
    leaves = [model.theta, model.lambda_]
    grads = torch.autograd.grad(loss_of(model), leaves, create_graph=True)
    direction = [torch.ones_like(p) for p in leaves]
    product = torch.autograd.grad(grads, leaves, direction)

    h = 1e-5
    sides = []
    for step in (h, -h):
        with torch.no_grad():
            for p, v in zip(leaves, direction, strict=True):
                p += step * v
        sides.append(torch.autograd.grad(loss_of(model), leaves))
        with torch.no_grad():
            for p, v in zip(leaves, direction, strict=True):
                p -= step * v
    for exact, plus, minus in zip(product, *sides, strict=True):
        torch.testing.assert_close(exact, (plus - minus) / (2 * h), rtol=1e-5, atol=1e-5)


def test_second_order_after_a_change_is_an_error():
    model = move(wrap(mlp()))
    loss = loss_of(model)
    move(model)
    with pytest.raises(RuntimeError, match="changed before a backward with create_graph"):
        torch.autograd.grad(loss, model.theta, create_graph=True)


def test_exactly_d_numbers_and_tied_weights_once():
    for build, method in ((bart, "said"), (t5, "did"), (albert, "said")):
        plain = build()
        names = len(list(plain.named_parameters(remove_duplicate=False)))
        tensors = len(list(plain.named_parameters()))
        model = wrap(build(), d=37, method=method)
        trained = [p for p in model.parameters() if p.requires_grad]
        assert sum(p.numel() for p in trained) == 37
        assert {id(p) for p in trained} == {id(p) for p in model._leaves()}
        assert sum(p.numel() for p in plain.parameters()) == model.projection.D
        assert len(model._segments) == tensors
        assert sum(len(segment.owners) for segment in model._segments) >= names
    model = wrap(bart())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 30
    move(model).refresh()
    encoder, decoder = model.model.encoder.embed_tokens, model.model.decoder.embed_tokens
    assert encoder.weight is decoder.weight is model.model.shared.weight


def test_groups_by_layer():
    assert wrap(bert()).group_names == [
        "embeddings",
        "bert.encoder.layer.0",
        "bert.encoder.layer.1",
        "head",
    ]
    model = wrap(t5())
    assert model.group_names == ["embeddings", "encoder.block.0", "head", "decoder.block.0"]
    by_name = {segment.name: model.group_names[segment.group] for segment in model._segments}
    assert by_name["encoder.final_layer_norm.weight"] == "head"
    model = wrap(mlp())
    assert model.group_names == ["embeddings", "blocks.0", "blocks.1", "head"]
    assert wrap(nn.Sequential(nn.Linear(9, 9))).group_names == ["0"]
    assert wrap(nn.Linear(9, 9)).group_names == ["head"]


@pytest.fixture
def writes(monkeypatch):
    """Counts how often theta_D is written."""
    from fastfood.projection import Fastfood

    count = [0]
    write = Fastfood.perturb_

    def counted(*args, **kwargs):
        count[0] += 1
        return write(*args, **kwargs)

    monkeypatch.setattr(Fastfood, "perturb_", counted)
    return count


def test_one_projection_per_optimizer_step(writes):
    model = wrap(mlp())
    optimizer = torch.optim.SGD(model._leaves(), lr=0.1)
    for step in range(3):
        for _ in range(4):
            loss_of(model).backward()
        with torch.no_grad():
            loss_of(model)
        with torch.inference_mode():
            loss_of(model.base_model)
        assert writes[0] == step + 1
        optimizer.step()
        optimizer.zero_grad()


def test_accumulated_gradients_add_up():
    model = move(wrap(mlp()))
    loss_of(model).backward()
    once = model.theta.grad.clone(), model.lambda_.grad.clone()
    loss_of(model).backward()
    torch.testing.assert_close(model.theta.grad, 2 * once[0])
    torch.testing.assert_close(model.lambda_.grad, 2 * once[1])


def test_generate_projects_once_and_sees_new_weights(writes):
    model = wrap(gpt2().eval())
    prompt = {"input_ids": IDS[:1, :3], "max_new_tokens": 5, "do_sample": False}
    model.generate(**prompt)
    assert writes[0] == 1
    move(model)
    got = model.generate(**prompt)
    assert writes[0] == 2
    assert torch.equal(model.merge_and_unload().generate(**prompt), got)


def test_an_encoder_called_first_sees_new_weights():
    model = wrap(t5().eval())
    prompt = {"input_ids": IDS, "max_new_tokens": 4, "do_sample": False}
    model.generate(**prompt)
    move(model)
    with torch.no_grad():
        before = model.get_encoder()(input_ids=IDS).last_hidden_state
        after = move(model, seed=1).get_encoder()(input_ids=IDS).last_hidden_state
    assert not torch.equal(before, after)


def test_writes_through_data_are_seen():
    model = wrap(mlp())
    before = loss_of(model)
    model.theta.data.fill_(0.5)  # leaves the version counter alone
    assert loss_of(model) != before
    model.theta = nn.Parameter(torch.zeros_like(model.theta))
    assert loss_of(model) == before


def test_refreshing_inside_autocast_and_inference_mode():
    for context in (torch.autocast("cpu", torch.bfloat16), torch.inference_mode()):
        for projection in ("fastfood", "dense"):
            model = move(wrap(mlp().float(), projection=projection))
            with context:
                model(torch.ones(1, 5))
            got = model.base_model.embed.weight.detach().clone()
            other = move(wrap(mlp().float(), projection=projection))
            other.refresh()
            assert torch.equal(got, other.base_model.embed.weight)
            loss_of(model).backward()


def test_a_stale_graph_is_an_error():
    model = move(wrap(mlp()))
    loss = loss_of(model)
    move(model)
    loss_of(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_frozen_lambda():
    model = move(wrap(mlp()))
    model.lambda_.requires_grad_(False)
    loss_of(model).backward()
    assert model.lambda_.grad is None and model.theta.grad.norm() > 0
    model.lambda_.requires_grad_(True)
    loss_of(model).backward()
    assert model.lambda_.grad.norm() > 0


@pytest.mark.parametrize("method", ["said", "did"])
@pytest.mark.parametrize("build", [mlp, bart])
def test_merge_is_bit_exact_and_unload_restores(build, method):
    plain = build().float().eval()
    plain_state = copy.deepcopy(plain.state_dict())
    model = move(wrap(copy.deepcopy(plain), method=method))
    output = loss_of(model)
    merged = model.merge_and_unload()
    assert torch.equal(loss_of(merged), output)
    assert not torch.equal(output, loss_of(plain))
    storages = {p.untyped_storage().data_ptr() for p in merged.parameters()}
    assert len(storages) == len(list(merged.parameters()))
    for (name, p), (wanted, q) in zip(
        merged.named_parameters(remove_duplicate=False),
        plain.named_parameters(remove_duplicate=False),
        strict=True,
    ):
        assert (name, p.shape, p.requires_grad) == (wanted, q.shape, q.requires_grad)
        assert type(p) is nn.Parameter and p.is_leaf
    assert len(list(merged.parameters())) == len(list(plain.parameters()))
    assert not any(module._forward_pre_hooks for module in merged.modules())
    with pytest.raises(AttributeError, match="taken out"):
        model(torch.ones(1, 5))

    model = move(wrap(copy.deepcopy(plain), method=method))
    loss_of(model).backward()
    restored = model.unload()
    assert all(torch.equal(restored.state_dict()[k], v) for k, v in plain_state.items())
    assert torch.equal(loss_of(restored), loss_of(plain))
    loss_of(wrap(restored)).backward()  # it may be wrapped again


def test_state_dict_round_trip():
    model = move(wrap(mlp()))
    state = model.state_dict()
    assert list(state) == ["theta", "lambda_"]
    assert list(nn.ModuleDict({"a": model}).state_dict()) == ["a.theta", "a.lambda_"]
    other = wrap(mlp())
    assert loss_of(other) != loss_of(model)
    other.load_state_dict(state, strict=True)
    assert torch.equal(loss_of(other), loss_of(model))
    nn.ModuleDict({"a": wrap(mlp())}).load_state_dict({"a." + k: v for k, v in state.items()})
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({"theta": state["theta"]})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict(state | {"embed.weight": torch.ones(1)})


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent(duplicate):
    model = move(wrap(t5()))
    loss = loss_of(model)
    other = duplicate(model)
    assert torch.equal(loss_of(other), loss)
    move(other)
    assert loss_of(other) != loss
    assert torch.equal(loss_of(model), loss)
    loss_of(other).backward()
    assert model.theta.grad is None
    assert type(other).__name__ == "SubspaceT5ForConditionalGeneration"


def test_a_pickle_holds_the_weights_once():
    model = move(wrap(mlp().float(), method="did"))
    loss_of(model)
    plain, D = len(pickle.dumps(mlp().float())), model.projection.D
    assert len(pickle.dumps(model)) < plain + 4 * D + 20_000


def test_conversions():
    model = move(wrap(bert().float()))
    with torch.no_grad():
        loss = loss_of(model)
        assert torch.equal(loss_of(model.to(torch.float64).to(torch.float32)), loss)
        assert model.theta.dtype == torch.float32
    model.double()
    check_gradients(model, bert().float().double())
    kept = model.float().theta.clone()
    model.theta.grad = torch.ones_like(model.theta)
    model.bfloat16()
    assert model.theta.dtype == model.theta.grad.dtype == torch.float32
    assert torch.equal(model.theta, kept)
    assert model.dtype == torch.bfloat16
    assert abs(loss_of(model).item() - loss.item()) < 0.05


def test_sixteen_bit_weights_train():
    plain = bert().bfloat16()
    model = move(wrap(plain))
    assert model.theta.dtype == model.lambda_.dtype == torch.float32
    loss_of(model).backward()
    exact = move(wrap(bert().bfloat16().double()))
    with torch.no_grad():
        exact.theta.copy_(model.theta)
        exact.lambda_.copy_(model.lambda_)
    loss_of(exact).backward()
    for got, wanted in zip(model._leaves(), exact._leaves(), strict=True):
        angle = torch.cosine_similarity(got.grad.double(), wanted.grad, dim=0)
        assert angle > 0.98


def test_mixed_dtypes_are_separate_runs(writes):
    def build():
        model = mlp()
        model.blocks.float()
        model.embed.double()
        forward = model.blocks[0].forward
        model.blocks[0].forward = lambda x: forward(x.float())
        model.out.forward = lambda x: nn.functional.linear(
            x.double(), model.out.weight, model.out.bias
        )
        return model

    model = move(wrap(build()))
    value, theta_grad, lambda_grad = expected(model, build())
    loss = loss_of(model)
    loss.backward()
    assert writes[0] == 3
    assert model.theta.dtype == torch.float64
    torch.testing.assert_close(loss, value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.theta.grad, theta_grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.lambda_.grad, lambda_grad, rtol=1e-4, atol=1e-5)


def test_weights_loaded_before_the_first_forward_are_theta_0():
    model, other = wrap(mlp()), mlp()
    with torch.no_grad():
        for p in other.parameters():
            p.uniform_()
    model.base_model.load_state_dict(other.state_dict())
    check_gradients(move(model), other)


@pytest.mark.parametrize(
    "meddle",
    [
        lambda base: base.float(),
        lambda base: base.load_state_dict(mlp().state_dict()),
        lambda base: setattr(base.embed, "weight", nn.Parameter(torch.ones(7, 5).double())),
    ],
)
def test_changing_the_base_alone_is_an_error(meddle):
    model = wrap(mlp())
    loss_of(model)
    meddle(model.base_model)
    with pytest.raises(RuntimeError, match="moved, converted or written"):
        loss_of(move(model))


def test_the_base_stays_usable():
    model = wrap(bert())
    assert model.config.hidden_size == 16
    assert model.dtype == torch.float64 and model.device.type == "cpu"
    names = [name for name, _ in bert().named_parameters()]
    assert [name for name, _ in model.base_model.named_parameters()] == names
    assert not any(p.requires_grad for p in model.base_model.parameters())
    loss_of(move(model))
    state = model.base_model.state_dict()
    assert torch.equal(state["classifier.weight"], model.classifier.weight)
    assert model.num_labels == 2
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = model.nothing_of_the_kind
    parameters = inspect.signature(model.forward).parameters
    assert "input_ids" in parameters and "self" not in parameters
    assert "labels" in inspect.signature(type(model).forward).parameters


def test_print_trainable_parameters(capsys):
    wrap(bert(num_hidden_layers=4), d=31).print_trainable_parameters()
    text = capsys.readouterr().out
    assert "31 of" in text and "6 groups" in text
    assert "bert.encoder.layer.0 .. bert.encoder.layer.3" in text


class Tangled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.ones(4, 3))
        self.b = nn.Parameter(self.a.detach()[1:])


def expanded():
    model = nn.Linear(3, 3)
    model.weight = nn.Parameter(torch.ones(3).expand(3, 3))
    return model


def sparse():
    model = nn.Linear(3, 3)
    model.weight = nn.Parameter(torch.eye(3).to_sparse())
    return model


def frozen():
    return nn.Linear(3, 3).requires_grad_(False)


def integer():
    model = nn.Linear(3, 3)
    model.weight = nn.Parameter(torch.ones(3, 3).to(torch.complex64))
    return model


@pytest.mark.parametrize(
    ("build", "config", "message"),
    [
        (mlp, {"d": 10_000, "method": "did"}, r"d must be at most D = \d+.*got 10000"),
        (mlp, {"d": 4}, r"d must be above m = 4.*got 4"),
        (Tangled, {"d": 5}, "a and b overlap in memory"),
        (expanded, {"d": 5}, "weight overlaps itself"),
        (sparse, {"d": 5}, "weight must be an ordinary dense tensor, got torch.sparse"),
        (lambda: nn.Linear(3, 3, device="meta"), {"d": 5}, "dense tensor, got meta"),
        (lambda: nn.LazyLinear(3), {"d": 5}, "dense tensor, got lazy"),
        (frozen, {"d": 5}, "must have parameters that require gradients"),
        (integer, {"d": 5}, "weight must be one of float32.*got torch.complex64"),
        (lambda: torch.jit.script(nn.Linear(3, 3)), {"d": 5}, "must not be scripted"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_refused_models_stay_as_they_were(build, config, message):
    model = build()

    def state():
        hooks = [len(module._forward_pre_hooks) for module in model.modules()]
        return hooks, [(id(p), p.requires_grad) for p in model.parameters()]

    before = state()
    with pytest.raises((TypeError, ValueError), match=message):
        get_subspace_model(model, SubspaceConfig(**config))
    assert state() == before


def test_wrapping_twice_is_refused():
    model = wrap(mlp())
    for again in (model, model.base_model, nn.ModuleList([model])):
        with pytest.raises(ValueError, match="wrapped in a SubspaceModel already"):
            wrap(again)
    with pytest.raises(TypeError, match="model must be an nn.Module, got int"):
        wrap(3)
    with pytest.raises(TypeError, match="config must be a SubspaceConfig, got dict"):
        get_subspace_model(mlp(), {"d": 3})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d": 0}, "d must be at least 1, got 0"),
        ({"d": 1.5}, "d must be an integer, got 1.5"),
        ({"d": True}, "d must be an integer, got True"),
        ({"d": 3, "seed": -1}, "seed must be at least 0"),
        ({"d": 3, "seed": 2**64}, r"seed must be.*below 2\*\*64"),
        ({"d": 3, "method": "lora"}, "method must be 'said' or 'did', got 'lora'"),
        ({"d": 3, "normalization": "row"}, "normalization must be 'global' or 'tensor', got 'row'"),
        (
            {"d": 3, "groups": "block"},
            "groups must be 'layer' or 'tensor' or a function.*got 'block'",
        ),
        ({"d": 3, "projection": "dct"}, "projection must be .*'sparse', got 'dct'"),
    ],
)
def test_refused_configurations(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        SubspaceConfig(**arguments)


def test_numpy_integers_are_integers():
    assert type(SubspaceConfig(d=np.int64(7)).d) is int


def texts(n):
    datasets = pytest.importorskip("datasets")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 41, (n, 7), generator=generator)
    rows = {
        "input_ids": ids.tolist(),
        "text": ["unused"] * n,
        "labels": (ids[:, 0] > 20).long().tolist(),
    }
    return datasets.Dataset.from_dict(rows)


@pytest.mark.filterwarnings("ignore")
def test_trainer(tmp_path, writes):
    """bf16 autocast, accumulation, a text column, checkpoints, and resuming from one of them."""
    pytest.importorskip("accelerate")

    def trainer(folder, steps):
        model = wrap(bert().float(), d=40)
        arguments = transformers.TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=0.05,
            lr_scheduler_type="constant",
            bf16=True,
            use_cpu=True,
            save_strategy="steps",
            save_steps=3,
            eval_strategy="steps",
            eval_steps=3,
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        return transformers.Trainer(
            model, arguments, train_dataset=texts(64), eval_dataset=texts(8)
        )

    whole = trainer(tmp_path / "whole", 6)
    base = copy.deepcopy(whole.model.base_model.state_dict())
    whole.train()
    assert writes[0] <= 6 + 2  # one for each step, one before, one for the last evaluation
    theta = whole.model.theta.detach().clone()
    assert theta.norm() > 0 and (whole.model.lambda_ != 1).any()
    assert [entry["eval_loss"] for entry in whole.state.log_history if "eval_loss" in entry]
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    assert (checkpoint / "model.safetensors").stat().st_size < 1024

    resumed = trainer(tmp_path / "resumed", 6)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    torch.testing.assert_close(resumed.model.theta.detach(), theta, rtol=0, atol=0)
    assert torch.equal(resumed.model.lambda_, whole.model.lambda_)
    restored = resumed.model.unload().state_dict()
    assert all(torch.equal(restored[name], value) for name, value in base.items())
