"""Measures times on a GPU. Functions that are compared run in turn in one process, repetition by
repetition, after a warm-up and between two events of the stream. Results are medians, with the
least and the greatest time."""

import statistics
import time

import torch

LEAST = 2e-3  # seconds of a measurement, at least; events resolve half a microsecond
REPETITIONS = 7
GRAPH_CALLS = 100
EAGER_CALLS = 200  # few enough that the stream queues them without making the caller wait


def warm_up(seconds=1.5):
    """Keeps the GPU busy until it runs at its full clock rate."""
    x = torch.randn(1 << 25, device="cuda")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(100):
            x.mul_(1.0)
        torch.cuda.synchronize()


def elapsed(run, calls):
    """Seconds that `calls` calls take on the GPU."""
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
    with torch.cuda.stream(side):  # libraries make their workspaces and handles before the capture
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
    """The functions that a first call shows to work, as a peer may not take a size or type."""
    working = {}
    for name, run in runs.items():
        try:
            run()
            synchronize()
            working[name] = run
        except Exception as error:
            if name in ("ours", "copy"):
                raise
            print(f"  {name}: {str(error).strip().splitlines()[:1]}")
    return working


def in_turn(runs, repetitions=REPETITIONS):
    """Seconds of a call of each function, by name."""
    runs = usable(runs)
    calls = {name: max(1, round(LEAST / max(elapsed(run, 1), 1e-6))) for name, run in runs.items()}
    times = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            times[name].append(elapsed(run, calls[name]) / calls[name])
    return {name: summary(values) for name, values in times.items()}


def in_graphs(runs, repetitions=REPETITIONS, calls=GRAPH_CALLS):
    """Seconds of a call among many in a CUDA graph, by name: the GPU's time without the CPU's."""
    graphs = {}
    for name, run in usable(runs).items():
        try:
            graphs[name] = captured(run, calls)
        except RuntimeError as error:  # a function that synchronizes cannot be captured
            print(f"  {name}: {str(error).strip().splitlines()[:1]}")
            synchronize()
    times = in_turn(graphs, repetitions)
    return {
        name: {key: value / calls for key, value in graph.items()} for name, graph in times.items()
    }


def of_the_processor(runs, repetitions=REPETITIONS, calls=EAGER_CALLS):
    """Seconds until an eager call returns to the processor, by name; the GPU may still work."""
    runs = usable(runs)
    times = {name: [] for name in runs}
    for repetition in range(repetitions + 1):
        for name, run in runs.items():
            synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                run()
            seconds = time.perf_counter() - start
            if repetition:
                times[name].append(seconds / calls)
    synchronize()
    return {name: summary(values) for name, values in times.items()}
