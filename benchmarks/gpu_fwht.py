"""Measures the transform on a GPU; `benchmarks/fwht.py --device cuda` runs it.

The sections, the most telling first, are small calls in CUDA graphs; the processor's time of an
eager call; 256 MB in rows of 2^1 to 2^26 in every dtype, to another tensor, in place, and with two
diagonals; and 256 MB in rows of K 2^k. Each is compared with a copy of the same bytes, and with
Dao-AILab's and HadaCore's functions if they can be imported and take the size and dtype.
"""

import functools
import importlib

import torch
from facts import environment, write
from gpu_timing import in_graphs, in_turn, of_the_processor, warm_up

import fastfood

DTYPES = ("float32", "bfloat16", "float16", "float64")
LOGS = range(1, 27)
BYTES = 1 << 28  # of input, and as many of output: several times any cache
SMALL = [(1, 128), (64, 128), (4096, 128), (1, 4096), (16, 4096), (128, 8192), (1, 16384)]
SMALL += [(1, 32768)]
EAGER = [(1, 128), (16, 4096), (1, 32768)]
ORDERS = [(12, 3072), (28, 3584), (20, 5120), (76, 9728), (40, 10240), (172, 11008), (428, 13696)]
ORDERS += [(108, 13824), (28, 14336), (148, 18944), (108, 27648), (28, 28672), (924, 29568)]
HADACORE = [  # its package, that of the kernels hub, and vLLM's copy
    ("faster_hadamard_transform", "hadamard_transform"),
    ("hadacore", "hadamard_transform"),
    ("vllm._custom_ops", "hadacore_transform"),
]
LARGEST_PEER = 1 << 15


@functools.cache
def imported(module, name):
    """The function, or None if its package cannot be imported."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except Exception:  # a package that does not fit this torch fails in its own ways
        return None


def peers(x, scale, K=1):
    """Calls of the other libraries' functions that may take x, by name."""
    calls = {}
    suffix = "" if K == 1 else f"_{K}N"
    dao = imported("fast_hadamard_transform", f"hadamard_transform{suffix}")
    if dao and x.dtype != torch.float64 and (K != 1 or x.shape[-1] <= LARGEST_PEER):
        calls["Dao"] = lambda: dao(x, scale)
    sixteen = x.dtype in (torch.float16, torch.bfloat16)
    hadacore = next(filter(None, (imported(*names) for names in HADACORE)), None)
    if hadacore and K == 1 and sixteen and x.shape[-1] <= LARGEST_PEER:
        calls["HadaCore"] = lambda: hadacore(x, False)  # not in place
    return calls


def contenders(x, K=1, new=False, diagonals=False):
    """Calls by name: a copy, ours to an existing tensor and, if `new`, to a new one, and peers."""
    n = x.shape[-1]
    scale, out, ours = n**-0.5, torch.empty_like(x), fastfood.hadamard_transform_KN
    calls = {"copy": lambda: out.copy_(x), "ours": lambda: ours(x, scale, out=out)}
    if new:
        calls["ours, new"] = lambda: ours(x, scale)
    if diagonals:
        wide = torch.promote_types(x.dtype, torch.float32)
        before, after = (torch.randn(n, device=x.device).to(wide) for _ in range(2))
        calls["ours, diagonals"] = lambda: ours(x, scale, before=before, after=after, out=out)
    return calls | peers(x, scale, K)


def in_place(x):
    """Ours in place. It comes last, because each call changes x, though not its norm."""
    scale = x.shape[-1] ** -0.5
    return {"ours, in place": lambda: fastfood.hadamard_transform_KN(x, scale, out=x)}


def random(rows, n, dtype, device):
    return torch.randn(rows, n, device=device).to(getattr(torch, dtype))


def small(device):
    for dtype in ("bfloat16", "float32"):
        for rows, n in SMALL:
            x = random(rows, n, dtype, device)
            yield {"dtype": dtype, "rows": rows, "n": n}, in_graphs(contenders(x, new=True))


def eager(device):
    for rows, n in EAGER:
        x = random(rows, n, "bfloat16", device)
        row = {"dtype": "bfloat16", "rows": rows, "n": n}
        yield row, of_the_processor(contenders(x, new=True))


def large(device, total=BYTES):
    for dtype in DTYPES:
        size = getattr(torch, dtype).itemsize
        for log_n in LOGS:
            rows = max(1, total // size >> log_n)
            x = random(rows, 1 << log_n, dtype, device)
            runs = contenders(x, diagonals=True) | in_place(x)
            yield {"dtype": dtype, "rows": rows, "n": 1 << log_n}, in_turn(runs)


def orders(device, total=BYTES):
    for dtype in ("bfloat16", "float32"):
        for K, n in ORDERS:
            rows = max(1, total // getattr(torch, dtype).itemsize // n)
            x = random(rows, n, dtype, device)
            runs = contenders(x, K) | in_place(x)
            yield {"dtype": dtype, "rows": rows, "n": n, "K": K}, in_turn(runs)


SECTIONS = {"small": small, "eager": eager, "large": large, "orders": orders}


def line(section, row, times):
    """The microseconds of a copy, and the times of the others divided by the copy's."""
    copy = times["copy"]["median"]
    others = (f"{k} {v['median'] / copy:.2f}" for k, v in times.items() if k != "copy")
    size = f"{row['rows']} x {row['n']}"
    return f"{section} {row['dtype']} {size}: copy {1e6 * copy:.2f} us | " + " | ".join(others)


def run(device, path=None, sections=SECTIONS):
    """Measures all cases; prints a line and rewrites the file after each."""
    facts, results = environment(device), []
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    warm_up()
    for section in sections:
        for row, times in SECTIONS[section](device):
            results.append({"section": section, **row, "times": times})
            print(line(section, row, times), flush=True)
            if path:
                write(path, facts, results)
