"""Prints the Markdown tables of the pages from the results of `make gpu`:

    python benchmarks/gpu_tables.py build/gpu/gpu.json

Ratios are medians divided by the median of the floor in the same row, so less is better, and one is
as fast as the floor.
"""

import argparse
import json
from pathlib import Path

SECTION = "section"
FACTS = ("gpu", "memory", "driver", "cuda", "torch", "python", "fastfood", "commit", "date")
LARGE = {"ours": "ours", "ours, in place": "in place", "ours, diagonals": "two diagonals"}
PEERS = {"Dao": "Dao-AILab", "HadaCore": "HadaCore"}


def table(heads, rows):
    return ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)] + [
        "| " + " | ".join(row) + " |" for row in rows
    ]


def size(n):
    return str(n) if n & (n - 1) else f"2^{n.bit_length() - 1}"


def microseconds(times, name):
    return f"{1e6 * times[name]['median']:.2f}" if name in times else ""


def ratio(times, name, floor="copy"):
    if name not in times or floor not in times:
        return ""
    value = times[name]["median"] / times[floor]["median"]
    return f"{value:.0f}" if value >= 20 else f"{value:.2f}"


def known(results, names):
    """The columns that some row has, because not every machine has the peers."""
    return {key: head for key, head in names.items() if any(key in r["times"] for r in results)}


def large_table(results, dtype):
    rows = [r for r in results if r["dtype"] == dtype]
    columns = known(rows, LARGE | PEERS)
    cells = [
        [size(r["n"]), microseconds(r["times"], "copy"), *(ratio(r["times"], k) for k in columns)]
        for r in rows
    ]
    heads = ["n", "copy, us", *(f"{head} / copy" for head in columns.values())]
    return [f"{dtype}, rows of n that fill 256 MB, to as many", "", *table(heads, cells), ""]


def orders_table(results):
    columns = known(results, LARGE | PEERS)
    cells = [
        [r["dtype"], str(r["n"]), str(r["K"]), *(ratio(r["times"], name) for name in columns)]
        for r in results
    ]
    heads = ["dtype", "n", "K", *(f"{head} / copy" for head in columns.values())]
    return ["Rows of K 2^k that fill 256 MB", "", *table(heads, cells), ""]


def calls_table(results, title):
    """A table of small calls in microseconds."""
    columns = known(results, {"copy": "copy", "ours": "ours, out=", "ours, new": "ours"} | PEERS)
    cells = [
        [r["dtype"], f"{r['rows']} x {r['n']}", *(microseconds(r["times"], k) for k in columns)]
        for r in results
    ]
    return [title, "", *table(["dtype", "size", *columns.values()], cells), ""]


PROJECTION = [
    ("forward", "fill"),
    ("on a base, bf16", "copy, bf16"),
    ("adjoint", "read"),
    ("adjoint, bf16", "read, bf16"),
]


def projection_table(results):
    results = sorted(results, key=lambda r: r["L"])
    timed = ("forward", "on a base, bf16", "adjoint")
    cells = [
        [size(r["L"]), *(microseconds(r["times"], name) for name in timed)]
        + [ratio(r["times"], name, floor) for name, floor in PROJECTION]
        for r in results
    ]
    heads = ["L", *(f"{name}, us" for name in timed), *(f"{a} / {b}" for a, b in PROJECTION)]
    return [f"The projection to D = {results[0]['D']:,}", "", *table(heads, cells), ""]


def peers_table(results):
    cells = [
        [name, size(r["L"]), f"{1e6 * time['median']:.0f}"]
        for r in results
        for name, time in r["times"].items()
    ]
    return ["The projection by others", "", *table(["what", "L", "us"], cells), ""]


def pieces_table(results):
    for r in results:
        taken = microseconds(r["times"], "ours")
        yield f"The adjoint of {r['count']} gradients at once takes {taken} us of the processor."
        yield ""


