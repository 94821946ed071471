"""Two processes train as one does on the whole batch, by DistributedDataParallel, Accelerate,
Trainer and fully_shard: distributed_worker.py runs in both, once, and the tests here compare.

Bounds. theta's gradient is P^T g, each entry a sum of D terms that processes add in another order:
that moves it by at most D eps ||g||, as the columns of P have unit length, and all d entries by
sqrt(d) D eps ||g||. ||P^T g|| is about sqrt(d / D) ||g||, so D^1.5 eps of it is allowed; the sums
inside the model are shorter. Five steps of SGD at a rate below 1 / curvature, which is checked, at
most double an error each.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)

import distributed_models as models
from subspace_models import SMALL, bert, move, wrap

from fastfood.subspace import SubspaceModel

pytestmark = pytest.mark.filterwarnings("ignore")


def in_both(folder, *backend):
    """Runs both processes and returns the results of each."""
    here = Path(__file__).parent
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(here.parents[1]), str(here.parent / "fixtures")]),
    }
    launch = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    script = ["--nproc-per-node", "2", str(here / "distributed_worker.py"), str(folder), *backend]
    done = subprocess.run(
        launch + script, env=environment, cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The results of both processes, and the folder they worked in."""
    folder = tmp_path_factory.mktemp("distributed")
    return in_both(folder), folder


@pytest.fixture(scope="module")
def results(both):
    return both[0]


def bound(D):
    return D**1.5 * torch.finfo(torch.float64).eps


