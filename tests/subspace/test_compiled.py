"""torch.compile of a subspace model, a training step in a CUDA graph, what torch.export says."""

import warnings

import pytest
import subspace_models
import torch
from subspace_models import LABELS, Mlp, bert, ids, inputs, loss_of, mlp, move, wrap
from torch._dynamo.testing import CompileCounterWithBackend

pytestmark = pytest.mark.usefixtures("everywhere")
EACH_WAY = pytest.mark.parametrize("weights", ["resident", "streamed"])
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()


def by_wrapper(model, backend):
    return torch.compile(model, backend=backend)


def in_place(model, backend):
    model.compile(backend=backend)
    return model


def inside(model, backend):
    model.wrapped.compile(backend=backend)
    return model


@EACH_WAY
@pytest.mark.filterwarnings("ignore")
def test_compiled_training_is_the_same(weights):
    plain, model = move(wrap(mlp())), move(wrap(mlp(), weights=weights))
    compiled = torch.compile(model, backend="aot_eager")
    x = inputs(4, 5)
    for _ in range(3):
        for one in (plain, compiled):
            one.zero_grad()
            one(x).square().sum().backward()
        torch.testing.assert_close(model.theta.grad, plain.theta.grad)
        torch.testing.assert_close(model.lambda_.grad, plain.lambda_.grad)
        for one in (plain, model):
            with torch.no_grad():
                one.theta -= 0.01 * one.theta.grad


@pytest.mark.parametrize("how", [by_wrapper, in_place, inside])
def test_a_transformer_is_one_graph(how):
    """No graph for each module, and none anew for each theta."""
    plain, model = (move(wrap(bert(num_hidden_layers=3).float())) for _ in range(2))
    # what the model's own code sets in its first forward would be a reason to compile again
    plain.config.problem_type = model.config.problem_type = "single_label_classification"
    counter = CompileCounterWithBackend("aot_eager")
    compiled = how(model, counter)
    batch = {"input_ids": ids(), "labels": LABELS.to(subspace_models.DEVICE)}
    optimizers = [torch.optim.AdamW(one.parameters(), lr=0.05) for one in (plain, model)]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*recompile.*")
        for _ in range(3):
            losses = [one(**batch).loss for one in (plain, compiled)]
            for loss in losses:
                loss.backward()
            torch.testing.assert_close(*losses)
            torch.testing.assert_close(model.theta.grad, plain.theta.grad, rtol=1e-3, atol=1e-5)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    assert counter.frame_count == 1
    with torch.no_grad():
        torch.testing.assert_close(compiled(**batch).logits, plain(**batch).logits)
    assert counter.frame_count == 2


def test_streamed_weights_are_left_alone():
    counter = CompileCounterWithBackend("aot_eager")
    plain, model = (move(wrap(bert(), weights="streamed")) for _ in range(2))
    assert torch.equal(loss_of(torch.compile(model, backend=counter)), loss_of(plain))
    assert counter.frame_count == 0


@EACH_WAY
@pytest.mark.parametrize("strict", [False, True])
def test_export_says_to_merge_first(strict, weights):
    model = move(wrap(bert(), weights=weights))
    for part in (model, model.wrapped):
        with pytest.raises(Exception, match=r"call merge_and_unload\(\) first"):
            torch.export.export(part, (ids(),), strict=strict)
    logits = model.eval()(ids()).logits
    exported = torch.export.export(model.merge_and_unload(), (ids(),)).module()
    torch.testing.assert_close(exported(ids()).logits, logits)


def step(model, optimizer, x):
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    return loss.detach()


def training(weights="resident"):
    """The training of a model with small weights, a unit for each block, and a large weight."""
    torch.manual_seed(0)
    model = wrap(Mlp((400, 8, 8, 8)).to(subspace_models.DEVICE), d=40, weights=weights)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, capturable=True)
    return model, optimizer, inputs(4, 400).float()


@needs_cuda
def test_a_step_in_a_cuda_graph(everywhere):
    if everywhere.type == "cpu":
        pytest.skip("a GPU's")
    captured, eager = training(), training()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(*captured)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(*captured)
    for _ in range(3):
        step(*eager)
    for _ in range(4):
        graph.replay()
        torch.testing.assert_close(loss, step(*eager))
    torch.testing.assert_close(captured[0].theta, eager[0].theta)
    captured[0].refresh()
    with torch.no_grad():
        torch.testing.assert_close(captured[0](captured[2]), eager[0](eager[2]))


@needs_cuda
@EACH_WAY
def test_a_step_waits_for_nothing(everywhere, weights):
    if everywhere.type == "cpu":
        pytest.skip("a GPU's")
    case = training(weights)
    step(*case)
    try:
        torch.cuda.set_sync_debug_mode("error")
        step(*case)
        for _ in range(3):  # further forwards with the same theta
            case[0](case[2])
    finally:
        torch.cuda.set_sync_debug_mode("default")
