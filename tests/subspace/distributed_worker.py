"""What each of two processes does for test_distributed.py: started by torchrun with a folder, it
runs all checks over gloo, or with "nccl" those that fit on two GPUs, and writes what they return
to <folder>/<rank>.pt."""

import os
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import subspace_models
import torch
import torch.distributed as dist
from distributed_models import (
    BATCH,
    VARIANTS,
    accelerated,
    by_trainer,
    checkpointed,
    frozen,
    gradients,
    loss,
    one_step,
    rows,
    train,
    uneven,
)
from subspace_models import bert, move, wrap
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import profile
from torch.utils._pytree import tree_map_only

from fastfood import ops
from fastfood.projection import Fastfood
from fastfood.subspace import SubspaceModel

CHECKS = []
ON_GPUS = (
    "ddp_checkpointed",
    "ddp_streamed",
    "ddp_accumulated",
    "ddp_trained",
    "fsdp_variants",
    "fsdp_accumulated",
    "fsdp_trained",
)


def check(function):
    CHECKS.append(function)
    return function


def main(folder, backend="gloo"):
    checks = CHECKS
    if backend == "nccl":
        rank = int(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(rank)
        subspace_models.DEVICE = torch.device("cuda", rank)
        checks = [function for function in CHECKS if function.__name__ in ON_GPUS]
    dist.init_process_group(backend)
    results = {function.__name__: function(Path(folder)) for function in checks}
    results = tree_map_only(torch.Tensor, torch.Tensor.cpu, results)
    torch.save(results, Path(folder) / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


def in_halves(model, wrapper, context):
    """A step of two backwards, each of one row."""
    first, second = rows()[:1], rows()[1:]
    with context:
        (loss(wrapper, first) / 2).backward()
    (loss(wrapper, second) / 2).backward()
    return gradients(model)


@contextmanager
def collectives():
    """A list to which each collective that starts in the body adds (name, size)."""
    found = []
    with profile(record_shapes=True) as profiled:
        yield found
    for event in profiled.events():
        if event.name.startswith("gloo:"):
            size = torch.Size(event.input_shapes[0]).numel()
            found.append((event.name.removeprefix("gloo:"), size))


def error_of(call):
    try:
        call()
    except (RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


# DistributedDataParallel


@check
def ddp_step(folder):
    model, hooked = move(wrap(bert())), []

    def count(state, bucket):
        hooked.append(bucket.buffer().numel())
        return allreduce_hook(state, bucket)

    with collectives() as constructing:
        ddp = DistributedDataParallel(model)
    ddp.register_comm_hook(None, count)
    with collectives() as step:
        found = one_step(model, ddp)
    return {"gradients": found, "hooked": hooked, "constructing": constructing, "step": step}


@check
def ddp_broadcasts_the_base(folder):
    model = bert()
    if dist.get_rank() == 1:
        nn.init.normal_(model.classifier.weight)
    model = wrap(model)
    DistributedDataParallel(model)
    return model.wrapped.classifier.weight.detach().clone()


@check
def ddp_after_a_forward(folder):
    model = move(wrap(bert()))
    model.refresh()
    ddp = DistributedDataParallel(model)
    model.refresh()
    return one_step(model, ddp)


@check
def ddp_checkpointed(folder):
    found = {}
    for reentrant, options in ((False, {}), (True, {"static_graph": True})):
        model = checkpointed(move(wrap(bert())), use_reentrant=reentrant)
        ddp = DistributedDataParallel(model, **options)
        one_step(model, ddp)
        model.zero_grad()
        found[reentrant] = one_step(model, ddp)
    model = checkpointed(move(wrap(bert())), use_reentrant=True)
    ddp = DistributedDataParallel(model)
    return {**found, "refused": error_of(lambda: one_step(model, ddp))}


@check
def ddp_streamed(folder):
    model = wrap(bert(), weights="streamed")
    return one_step(move(model), DistributedDataParallel(model))


@check
def ddp_accumulated(folder):
    model = move(wrap(bert()))
    ddp = DistributedDataParallel(model)
    return in_halves(model, ddp, ddp.no_sync())


@check
def ddp_trained(folder):
    model = wrap(bert())
    return train(model, DistributedDataParallel(model))


@check
def ddp_frozen_and_unused(folder):
    model = move(frozen())
    return one_step(model, DistributedDataParallel(model))


@check
def accelerate(folder):
    return accelerated(wrap(bert()))


@check
def trainer(folder):
    return by_trainer(wrap(bert()), folder / "trainer")


# fully_shard


def shard(model, only_inside=False, copies=False, **options):
    mesh = (2, 1) if copies else (1, 2)
    kind = subspace_models.DEVICE.type
    mesh = init_device_mesh(kind, mesh, mesh_dim_names=("copies", "shards"))
    options["mesh"] = mesh if copies else mesh["shards"]
    for module in model.modules():
        if type(module).__name__ in ("BertLayer", "T5Block"):
            fully_shard(module, **options)
    return model if only_inside else fully_shard(model, **options)


@contextmanager
def counted_rows():
    """Counts the rows that are projected and adjoined in the body, and the calls of `spread`."""
    places = {"perturb_": ops, "project_rows_adjoint_sum": ops, "spread": Fastfood}
    plain = {name: getattr(place, name) for name, place in places.items()}
    numbers = dict.fromkeys(plain, 0)

    def counting(name):
        def call(first, *rest):
            if isinstance(first, torch.Tensor):
                numbers[name] += len(first)
            else:  # calls of `spread` are counted, and the rows of several tensors
                numbers[name] += 1 if isinstance(first, Fastfood) else sum(map(len, first))
            return plain[name](first, *rest)

        return call

    try:
        for name, place in places.items():
            setattr(place, name, counting(name))
        yield numbers
    finally:
        for name, place in places.items():
            setattr(place, name, plain[name])


@check
def fsdp_step(folder):
    model = move(wrap(shard(uneven())))
    with counted_rows() as numbers, collectives() as step:
        found = one_step(model)
    return {
        "gradients": found,
        "rows": numbers,
        "collectives": step,
        "parameters": [name for name, _ in model.named_parameters()],
        "left": [name for name, p in model.wrapped.named_parameters() if p.grad is not None],
    }


@check
def fsdp_variants(folder):
    return {name: one_step(move(make(shard))) for name, make in VARIANTS.items()}


@check
def fsdp_accumulated(folder):
    model = move(wrap(shard(bert())))
    twice = in_halves(model, model, nullcontext())
    model.zero_grad()
    once = in_halves(model, model, unsynchronized(model))
    return {"reduced once": once, "reduced twice": twice}


@contextmanager
def unsynchronized(model):
    model.set_requires_gradient_sync(False)
    yield
    model.set_requires_gradient_sync(True)


@check
def fsdp_trained(folder):
    return train(wrap(shard(bert())))


@check
def fsdp_sees_changes(folder):
    model = wrap(shard(bert()))
    with torch.no_grad():
        before = model(input_ids=BATCH).logits  # leaves the root module's weights gathered
        move(model)
        after = model(input_ids=BATCH).logits
    return {"before": before, "after": after}


@check
def fsdp_after_an_error(folder):
    model = move(wrap(shard(bert())))

    def fail(grad):
        raise RuntimeError("on purpose")

    embeddings = model.bert.embeddings
    hook = embeddings.register_forward_hook(lambda module, args, y: y.register_hook(fail) and None)
    error = error_of(lambda: one_step(model))
    hook.remove()
    model.wrapped.zero_grad()  # FSDP kept gradients of the root module
    model.reset_iter_state()
    return {"error": error, "gradients": one_step(model)}


@check
def fsdp_saved(folder):
    model = move(wrap(shard(uneven())))
    model.save_pretrained(folder / "adapter", dtype=torch.float64)
    loaded = SubspaceModel.from_pretrained(shard(uneven()), folder / "adapter")
    other = uneven()
    nn.init.zeros_(other.classifier.weight)
    with torch.no_grad():
        return {
            "logits": model(input_ids=BATCH).logits,
            "loaded": loaded(input_ids=BATCH).logits,
            "refused": error_of(
                lambda: SubspaceModel.from_pretrained(shard(other), folder / "adapter")
            ),
        }


@check
def fsdp_taken_out(folder):
    found = {}
    for name in ("unload", "merge_and_unload"):
        model = move(wrap(shard(uneven())))
        model.refresh()
        plain = getattr(model, name)()
        assert not any(p._post_accumulate_grad_hooks for p in plain.parameters())
        found[name] = {
            key: (p.full_tensor().detach(), p.requires_grad) for key, p in plain.named_parameters()
        }
    return found


@check
def fsdp_in_bfloat16(folder):
    """A subspace's gradients, and those from the plain model's own in the same precision."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = move(wrap(shard(bert().float(), mp_policy=policy)))
    found = one_step(model)
    P = model.projection.to_dense(torch.float64)
    lambda_ = model.lambda_.detach().double()
    groups = [(s.numel, s.group) for s in model.segments]
    plain = model.merge_and_unload()
    loss(plain, rows()).backward()
    g = torch.cat([p.grad.full_tensor().reshape(-1) for p in plain.parameters()]).double()
    scales = torch.cat([lambda_[group].expand(n) for n, group in groups])
    types = sorted({str(p.dtype) for p in plain.parameters()})
    return {"found": found[0], "expected": P.T @ (scales * g), "types": types}


@check
def fsdp_refused(folder):
    mesh = init_device_mesh("cpu", (2,))

    def ignoring():
        model = bert()
        return fully_shard(model, mesh=mesh, ignored_params={model.classifier.bias})

    def by_columns():
        model = nn.Sequential(nn.Linear(4, 4, bias=False))
        return fully_shard(model, mesh=mesh, shard_placement_fn=lambda p: Shard(1))

    return {
        "inside": error_of(lambda: wrap(shard(bert(), only_inside=True))),
        "ignored": error_of(lambda: wrap(ignoring())),
        "columns": error_of(lambda: wrap(by_columns(), d=5)),
        "meta": error_of(lambda: wrap(shard(bert().to("meta")))),
        "streamed": error_of(lambda: wrap(shard(bert()), weights="streamed")),
        "one block": error_of(lambda: wrap(shard(bert()), projection="one-block")),
        "moved": error_of(lambda: wrap(shard(bert())).half()),
        "d": error_of(lambda: wrap(shard(bert()), d=10**6)),
        "twice": error_of(lambda: wrap(wrap(shard(bert())).wrapped)),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
