"""Compares the projection and its adjoint with the floors of writing and reading, and with peers.

    python benchmarks/projection.py [--D 22713986,124647170,355362818,7000000000]
        [--d 200,1000,10000,1000000] [--L 0] [--threads 1] [--repetitions 7]
        [--authors PATH/intrinsic.py] [--plot projection.png] [--json projection.json]
    python benchmarks/projection.py --device cuda [--authors PATH] [--json projection.json]

In its table "write" fills the output (by torch or by memset, whichever is faster), "read" sums it,
"copy" copies it; "+ base" adds the projection to base weights, in bfloat16. "Kronecker" is the same
projection in plain torch with stored B, Pi and G, by two batched matrix products per block;
"authors" is the released code of Aghajanyan et al. (`intrinsic.py` of compacter), its forward and,
in the column of the adjoint, its backward. All run in turn on the same buffers, repetition by
repetition; numbers are medians in nanoseconds per row of P, or ratios of them. "state" is what the
projection keeps in memory, "peak" how much more a forward or an adjoint takes while it runs. If D
is too large for memory, the last 2^26 rows are measured. gpu_projection.py measures on a GPU.
"""

import argparse
import ctypes
import importlib.util
import statistics
import sys
import time
import types
from pathlib import Path

import torch
from facts import environment, processor, write

import fastfood
from fastfood import ops, reference

MOST = 1 << 29  # rows, up to which all are made at once
PART = 1 << 26
PEERS_UP_TO = 1 << 25  # rows, because peers take many times as long


