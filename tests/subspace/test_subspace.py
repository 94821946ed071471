"""Users' work with a subspace model: they accumulate gradients, generate, convert, copy, merge it,
and train it with a Trainer."""

import copy
import inspect
import pickle

import pytest
import subspace_models
import torch
from subspace_models import (
    albert,
    bart,
    bert,
    check_gradients,
    expected,
    gpt2,
    ids,
    inputs,
    loss_of,
    mlp,
    move,
    t5,
    texts,
    wrap,
)
from torch import nn

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("everywhere")


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
        assert len(model.segments) == tensors
        assert sum(len(segment.owners) for segment in model.segments) >= names
    model = wrap(bart())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 30
    move(model).refresh()
    encoder, decoder = model.model.encoder.embed_tokens, model.model.decoder.embed_tokens
    assert encoder.weight is decoder.weight is model.model.shared.weight


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
            loss_of(model.wrapped)
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
    prompt = {"input_ids": ids(1, 3), "max_new_tokens": 5, "do_sample": False}
    model.generate(**prompt)
    assert writes[0] == 1
    move(model)
    got = model.generate(**prompt)
    assert writes[0] == 2
    assert torch.equal(model.merge_and_unload().generate(**prompt), got)


def test_an_encoder_called_first_sees_new_weights():
    model = wrap(t5().eval())
    prompt = {"input_ids": ids(), "max_new_tokens": 4, "do_sample": False}
    model.generate(**prompt)
    move(model)
    with torch.no_grad():
        before = model.get_encoder()(input_ids=ids()).last_hidden_state
        after = move(model, seed=1).get_encoder()(input_ids=ids()).last_hidden_state
    assert not torch.equal(before, after)


def test_writes_through_data_are_seen():
    model = wrap(mlp())
    before = loss_of(model)
    model.theta.data.fill_(0.5)  # leaves the version counter alone
    if model.theta.is_cuda:  # where nothing waits for the comparison, which the forward after tells
        loss_of(model)
        torch.cuda.synchronize()
        with pytest.raises(RuntimeError, match="call refresh\\(\\) after such a write"):
            loss_of(model)
        model.refresh()
    assert loss_of(model) != before
    model.theta = nn.Parameter(torch.zeros_like(model.theta))
    assert loss_of(model) == before


class ByAddress(torch.optim.SGD):
    """Acts like other libraries' fused kernels, which do not change version counters."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.sub_(group["lr"] * p.grad)


@pytest.mark.parametrize("duplicate", [lambda m: m, copy.deepcopy])
def test_steps_of_any_optimizer_are_seen(duplicate, monkeypatch):
    monkeypatch.setattr("fastfood.points.Point.was_left_unseen", lambda self: False)
    plain, model = move(wrap(mlp())), duplicate(move(wrap(mlp())))
    optimizers = torch.optim.SGD(plain._leaves(), lr=0.1), ByAddress(model._leaves(), lr=0.1)
    for _ in range(3):
        losses = loss_of(plain), loss_of(model)
        torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert not torch.equal(losses[0], loss_of(move(wrap(mlp()))))


def test_refreshing_inside_autocast_and_inference_mode():
    kind = subspace_models.DEVICE.type
    for context in (torch.autocast(kind, torch.bfloat16), torch.inference_mode()):
        for projection in ("fastfood", "dense"):
            model = move(wrap(mlp().float(), projection=projection))
            with context:
                model(inputs(1, 5).float())
            got = model.wrapped.embed.weight.detach().clone()
            other = move(wrap(mlp().float(), projection=projection))
            other.refresh()
            assert torch.equal(got, other.wrapped.embed.weight)
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
    model.wrapped.load_state_dict(other.state_dict())
    check_gradients(move(model), other)


@pytest.mark.parametrize("weights", ["resident", "streamed"])
@pytest.mark.parametrize(
    "meddle",
    [
        lambda base: base.float(),
        lambda base: base.load_state_dict(mlp().state_dict()),
        lambda base: setattr(base.embed, "weight", nn.Parameter(inputs(7, 5))),
    ],
)
def test_changing_the_base_alone_is_an_error(meddle, weights):
    model = wrap(mlp(), weights=weights)
    loss_of(model)
    meddle(model.wrapped)
    with pytest.raises(RuntimeError, match="moved, converted or written"):
        loss_of(move(model))


def test_the_base_stays_usable():
    model = wrap(bert())
    assert model.config.hidden_size == 16
    assert model.dtype == torch.float64 and model.device.type == subspace_models.DEVICE.type
    names = [name for name, _ in bert().named_parameters()]
    assert [name for name, _ in model.wrapped.named_parameters()] == names
    assert not any(p.requires_grad for p in model.wrapped.parameters())
    loss_of(move(model))
    state = model.wrapped.state_dict()
    assert torch.equal(state["classifier.weight"], model.classifier.weight)
    assert model.num_labels == 2
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = model.nothing_of_the_kind
    parameters = inspect.signature(model.forward).parameters
    assert "input_ids" in parameters and "self" not in parameters
    assert "labels" in inspect.signature(type(model).forward).parameters


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
            use_cpu=subspace_models.DEVICE.type == "cpu",
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
    base = copy.deepcopy(whole.model.wrapped.state_dict())
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
