"""Runs trials in worker processes of this machine, or in Ray tasks of a cluster. In both, a worker
runs one trial at a time, whose result is a future of `concurrent.futures`; if a worker dies, only
its own trial is lost."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from ..settings.measurement import Settings
from ..settings.trial import Score, Trial
from ..training.environment import environment

LOOK_AGAIN = 5.0  # seconds after which a cluster's size is asked for again, as it may grow


class Workers(Protocol):
    """What a driver asks of `Processes` and `RayTasks`."""

    def free(self) -> int: ...
    def submit(self, *arguments: Any) -> Future: ...
    def collect(self, future: Future) -> BaseException | None: ...
    def killed(self, error: BaseException) -> bool: ...
    def close(self, stop: bool) -> None: ...


def work(
    train: Callable, settings: Settings, trial: Trial, floor: float | None
) -> tuple[Score, dict]:
    """Runs in a worker; returns the score of a trial and the environment it was computed in."""
    return train(settings, trial, floor), environment()


def worker_count(settings: Settings, device: str) -> int:
    """The number of workers asked for; by default one on a GPU, else one per core, at most two."""
    if settings.workers is not None:
        return settings.workers
    return 1 if device.startswith("cuda") else min(2, len(os.sched_getaffinity(0)))


def open_workers(settings: Settings, device: str) -> Workers:
    """The workers that the settings ask for; raises ValueError if Ray cannot be used."""
    if settings.ray is None:
        return Processes(worker_count(settings, device), device)
    return RayTasks(settings.ray, settings.workers, settings.gpu_share, device)


class _Spawning(multiprocessing.context.SpawnContext):
    """Starts processes and remembers them, so that no process of anyone else is ended."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[multiprocessing.context.SpawnProcess] = []

    # The base class has a class of this name here; pools call this method in the same way.
    def Process(self, *arguments: Any, **options: Any):  # type: ignore[override]
        self.started.append(multiprocessing.context.SpawnProcess(*arguments, **options))
        return self.started[-1]


class Processes:
    """`count` processes, each started when it is first needed and restarted after it died."""

    def __init__(self, count: int, device: str) -> None:
        self._device, self._context = device, _Spawning()
        self._idle: list[ProcessPoolExecutor | None] = [None] * count
        self._busy: dict[Future, ProcessPoolExecutor] = {}

    def free(self) -> int:
        """How many trials can start now."""
        return len(self._idle)

    def submit(self, *arguments) -> Future:
        """Starts `work(*arguments)` in a free worker."""
        pool = self._idle.pop() or self._new_pool()
        # A worker inherits the blocked signal, so Ctrl-C reaches this process alone.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            try:
                future = pool.submit(work, *arguments)
            except BrokenProcessPool:  # the worker died while it was idle
                pool = self._new_pool()
                future = pool.submit(work, *arguments)
            self._busy[future] = pool
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return future

    def _new_pool(self) -> ProcessPoolExecutor:
        try:
            return ProcessPoolExecutor(1, self._context, _start_worker, (self._device,))
        except OSError as error:  # its text does not name the folder
            raise OSError(f"wanted semaphores for the workers in /dev/shm, got {error}") from error

    def collect(self, future: Future) -> BaseException | None:
        """Frees the worker of a future that is done; returns the error of its trial, or None."""
        pool, error = self._busy.pop(future), future.exception()
        if isinstance(error, BrokenProcessPool):
            pool.shutdown(wait=False)
            self._idle.append(None)
        else:
            self._idle.append(pool)
        return error

    def killed(self, error: BaseException) -> bool:
        """Whether `error` means that the worker died, and not that the trial failed."""
        return isinstance(error, BrokenProcessPool)

    def close(self, stop: bool) -> None:
        """Ends the workers, at once if `stop`, else when their trials have ended."""
        if stop:
            for process in self._context.started:
                process.terminate()
        for pool in [*self._idle, *self._busy.values()]:
            if pool is not None:
                pool.shutdown(cancel_futures=True)


def _start_worker(device: str) -> None:
    """Runs first in a worker: leaves it at most one visible GPU, and ends it if its parent dies."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    index = int(device.partition(":")[2] or 0)
    if device.startswith("cuda"):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = [name for name in visible.split(",") if name] or [str(i) for i in range(index + 1)]
        os.environ["CUDA_VISIBLE_DEVICES"] = names[index]
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in a child process alone

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


class RayTasks:
    """Tasks on all nodes of a cluster; each takes one core, and on cuda `gpu_share` of a GPU.

    `address` is local (a cluster of this process, which listens on loopback alone), auto (one that
    runs on this machine) or HOST:PORT. `most` limits the number of tasks at a time. Raises
    ValueError if the package ray is not installed, the cluster does not answer, or it has no room
    for a task.
    """

    def __init__(self, address: str, most: int | None, gpu_share: float, device: str) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address == "local":  # else Ray listens on an address that the network can reach
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        try:
            import ray
        except ImportError:
            raise ValueError(
                f"ray: wanted the package ray (pip install ray) for {address!r}, got none"
            ) from None
        self._ray, self._most = ray, most
        self._gpu_share = gpu_share if device.startswith("cuda") else 0
        self._busy: dict[Future, object] = {}
        self._looked, self._room = -LOOK_AGAIN, 0
        _connect(ray, address)
        self._task = ray.remote(num_cpus=1, num_gpus=self._gpu_share, max_retries=0)(work)
        if self.free() < 1:
            ray.shutdown()
            raise ValueError(f"device: wanted a cluster with room for {device!r}, got {address!r}")

    def free(self) -> int:
        """How many trials can start now."""
        if time.monotonic() - self._looked >= LOOK_AGAIN:
            self._looked = time.monotonic()
            have = self._ray.cluster_resources()
            self._room = int(have.get("CPU", 0))
            if self._gpu_share:
                self._room = min(self._room, int(have.get("GPU", 0) / self._gpu_share + 1e-9))
            self._room = min(self._room, self._most or self._room)
        return self._room - len(self._busy)

    def submit(self, *arguments) -> Future:
        """Starts `work(*arguments)` on a node with room for it."""
        task = self._task.remote(*arguments)
        future = task.future()
        self._busy[future] = task
        return future

    def collect(self, future: Future) -> BaseException | None:
        """Frees the room of a future that is done; returns the error of its trial, or None."""
        del self._busy[future]
        error = future.exception()
        return error.cause if isinstance(error, self._ray.exceptions.RayTaskError) else error

    def killed(self, error: BaseException) -> bool:
        """Whether `error` means that the worker or node died, and not that the trial failed."""
        kinds = self._ray.exceptions
        died = (kinds.WorkerCrashedError, kinds.NodeDiedError, kinds.LocalRayletDiedError)
        return isinstance(error, (*died, kinds.OutOfMemoryError, kinds.ObjectLostError))

    def close(self, stop: bool) -> None:
        """Leaves the cluster; if `stop`, after killing the tasks."""
        for task in self._busy.values() if stop else ():
            self._ray.cancel(task, force=True)
        self._ray.shutdown()


def _connect(ray, address: str) -> None:
    import logging

    options = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"include_dashboard": False}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        wanted = "local, auto where a cluster runs, or a cluster's HOST:PORT"
        raise ValueError(f"ray: wanted {wanted}, got {address!r} ({reason})") from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # ray.init has replaced it