class Kronecker:
    """The same projection as ours, with B, Pi and G stored."""

    def __init__(self, P, device):
        self.P, self.blocks = P, -(-P.D // P.L)
        self.G = ops.normals(P.seed, ops.STREAM_G, 0, self.blocks * P.L // 8, device)
        b = 1 << P.L.bit_length() // 2
        self.left, self.right = (
            reference.hadamard_matrix(k, device).float() for k in (P.L // b, b)
        )

    def __call__(self, theta):
        x = (self.G.view(self.blocks, -1) * self.P.spread(theta)).view(
            -1, len(self.left), len(self.right)
        )
        return (self.left @ x @ self.right).view(-1)[: self.P.D]

    def adjoint(self, g):
        g = torch.nn.functional.pad(g, (0, len(self.G) - len(g)))
        y = self.left @ g.view(-1, len(self.left), len(self.right)) @ self.right
        return self.P.spread_adjoint((self.G * y.view(-1)).view(self.blocks, -1).sum(0))


def released_code(path):
    """intrinsic.py of compacter as a module, without its CUDA extension."""
    for name in ("seq2seq", "seq2seq.projections", "seq2seq.projections.fwh_cuda"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["seq2seq.projections.fwh_cuda"].fast_walsh_hadamard_transform = None
    spec = importlib.util.spec_from_file_location("intrinsic", path)
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    return code


class Authors:
    """The released code: one block of 2^ceil(log2 D) rows, everything stored."""

    def __init__(self, path, D, device):
        self.code = released_code(path)
        self.D, self.variables = D, self.code.fastfood_vars(D, device)

    def __call__(self, theta):
        return self.code.fastfood_torched(theta, self.D, self.variables)

    def adjoint(self, g):
        theta = torch.zeros(self.d, device=g.device, requires_grad=True)
        return torch.autograd.grad(self(theta), theta, g)[0]


def seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def resident(name):
    """VmRSS or VmHWM of this process in bytes, zero where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def peak(run):
    """By how many bytes the memory of this process grows while run() runs, at most."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the highest value
    except OSError:
        return float("nan")
    before = resident("VmRSS")
    run()
    return max(0, resident("VmHWM") - before)


def measure(d, D, arguments):
    """Median seconds by name, and the rows, state and peak of the case."""
    P = fastfood.Fastfood(d, D, L=arguments.L or None)
    start = 0 if D <= MOST else D - PART
    rows = D - start
    theta, out = torch.randn(d), torch.ones(rows)
    half, base = (torch.ones(rows, dtype=torch.bfloat16) for _ in range(2))
    offsets, scales = torch.tensor([0, rows]), torch.ones(1)
    runs = {
        "fill": lambda: out.fill_(1.0),
        "read": lambda: out.sum(),
        "copy": lambda: half.copy_(base),
        "forward": lambda: P.rows(theta, start, D, out=out),
        "+ base": lambda: P.perturb_(half, base, theta, offsets, scales, start),
        "adjoint": lambda: P.rows_adjoint(out, start),
        "memset": lambda: ctypes.memset(out.data_ptr(), 7, out.nbytes),
    }
    if rows == D and D <= PEERS_UP_TO:
        peer = Kronecker(P, "cpu")
        runs["Kronecker"] = lambda: peer(theta)
        runs["Kronecker, adjoint"] = lambda: peer.adjoint(out)
        if arguments.authors:
            authors = Authors(arguments.authors, D, "cpu")
            authors.d = d
            runs["authors"] = lambda: authors(theta)
            runs["authors, adjoint"] = lambda: authors.adjoint(out)
    runs["forward"]()  # makes B and Pi
    taken = max(peak(runs["forward"]), peak(runs["adjoint"]))
    times = {name: [] for name in runs}
    for repetition in range(arguments.repetitions + 1):
        for name, run in runs.items():
            if name.startswith("authors") and repetition != 1:  # minutes each
                continue
            time_taken = seconds(run)
            if repetition:
                times[name].append(time_taken)
    medians = {name: statistics.median(values) for name, values in times.items()}
    medians["write"] = min(medians["fill"], medians["memset"])
    return medians, rows, P.nbytes, taken


COLUMNS = [  # title, numerator, denominator
    ("forward / write", "forward", "write"),
    ("+ base / copy", "+ base", "copy"),
    ("adjoint / read", "adjoint", "read"),
    ("adjoint / forward", "adjoint", "forward"),
    ("Kronecker / ours", "Kronecker", "forward"),
    ("its adjoint", "Kronecker, adjoint", "adjoint"),
    ("authors / ours", "authors", "forward"),
    ("their backward", "authors, adjoint", "adjoint"),
]


def show(d, D, L, medians, rows, state, taken):
    cells = [f"{d:,}", f"{D:,}", f"2^{L.bit_length() - 1}"]
    cells += [f"{1e9 * medians[name] / rows:.2f}" for name in ("write", "forward", "adjoint")]
    for _, numerator, denominator in COLUMNS:
        known = numerator in medians
        ratio = medians[numerator] / medians[denominator] if known else 0
        cells.append((f"{ratio:.0f}" if ratio >= 20 else f"{ratio:.1f}") if known else "")
    cells += [f"{state / 1e3:,.1f}", f"{taken / 1e6:,.1f}"]
    print("| " + " | ".join(cells) + " |", flush=True)


def plot(results, path, title):
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    D = results[0][1]
    for name, color, style in (
        ("authors", "C3", "-"),
        ("Kronecker", "C2", "-"),
        ("adjoint", "C1", "-"),
        ("forward", "C0", "-"),
        ("write", "gray", "--"),
        ("read", "gray", ":"),
    ):
        points = [
            (d, 1e9 * medians[name] / rows)
            for d, size, _, medians, rows, *_ in results
            if size == D and name in medians
        ]
        if points:
            axes.plot(*zip(*points, strict=True), style, color=color, marker=".", label=name)
    axes.set(xscale="log", yscale="log", xlabel=f"d, for D = {D:,}", ylabel="ns per row of P")
    axes.set(title=title, ylim=(None, 8 * axes.get_ylim()[1]))
    axes.legend(fontsize=8, ncols=3, loc="upper center")
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--D", default="22713986,124647170,355362818,7000000000")
    parser.add_argument("--d", default="200,1000,10000,1000000")
    parser.add_argument("--L", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--authors")
    parser.add_argument("--plot")
    parser.add_argument("--json", help="also write the results to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.device == "cuda":
        import gpu_projection

        return gpu_projection.run("cuda", arguments.json, arguments.authors)
    name = processor()
    title = f"{name}, {arguments.threads} thread(s), torch {torch.__version__}"
    print(title)
    heads = ["d", "D", "L", "write, ns", "forward, ns", "adjoint, ns"]
    heads += [title for title, _, _ in COLUMNS] + ["state, KB", "peak, MB"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    results = []
    for D in map(int, arguments.D.split(",")):
        for d in map(int, arguments.d.split(",")):
            L = fastfood.Fastfood(d, D, L=arguments.L or None).L
            case = (d, D, L, *measure(d, D, arguments))
            show(*case)
            results.append(case)
    if arguments.json:
        names = ("d", "D", "L", "times", "rows", "state", "peak")
        rows = [dict(zip(names, case, strict=True)) for case in results]
        write(arguments.json, environment(), [{"section": "projection", **row} for row in rows])
    if arguments.plot:
        plot(results, arguments.plot, title)
    return None


if __name__ == "__main__":
    main()
