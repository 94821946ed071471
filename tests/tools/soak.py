"""Whether memory grows: each kind of work is repeated thousands of times, and after a warm-up the
process must neither get larger nor hold more tensors or objects. Prints a Markdown table; ends with
status 1 where something grew. `make soak` runs it in full, the suite a short form of it."""

import argparse
import gc
import resource
import sys
import tempfile
import time
from array import array
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import fastfood
from fastfood.subspace import SubspaceConfig, get_subspace_model

STEPS = 10_000
PARTS = 6  # the steps are divided into so many parts; memory is measured after each
# Bytes by which a process grows and shrinks without any leak.
NOISE = 1 << 20


class Held(NamedTuple):
    """What a process holds at one moment."""

    bytes: int  # of resident memory
    tensors: int
    objects: int  # Python objects that the garbage collector tracks


class Growth(NamedTuple):
    """By how much a process grew during `steps` calls after the warm-up."""

    steps: int
    seconds: float
    bytes: int
    tensors: int
    objects: int

    def faults(self) -> list[str]:
        faults = [f"{self.bytes} bytes"] if self.bytes > NOISE else []
        faults += [f"{self.tensors} tensors"] if self.tensors > 0 else []
        # a cache may be filled late, so one object is allowed; one in a hundred steps is a leak
        leaked = self.objects > 1 + self.steps // 100
        return faults + ([f"{self.objects} objects"] if leaked else [])


def held() -> Held:
    gc.collect()
    objects = gc.get_objects()
    # isinstance would look at __class__, which makes lazy modules of torch import themselves
    tensors = sum(issubclass(type(x), torch.Tensor) for x in objects)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Held(pages * resource.getpagesize(), tensors, len(objects))


def growth(work, steps: int) -> Growth:
    """Measures `steps` calls of work(), after a fifth as many calls as a warm-up."""
    for _ in range(max(10, steps // 5)):
        work()
    began, looks = time.perf_counter(), array("q", held())  # an array: its entries are no objects
    for _ in range(PARTS):
        for _ in range(steps // PARTS):
            work()
        looks.extend(held())
    kinds, half = len(Held._fields), PARTS // 2
    # The smallest of each half are compared, because memory that is freed later is no leak.
    grown = [
        min(looks[kinds * (half + 1) + i :: kinds]) - min(looks[i : kinds * (half + 1) : kinds])
        for i in range(kinds)
    ]
    return Growth(steps, time.perf_counter() - began, *grown)


# --- Work ----------------------------------------------------------------------------------------


def plain_torch():
    layer, x = nn.Linear(64, 64), torch.randn(8, 64)
    return lambda: layer(x).square().sum().backward()


def transform():
    x = torch.randn(4, 1024, requires_grad=True)
    return lambda: fastfood.hadamard_transform(x, before=3).square().sum().backward()


def projection():
    P, theta = fastfood.Fastfood(50, 3000, 1), torch.randn(50, requires_grad=True)
    return lambda: P(theta).square().sum().backward()


def adjoint():
    P, g = fastfood.Fastfood(50, 3000, 1), torch.randn(3000, requires_grad=True)
    return lambda: P.adjoint(g).square().sum().backward()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))


def training(weights):
    model = get_subspace_model(network(), SubspaceConfig(d=40), weights=weights)
    optimizer = torch.optim.Adam(model._leaves(), 0.01)
    x = torch.randn(4, 8)

    def step():
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()

    return step


def adapters():
    folder = tempfile.TemporaryDirectory()
    model, x = get_subspace_model(network(), SubspaceConfig(d=40)), torch.randn(4, 8)

    def cycle(folder=folder.name):
        path = model.save_pretrained(folder)
        model.add_adapter("new", SubspaceConfig(d=30, method="did", seed=1))
        model.load_adapter(path, "loaded")
        for name in ("new", "loaded", "default"):
            model.set_adapter(name)
            model(x).square().sum().backward()
        model.delete_adapter("new")
        model.delete_adapter("loaded")

    cycle.folder = folder  # keeps the folder, which is removed when nothing refers to it
    return cycle


def record_of_trials():
    from fastfood.experiments.settings.trial import Score, Trial
    from fastfood.experiments.trials.database import sqlite_url
    from fastfood.experiments.trials.record import open_record

    folder = tempfile.TemporaryDirectory()
    url = sqlite_url(Path(folder.name) / "trials.db")

    record = open_record(url, "soak")
    given = {
        "task": "soak",
        "model_hash": "",
        "data_hash": "",
        "metric": "accuracy",
        "method": "did",
    }
    given |= {"max_steps": 1, "batch_size": 1, "warmup": 0.0, "bf16": False, "device": "cpu"}
    for seed in range(20):
        number = record.claim(Trial(**given, d=1, seed=seed, learning_rate=0.1))
        record.finish(number, Score(0.5, 0.5))
    reader = open_record(url, "soak")
    reader.folder = folder
    return reader.read


WORK = {
    # name: (function that returns one step of work, number by which its steps are divided)
    "torch alone": (plain_torch, 1),
    "transform": (transform, 1),
    "projection": (projection, 1),
    "adjoint": (adjoint, 1),
    "SAID, resident": (lambda: training("resident"), 1),
    "SAID, streamed": (lambda: training("streamed"), 1),
    "adapters": (adapters, 10),
    "record": (record_of_trials, 1),
}


def main(steps: int, names) -> int:
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # leaves out, when objects are counted, all that exist before the work
    kept = []
    if not growth(lambda: kept.append(torch.ones(1)), 10 * PARTS).faults():
        sys.exit("a leak that was made on purpose was not found")
    print("| work | steps | seconds | bytes a step | tensors | objects | |")
    print("|---|---|---|---|---|---|---|")
    failed = False
    for name in names:
        make, fewer = WORK[name]
        grown = growth(make(), max(PARTS, steps // fewer))
        faults = ", ".join(grown.faults())
        failed |= bool(faults)
        print(
            f"| {name} | {grown.steps:,} | {grown.seconds:.0f} | "
            f"{grown.bytes / grown.steps * 2:.1f} | {grown.tensors} | {grown.objects} | "
            f"{'grew by ' + faults if faults else 'ok'} |",
            flush=True,
        )
    return int(failed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("names", nargs="*", default=list(WORK), help="of the work, by default all")
    arguments = parser.parse_args()
    sys.exit(main(arguments.steps, arguments.names))
