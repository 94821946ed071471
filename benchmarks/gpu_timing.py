"""Time on a GPU. What is compared runs in turn in one process, repetition by repetition, warm and
between two events of its stream; numbers are medians, with the least and the most beside them."""

import statistics
import time

import torch

LEAST = 2e-3  # seconds that a measurement takes: events tell half a microsecond apart
REPETITIONS = 7
GRAPH_CALLS = 100
EAGER_CALLS = 200  # fewer than a stream holds before it lets its caller wait


def warm_up(seconds=1.5):
    """Keeps the GPU busy until its clocks are up."""
    x = torch.randn(1 << 25, device="cuda")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(100):
            x.mul_(1.0)
        torch.cuda.synchronize()


def elapsed(run, calls):
    """Seconds of `calls` calls on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def captured(run, calls):
    """A function that replays `calls` calls in one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # workspaces and handles are made outside of the graph
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    return graph.replay


def synchronize():
    torch.cuda.synchronize()


def summary(values):
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def usable(runs):
    """The functions that work, called once: a peer may not take this size or type."""
    found = {}
    for name, run in runs.items():
        try:
            run()
            synchronize()
            found[name] = run
        except Exception as error:
            if name in ("ours", "copy"):
                raise
            print(f"  {name}: {str(error).strip().splitlines()[:1]}")
    return found


def in_turn(runs, repetitions=REPETITIONS):
    """Name to seconds of a call of each function."""
    runs = usable(runs)
    calls = {name: max(1, round(LEAST / max(elapsed(run, 1), 1e-6))) for name, run in runs.items()}
    times = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            times[name].append(elapsed(run, calls[name]) / calls[name])
    return {name: summary(values) for name, values in times.items()}


def in_graphs(runs, repetitions=REPETITIONS, calls=GRAPH_CALLS):
    """The same without the processor: of a call among many in a CUDA graph."""
    graphs = {}
    for name, run in usable(runs).items():
        try:
            graphs[name] = captured(run, calls)
        except RuntimeError as error:  # what synchronizes cannot be captured
            print(f"  {name}: {str(error).strip().splitlines()[:1]}")
            synchronize()
    times = in_turn(graphs, repetitions)
    return {
        name: {key: value / calls for key, value in found.items()} for name, found in times.items()
    }


def of_the_processor(runs, repetitions=REPETITIONS, calls=EAGER_CALLS):
    """Seconds until an eager call returns, whatever the GPU does meanwhile."""
    runs = usable(runs)
    times = {name: [] for name in runs}
    for repetition in range(repetitions + 1):
        for name, run in runs.items():
            synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                run()
            taken = time.perf_counter() - start
            if repetition:
                times[name].append(taken / calls)
    synchronize()
    return {name: summary(values) for name, values in times.items()}
