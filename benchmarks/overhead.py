"""Measures what a training step costs besides arithmetic, in RoBERTa-large's 24 layers at hidden
size 16, where calling operators is all that takes time.

    python benchmarks/overhead.py [--device cpu] [--repetitions 7] [--json FILE]

On a GPU a step cannot be faster than the processor launches it. That share of the processor can be
measured without a GPU. The batch is 2 x 8, with one thread and AdamW. Milliseconds of forward,
backward and optimizer are medians over steps, for which the methods take turns. From torch's
profiler, "fastfood" counts calls of this library's operators in a step, "operators" calls of all
operators, "launches" a GPU's kernels and copies. Matrices are streamed as at their full size.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from facts import environment, write
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import fastfood
import fastfood.units

SHAPE = transformers.RobertaConfig(
    vocab_size=1000,
    hidden_size=16,
    num_hidden_layers=24,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=514,
    type_vocab_size=1,
)
METHODS = ("full", "full-fused", "did-resident", "said-resident", "did-streamed", "said-streamed")
PHASES = ("forward", "backward", "optimizer")
IN_A_ROW = 8  # steps of a method before the next one's turn


class Case:
    """A method's model, batch and optimizer."""

    def __init__(self, method, device):
        torch.manual_seed(0)
        model = transformers.RobertaForSequenceClassification(SHAPE).to(device).train()
        form, _, weights = method.partition("-")
        if form != "full":
            config = fastfood.SubspaceConfig(d=1000, method=form)
            model = fastfood.get_subspace_model(model, config, weights=weights)
        ids = torch.randint(5, SHAPE.vocab_size, (2, 8), device=device)
        self.batch = {"input_ids": ids, "labels": ids[:, 0] % 2}
        trained = [p for p in model.parameters() if p.requires_grad]
        fused = True if method == "full-fused" or device.type == "cuda" else None
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=fused)
        self.model, self.device = model, device

    def step(self):
        """Seconds of each phase."""
        times = [self._now()]
        loss = self.model(**self.batch).loss
        times.append(self._now())
        loss.backward()
        times.append(self._now())
        self.optimizer.step()
        self.optimizer.zero_grad()
        times.append(self._now())
        return [after - before for before, after in zip(times, times[1:], strict=False)]

    def _now(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def of_the_gpu(events):
    """A profile's kernels, copies and fills, without the named ranges that cover some of them."""
    return [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]


def gpu_work(run):
    """The seconds that the kernels and copies of one call take, and how many there are."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run()
        torch.cuda.synchronize()
    events = of_the_gpu(profiled.events())
    microseconds = sum(event.time_range.elapsed_us() for event in events)
    return {"busy": 1e-6 * microseconds, "launches": len(events)}


def count(case):
    """Calls in one step: of this library's operators, of all operators, and launches on the GPU."""
    kinds = [ProfilerActivity.CPU]
    kinds += [ProfilerActivity.CUDA] if case.device.type == "cuda" else []
    with profile(activities=kinds) as profiled:
        case.step()
    events = profiled.events()
    names = [e.name for e in events if e.device_type == DeviceType.CPU]
    return {
        "fastfood": sum(name.startswith("fastfood::") for name in names),
        "operators": sum("::" in name and " " not in name for name in names),
        "launches": len(of_the_gpu(events)),
    }


def measure(device, repetitions):
    """A row for each method."""
    cases = {method: Case(method, device) for method in METHODS}
    times = {method: [] for method in METHODS}
    for _ in range(repetitions):
        for method, case in cases.items():
            (
                case.step(),
                case.step(),
            )  # brings its code back into the caches
            times[method] += [case.step() for _ in range(IN_A_ROW)]
    rows = []
    for method, case in cases.items():
        phases = [1e3 * statistics.median(phase) for phase in zip(*times[method], strict=True)]
        whole = 1e3 * statistics.median(map(sum, times[method]))
        rows.append({"method": method, **dict(zip(PHASES, phases, strict=True)), "step": whole})
        rows[-1] |= count(case)
    return rows


def print_table(rows):
    full = min(row["step"] for row in rows if row["method"].startswith("full"))
    columns = ["method", *PHASES, "step", "/ full", "fastfood", "operators", "launches"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for row in rows:
        cells = [f"{row[name]:.1f}" for name in (*PHASES, "step")]
        cells += [f"{row['step'] / full:.2f}", *(f"{row[name]:,}" for name in columns[-3:])]
        print("| " + " | ".join([row["method"].replace("-", ", "), *cells]) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fastfood.units.SMALL = 256  # entries: the matrices have as many or more, the vectors less
    rows = measure(torch.device(arguments.device), arguments.repetitions)
    print_table(rows)
    if arguments.json:
        write(arguments.json, environment(arguments.device), rows)


if __name__ == "__main__":
    sys.exit(main())
