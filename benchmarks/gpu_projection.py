"""Measures the projection on a GPU; `benchmarks/projection.py --device cuda` runs it.

For each block length L it compares the forward in float32 with a fill of the same bytes, the
forward on a base in bfloat16, cut into as many segments as RoBERTa-large has tensors, with a copy,
and the adjoint in both dtypes with a read. There are as many rows as that model has parameters. At
one L it also measures the projection in plain torch (Kronecker) and, if --authors names it, the
authors' code.
"""

import torch
from facts import environment, write
from gpu_timing import in_turn, of_the_processor, warm_up

import fastfood
from fastfood import ops

D = 355_362_818  # RoBERTa-large
SEGMENTS = 390  # its tensors
LOGS = (
    10,
    8,
    12,
    14,
    16,
    9,
    11,
    13,
    15,
    18,
    20,
    22,
    24,
)  # the most important first


def cuts(rows, device):
    """Offsets of SEGMENTS ranges of random lengths, few of which are aligned, as in a model."""
    generator = torch.Generator().manual_seed(0)
    inner = torch.randint(1, rows, (SEGMENTS - 1,), generator=generator)
    return torch.cat([torch.tensor([0]), inner.sort().values, torch.tensor([rows])]).to(device)


def contenders(P, device):
    """Our calls, and the floors that they are compared with, by name."""
    theta = torch.randn(P.d, device=device)
    g, out = torch.randn(P.D, device=device), torch.empty(P.D, device=device)
    base = torch.randn(P.D, device=device).bfloat16()
    narrow, g16 = torch.empty_like(base), g.bfloat16()
    offsets, scales = cuts(P.D, device), torch.randn(SEGMENTS, device=device)
    return {
        "fill": lambda: out.fill_(1.0),
        "read": lambda: g.sum(),
        "copy, bf16": lambda: narrow.copy_(base),
        "read, bf16": lambda: g16.sum(),
        "forward": lambda: P.rows(theta, 0, P.D, out=out),
        "forward, bf16": lambda: P.rows(theta, 0, P.D, out=narrow),
        "on a base, bf16": lambda: P.perturb_(narrow, base, theta, offsets, scales),
        "adjoint": lambda: P.rows_adjoint(g, 0),
        "adjoint, bf16": lambda: P.rows_adjoint(g16, 0),
    }


def peers(P, device, authors):
    """Calls of the peers of projection.py, which store B, Pi and G, by name."""
    from projection import Authors, Kronecker

    theta, g = torch.randn(P.d, device=device), torch.randn(P.D, device=device)
    kronecker = Kronecker(P, device)
    calls = {
        "Kronecker": lambda: kronecker(theta),
        "Kronecker, adjoint": lambda: kronecker.adjoint(g),
    }
    if authors:
        released = Authors(authors, P.D, device)
        released.d = P.d
        calls["authors"] = lambda: released(theta)
        calls["authors, adjoint"] = lambda: released.adjoint(g)
    return calls


def pieces(device, count=16):
    """The adjoint of a layer's gradients in one call, to measure the processor's time."""
    gs = [torch.randn(4096, device=device).bfloat16() for _ in range(count)]
    starts, factors = range(0, 5000 * count, 5000), [1.0] * count
    return {"ours": lambda: ops.project_rows_adjoint_sum(gs, starts, factors, 1024, 7)}


def line(row, times):
    ratios = [("forward", "fill"), ("on a base, bf16", "copy, bf16"), ("adjoint", "read")]
    ratios += [("adjoint, bf16", "read, bf16")]
    cells = [f"{a} / {b} {times[a]['median'] / times[b]['median']:.2f}" for a, b in ratios]
    forward = 1e6 * times["forward"]["median"]
    return f"L = 2^{row['L'].bit_length() - 1}: forward {forward:.0f} us | " + " | ".join(cells)


def run(device, path=None, authors=None, rows=D, logs=LOGS, d=200):
    """Measures all cases; prints a line and rewrites the file after each."""
    facts, results = environment(device), []
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    warm_up()
    for log_L in logs:
        P = fastfood.Fastfood(d, rows, L=1 << log_L)
        times = in_turn(contenders(P, device))
        row = {"section": "projection", "d": d, "D": rows, "L": P.L}
        results.append({**row, "times": times})
        print(line(row, times), flush=True)
        if path:
            write(path, facts, results)
    times = of_the_processor(pieces(device))
    results.append({"section": "pieces", "count": 16, "L": 1024, "times": times})
    print(f"adjoint of 16 pieces, of the processor: {1e6 * times['ours']['median']:.0f} us")
    P = fastfood.Fastfood(d, rows, L=1 << min(logs, key=lambda log_L: abs(log_L - 10)))
    times = in_turn(peers(P, device, authors), repetitions=3)
    results.append({"section": "peers", "d": d, "D": rows, "L": P.L, "times": times})
    for name, time in times.items():
        print(f"{name}: {1e6 * time['median']:.0f} us", flush=True)
    if path:
        write(path, facts, results)
