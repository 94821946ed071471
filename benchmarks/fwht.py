"""The Walsh-Hadamard transform against the floor of moving the same bytes, and against its peers.

    python benchmarks/fwht.py [--ffht PATH/libffht.so] [--dtype float32] [--threads 1]
        [--logs 4-26] [--cold] [--plot fwht.png] [--json fwht.json]
    python benchmarks/fwht.py --device cuda [--json fwht.json]

It prints one table, for rows in a cache, single long rows, and rows in memory. "ours" is the public
function in place; "rmw" reads, changes and writes the same bytes in place, "copy" copies them
elsewhere. The peers are FFHT, whose shared library --ffht names (a loop in C calls it for one row
after the other), and two batched matrix products with H_a (x) H_b = H_n in torch. All run in turn,
repetition by repetition; numbers are medians. With --cold a large array is read before every run.
gpu_fwht.py has the sections and peers for a GPU.
"""

import argparse
import ctypes
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from facts import environment, processor, write

import fastfood
from fastfood import reference

LOOP = """
void loop(int (*f)(float *, int), float *x, long rows, int log_n) {
  for (long i = 0; i < rows; ++i) f(x + (i << log_n), log_n);
}
"""


def ffht_rows(path):
    """FFHT's transform of all rows of a contiguous float32 tensor, in place."""
    folder = Path(tempfile.mkdtemp())
    (folder / "loop.c").write_text(LOOP)
    command = ["cc", "-O2", "-shared", "-fPIC", folder / "loop.c", "-o", folder / "loop.so"]
    subprocess.run(command, check=True)
    loop, fht = ctypes.CDLL(folder / "loop.so").loop, ctypes.CDLL(path).fht_float

    def run(x):
        rows, n = x.shape
        pointer = ctypes.c_void_p(x.data_ptr())
        loop(fht, pointer, ctypes.c_long(rows), ctypes.c_int(n.bit_length() - 1))

    return run


def kronecker(n, dtype):
    """The transform of rows as a x b matrices X: H_a X H_b."""
    b = 1 << n.bit_length() // 2
    left, right = (reference.hadamard_matrix(k).to(dtype) for k in (n // b, b))
    return lambda x: (left @ x.view(-1, n // b, b) @ right).view_as(x)


def copier():
    """A function that copies x to a buffer, which it keeps for the next call."""
    buffers = {}

    def run(x):
        if x.shape not in buffers:
            buffers[x.shape] = torch.empty_like(x)
        buffers[x.shape].copy_(x)

    return run


def contenders(n, arguments):
    """The functions of x to compare, by name, ours first."""
    dtype, scale = getattr(torch, arguments.dtype), n**-0.5
    runs = {
        "ours": lambda x: fastfood.hadamard_transform_KN(x, scale, out=x),
        "rmw": lambda x: x.neg_(),
        "copy": copier(),
    }
    if n & (n - 1):
        return runs
    if n <= 1 << 14 and dtype == torch.float32:
        runs["matmul"] = kronecker(n, dtype)
    if arguments.ffht and dtype == torch.float32:
        runs["FFHT"] = ffht_rows(arguments.ffht)
    return runs


def seconds(run, x, calls):
    """Seconds of one call, the mean of `calls` calls in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        run(x)
    return (time.perf_counter() - start) / calls


def measure(rows, n, arguments):
    """The median seconds of a call of each function, by name."""
    x = torch.randn(rows, n).to(getattr(torch, arguments.dtype))
    flush = torch.zeros(1 << 26 if arguments.cold else 1)
    runs = contenders(n, arguments)
    calls = 1 if arguments.cold else max(1, (1 << 22) // x.numel())
    times = {name: [] for name in runs}
    for repetition in range(arguments.repetitions + 1):
        for name, run in runs.items():
            x.normal_()  # values of unscaled peers would overflow after some calls
            flush.add_(1)
            time_taken = seconds(run, x, calls)
            if repetition:
                times[name].append(time_taken)
    return {name: statistics.median(values) for name, values in times.items()}


def cases(arguments):
    """(kind, rows, n): rows that fill half a MB, longer ones alone, and rows that fill memory."""
    yield "call", 1, 16  # so small that it measures the call alone
    low, high = map(int, arguments.logs.split("-"))
    cache, memory = 1 << 17, 1 << 26
    for log_n in range(low, high + 1):
        yield ("cache" if log_n < 17 else "one row"), max(1, cache >> log_n), 1 << log_n
    for log_n in range(max(low, 6), min(high, 15) + 1):
        yield "memory", memory >> log_n, 1 << log_n
    for n in (3584, 11008, 13696, 14336, 29568):
        yield "K 2^k", memory // n, n


def show(results):
    names = [name for name in ("rmw", "copy", "matmul", "FFHT")]
    names = [name for name in names if any(name in times for _, _, _, times in results)]
    heads = [f"{name} / ours" for name in names]
    if "FFHT" in names:
        heads.append("FFHT / (ours - call)")
    print("| rows | n | ours, ns/entry | " + " | ".join(heads) + " |")
    print("|" + "---|" * (3 + len(heads)))
    call = results[0][-1]["ours"]
    for kind, rows, n, times in results:
        ours = times["ours"]
        ratios = [f"{times[name] / ours:.2f}" if name in times else "" for name in names]
        if "FFHT" in names:
            alone = "FFHT" in times and kind != "call"
            ratios.append(f"{times['FFHT'] / (ours - call):.2f}" if alone else "")
        entry = f"{1e9 * ours / rows / n:.3f}"
        size = n if n & (n - 1) else f"2^{n.bit_length() - 1}"
        print(f"| {kind} | {size} | {entry} | " + " | ".join(ratios) + " |")


def plot(results, path, title):
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for kind, style in (("cache", "-"), ("one row", "-"), ("memory", "--")):
        for name, color in (("rmw", "gray"), ("matmul", "C2"), ("FFHT", "C0")):
            points = [(n, t[name] / t["ours"]) for k, _, n, t in results if k == kind and name in t]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=color, label=f"{name}, {kind}")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="n", ylabel="time / time of ours", title=title)
    axes.set_xscale("log", base=2)
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ffht")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--logs", default="4-26")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--plot")
    parser.add_argument("--json", help="also write the results to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.device == "cuda":
        import gpu_fwht

        return gpu_fwht.run("cuda", arguments.json)
    title = f"{processor()}, {arguments.threads} thread(s), {arguments.dtype}"
    title += f", torch {torch.__version__}"
    print(title)
    results = [(*case, measure(*case[1:], arguments)) for case in cases(arguments)]
    show(results)
    if arguments.json:
        names = ("section", "rows", "n", "times")
        rows = [dict(zip(names, result, strict=True)) for result in results]
        write(arguments.json, environment(), [{"dtype": arguments.dtype, **row} for row in rows])
    if arguments.plot:
        plot(results, arguments.plot, title)
    return None


if __name__ == "__main__":
    main()