def relative(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


def check(results, model, get):
    """Checks that get(result) of each process equals the gradients of a single process."""
    wanted = models.one_step(model)
    D = model.projection.D
    assert bound(D) < 2e-10 and wanted[0].norm() > 1e-6
    for result in results:
        got = get(result)
        assert len(got) == len(wanted)
        for a, b in zip(got, wanted, strict=True):
            assert relative(a, b) <= bound(D)
    for a, b in zip(get(results[0]), get(results[1]), strict=True):
        assert torch.equal(a, b)


def check_path(results, name):
    model = wrap(bert())
    alone = models.train(model)
    moves = [b - a for a, b in zip(alone["theta"], alone["theta"][1:], strict=False)]
    changes = [b - a for a, b in zip(alone["slopes"], alone["slopes"][1:], strict=False)]
    curvature = max(c.norm() / m.norm() for c, m in zip(changes, moves, strict=False))
    assert 0.01 < models.RATE * curvature < 1
    for result in results:
        for got, wanted in zip(result[name]["theta"][1:], alone["theta"][1:], strict=True):
            assert relative(got, wanted) <= 2**models.STEPS * bound(model.projection.D)
        assert relative(result[name]["lambda_"], alone["lambda_"]) <= 2**models.STEPS * bound(
            model.projection.D
        )
    first, second = (result[name]["theta"] for result in results)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# DistributedDataParallel


def test_a_ddp_step_reduces_d_numbers(results):
    model = move(wrap(bert()))
    d, D = model.subspace_config.d, model.projection.D
    buffers = 2 * SMALL["max_position_embeddings"]  # position and token type, before each forward
    for result in results:
        assert result["ddp_step"]["hooked"] == [d]
        assert sorted(result["ddp_step"]["step"]) == [("all_reduce", d), ("broadcast", buffers)]
        once = [size for name, size in result["ddp_step"]["constructing"] if name == "broadcast"]
        assert len(once) == 3 and sorted(once)[1:] == [buffers, D + d]  # and 4 bytes about names
    check(results, model, lambda result: result["ddp_step"]["gradients"])


def test_ddp_broadcasts_theta_0_once(results):
    wanted = bert().classifier.weight
    assert all(torch.equal(result["ddp_broadcasts_the_base"], wanted) for result in results)


def test_ddp_may_come_after_a_forward(results):
    check(results, move(wrap(bert())), lambda result: result["ddp_after_a_forward"])


@pytest.mark.parametrize("reentrant", [False, True])
def test_ddp_with_gradient_checkpointing(results, reentrant):
    check(results, move(wrap(bert())), lambda result: result["ddp_checkpointed"][reentrant])


def test_ddp_refuses_what_it_would_not_reduce(results):
    for result in results:
        assert "static_graph=True" in result["ddp_checkpointed"]["refused"]


def test_ddp_with_streamed_weights(results):
    check(results, move(wrap(bert())), lambda result: result["ddp_streamed"])


def test_ddp_accumulates(results):
    check(results, move(wrap(bert())), lambda result: result["ddp_accumulated"])


def test_ddp_with_frozen_and_unused_parameters(results):
    check(results, move(models.frozen()), lambda result: result["ddp_frozen_and_unused"])


def test_ddp_trains_as_one_process(results):
    check_path(results, "ddp_trained")


@pytest.mark.parametrize("name", ["accelerate", "trainer"])
def test_accelerate_and_trainer(results, name, tmp_path):
    model = wrap(bert())
    train = {"accelerate": models.accelerated, "trainer": models.by_trainer}[name]
    wanted = train(model, *([tmp_path] if name == "trainer" else []))
    assert wanted.norm() > 1e-3
    for result in results:
        assert relative(result[name], wanted) <= 2**models.STEPS * bound(model.projection.D)
    assert torch.equal(results[0][name], results[1][name])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_over_nccl_with_cuda(tmp_path):
    """The gradients and the training of one process on the CPU."""
    found = in_both(tmp_path, "nccl")
    model = move(wrap(bert()))
    for get in (
        lambda result: result["ddp_checkpointed"][False],
        lambda result: result["ddp_checkpointed"][True],
        lambda result: result["ddp_streamed"],
        lambda result: result["ddp_accumulated"],
        lambda result: result["fsdp_accumulated"]["reduced once"],
        lambda result: result["fsdp_accumulated"]["reduced twice"],
    ):
        check(found, model, get)
        model.zero_grad()
    for name, make in models.VARIANTS.items():
        wanted = move(make(models.whole))
        check(found, wanted, lambda result, name=name: result["fsdp_variants"][name])
    check_path(found, "ddp_trained")
    check_path(found, "fsdp_trained")


# fully_shard


def test_a_sharded_step_makes_each_row_once(results):
    model = move(wrap(models.uneven()))
    check(results, model, lambda result: result["fsdp_step"]["gradients"])
    D, d = model.projection.D, model.subspace_config.d
    steps = [result["fsdp_step"] for result in results]
    for kernel in ("perturb_", "project_rows_adjoint_sum"):
        counts = [step["rows"][kernel] for step in steps]
        assert sum(counts) == D and max(counts) < 0.6 * D
    for step in steps:
        assert step["rows"]["spread"] == 1
        reduced = [size for name, size in step["collectives"] if name == "all_reduce"]
        assert len(reduced) == 4 and reduced[-1] == d  # gloo scatters FSDP's 3 units so, first
        assert step["parameters"] == ["theta", "lambda_"] and not step["left"]


@pytest.mark.parametrize("name", models.VARIANTS)
def test_sharded_gradients(results, name):
    model = move(models.VARIANTS[name](models.whole))
    check(results, model, lambda result: result["fsdp_variants"][name])


@pytest.mark.parametrize("name", ["reduced once", "reduced twice"])
def test_sharded_accumulation(results, name):
    check(results, move(wrap(bert())), lambda result: result["fsdp_accumulated"][name])


def test_sharded_training_is_that_of_one_process(results):
    check_path(results, "fsdp_trained")


def test_a_gathered_root_sees_new_weights(results):
    model = wrap(bert())
    with torch.no_grad():
        before = model(input_ids=models.BATCH).logits
        after = move(model)(input_ids=models.BATCH).logits
    for result in results:
        assert torch.equal(result["fsdp_sees_changes"]["before"], before)
        assert torch.equal(result["fsdp_sees_changes"]["after"], after)
    assert not torch.equal(before, after)


def test_a_failed_backward_leaves_nothing(results):
    assert all("on purpose" in result["fsdp_after_an_error"]["error"] for result in results)
    check(results, move(wrap(bert())), lambda result: result["fsdp_after_an_error"]["gradients"])


def test_a_sharded_adapter_is_that_of_one_process(both):
    results, folder = both
    model = SubspaceModel.from_pretrained(models.uneven(), folder / "adapter")
    assert torch.equal(model.theta, move(wrap(models.uneven())).theta)
    with torch.no_grad():
        logits = model(input_ids=models.BATCH).logits
    for result in results:
        assert torch.equal(result["fsdp_saved"]["logits"], logits)
        assert torch.equal(result["fsdp_saved"]["loaded"], logits)
        assert "was trained on other base weights" in result["fsdp_saved"]["refused"]


@pytest.mark.parametrize("name", ["unload", "merge_and_unload"])
def test_taken_out_of_a_sharded_model(results, name):
    plain = dict(models.uneven().named_parameters())
    wanted = dict(getattr(move(wrap(models.uneven())), name)().named_parameters())
    assert all(torch.equal(wanted[key], plain[key]) for key in plain) == (name == "unload")
    for result in results:
        found = result["fsdp_taken_out"][name]
        assert found.keys() == wanted.keys()
        for key, (values, trains) in found.items():
            assert torch.equal(values, wanted[key]) and trains == plain[key].requires_grad


def test_sharded_in_bfloat16(results):
    """float32 rounds at random in the sum of D terms: sqrt(D) eps for each, so D eps in all."""
    D = move(wrap(bert())).projection.D
    exact = models.one_step(move(wrap(bert())))[0]
    for result in results:
        found, wanted = (result["fsdp_in_bfloat16"][name] for name in ("found", "expected"))
        assert found.dtype == torch.float32 and result["fsdp_in_bfloat16"]["types"] == [
            "torch.float32"
        ]
        assert relative(found.double(), wanted) <= D * torch.finfo(torch.float32).eps
        assert relative(found.double(), exact) > 2**-10  # so not all of it was computed in float32


def test_what_sharding_refuses(results):
    wanted = {
        "inside": "ValueError: model: wanted one cut by fully_shard itself",
        "ignored": "ValueError: parameter classifier.bias: wanted one cut by fully_shard",
        "columns": "ValueError: parameter 0.weight: wanted shards of the first dimension alone",
        "meta": "wanted loaded values, got meta",
        "streamed": "ValueError: weights: wanted 'resident' for a sharded model",
        "one block": "ValueError: projection: wanted one made in parts if sharded",
        "moved": "RuntimeError: a sharded model cannot be moved or converted",
        "d": "ValueError: d: wanted at most D",
        "twice": "ValueError: model is wrapped in a SubspaceModel already",
    }
    for result in results:
        for name, message in wanted.items():
            assert message in result["fsdp_refused"][name]