def fwht_tables(results):
    of = {name: [r for r in results if r[SECTION] == name] for name in ("small", "eager")}
    if of["small"]:
        yield from calls_table(of["small"], "A call among many in a CUDA graph, microseconds")
    if of["eager"]:
        yield from calls_table(of["eager"], "The processor's time of an eager call, microseconds")
    large = [r for r in results if r[SECTION] == "large"]
    for dtype in dict.fromkeys(r["dtype"] for r in large):
        yield from large_table(large, dtype)
    orders = [r for r in results if r[SECTION] == "orders"]
    if orders:
        yield from orders_table(orders)


def projection_tables(results):
    makers = {"projection": projection_table, "pieces": pieces_table, "peers": peers_table}
    for name, make in makers.items():
        rows = [r for r in results if r[SECTION] == name]
        if rows:
            yield from make(rows)


def case_of(row):
    """The model, dtype and batch that a row was measured with, in words."""
    marks = [f"{row['model']}, {row['dtype']}, {row['batch_size']} x {row['length']}"]
    return ", ".join(marks + [name for name in ("autocast", "checkpointing") if row[name]])


def step_ratio(row, rows):
    """A step's time divided by that of full fine-tuning, on a GPU with the fused optimizer."""
    of = {r["method"]: r["times"] for r in rows if "times" in r and case_of(r) == case_of(row)}
    fused = row["device"] == "cuda" and "full-fused" in of
    times = {"ours": row["times"]["step"]} | of.get("full-fused" if fused else "full", {})
    return ratio(times, "ours", "step")


def step_tables(results):
    """A table of training steps, and below it the steps that did not run, with the reasons."""
    cells = []
    for row in (r for r in results if "times" in r):
        ms = 1e3 * row["times"]["step"]["median"]
        cells.append([case_of(row), row["step"], f"{ms:,.1f}", step_ratio(row, results)])
        busy = [f"{1e3 * row['busy']:,.1f}", f"{row['launches']:,}"] if "busy" in row else ["", ""]
        cells[-1] += [*busy, f"{row['peak'] / 1e6:,.0f}"]
    heads = ["model", "step", "ms", "/ full", "GPU busy, ms", "launches", "peak, MB"]
    yield from ("A training step", "", *table(heads, cells), "")
    for row in results:
        if "reason" in row:
            yield from (f"{case_of(row)}, {row['step']}: not run, {row['reason']}", "")


def overhead_table(results):
    full = min((r["step"] for r in results if r["method"].startswith("full")), default=None)
    cells = []
    for row in results:
        times = [f"{row[name]:.1f}" for name in ("forward", "backward", "optimizer", "step")]
        times.append(f"{row['step'] / full:.2f}" if full else "")
        calls = [f"{row[name]:,}" for name in ("fastfood", "operators", "launches")]
        cells.append([row["method"].replace("-", ", "), *times, *calls])
    heads = ["method", "forward", "backward", "optimizer", "step", "/ full"]
    heads += ["fastfood calls", "operators", "launches"]
    return ["A training step of 24 tiny layers, ms", "", *table(heads, cells), ""]


TABLES = {
    "fwht": fwht_tables,
    "projection": projection_tables,
    "step": step_tables,
    "overhead": overhead_table,
}


def facts(environment):
    shown = dict(environment)
    if "memory" in shown:
        shown["memory"] = f"{shown['memory'] / 2**30:.0f} GiB"
    return ", ".join(f"{name} {shown[name]}" for name in FACTS if shown.get(name) is not None)


def tables(measured):
    """Lines of Markdown: where was measured, how each step of `make gpu` ended, and the numbers."""
    yield from (facts(measured["environment"]), "", f"`{measured['environment']['command']}`", "")
    cells = [
        [step["name"], step["status"], step["said"], f"{step['seconds']:.0f}"]
        for step in measured["steps"]
    ]
    yield from table(["step", "came to", "what it said", "seconds"], cells)
    yield ""
    for part, make in TABLES.items():
        steps = [step for step in measured["steps"] if step["part"] == part]
        results = [row for step in steps for row in step.get("results", ())]
        if results:
            yield from make(results)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="gpu.json of `make gpu`")
    print(*tables(json.loads(parser.parse_args().file.read_text())), sep="\n")


if __name__ == "__main__":
    main()
