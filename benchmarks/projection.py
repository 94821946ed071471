"""The projection and its adjoint against the floor: writing, or reading, the same bytes.

    python benchmarks/projection.py [--D 22713986] [--d 200,1000,10000] [--threads 1] [--device cpu]

Every number is the median of interleaved repetitions in one run, on buffers that stay.
"""

import argparse
import platform
import statistics
import time

import torch

import fastfood


def seconds(run, device):
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(d, D, device, repetitions):
    """Medians in seconds: (write floor, forward, read floor, adjoint)."""
    P = fastfood.Fastfood(d, D)
    theta = torch.randn(d, device=device)
    out, base = torch.empty(D, device=device), torch.zeros(D, device=device)
    offsets, scales = torch.tensor([0, D], device=device), torch.ones(1, device=device)
    runs = [
        lambda: out.fill_(1.0),
        lambda: P.perturb_(out, base, theta, offsets, scales),
        lambda: out.sum(),
        lambda: P.adjoint(out),
    ]
    times = [[seconds(run, device) for run in runs] for _ in range(repetitions + 1)][1:]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--D", type=int, default=22_713_986)
    parser.add_argument("--d", default="200,1000,10000")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repetitions", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    print(f"{name or platform.machine()}, {arguments.threads} thread(s), torch {torch.__version__}")
    print("| d | D | forward, ms | x fill | adjoint, ms | x sum |")
    print("|---|---|---|---|---|---|")
    for d in map(int, arguments.d.split(",")):
        write, forward, read, adjoint = measure(d, arguments.D, device, arguments.repetitions)
        print(
            f"| {d} | {arguments.D} | {1e3 * forward:.1f} | {forward / write:.1f} "
            f"| {1e3 * adjoint:.1f} | {adjoint / read:.1f} |"
        )


if __name__ == "__main__":
    main()
