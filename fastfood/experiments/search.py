"""Runs the trials of a study in worker processes and keeps the finished ones in `trials.db`.

Only this process writes, and a trial is written once, whole, when it has finished: whatever kills
the run, the file holds complete trials, and the next run does the missing ones."""

import fcntl
import hashlib
import multiprocessing
import os
import platform
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cache
from importlib import metadata
from pathlib import Path

import optuna

import fastfood

from .config import Settings, trial_key

LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "optuna", "numpy", "scikit-learn")
DATABASE, LOCK, STUDY = "trials.db", "trials.lock", "d90"


def inspect(settings: Settings) -> dict:
    """Loads the data and the base model once, and checks d against D and m.

    Returns D, m (None without SAID), the device, the splits, the majority rate and the hashes of
    model and data. Raises ValueError naming the argument; writes nothing.
    """
    import torch

    from .tasks import load_task, use_cache_without_network
    from .train import build_base, build_model

    use_cache_without_network(settings)
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device: wanted a device of this machine, got {settings.device!r}")
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    task = load_task(settings)
    base = build_base(settings, task.num_labels, seed=0)
    facts = {
        "device": device,
        "D": sum(p.numel() for p in base.parameters() if p.requires_grad),
        "m": None,
        "splits": task.splits,
        "majority": task.majority(),
        "data_hash": task.data_hash,
        "model_hash": _hash_parameters(base),
    }
    for method in settings.methods:
        for d in {settings.dims[0], settings.dims[-1]}:
            trial = {"method": method, "d": d, "seed": 0, "device": "cpu"}
            trial["normalization"] = settings.normalization
            try:
                model = build_model(settings, trial, task.num_labels)
            except ValueError as error:
                raise ValueError(f"dims: {method.upper()} with d = {d}: {error}") from error
            if model.lambda_ is not None:
                facts["m"] = model.lambda_.numel()
    return facts


def _hash_parameters(model) -> str:
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


@contextmanager
def locked_folder(out: Path) -> Iterator[None]:
    """Makes the folder and holds its lock.

    Raises ValueError when another process holds it or the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / LOCK).open("a+")
    except OSError as error:
        raise ValueError(f"out: wanted a writable folder, got {out} ({error})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip()
            wanted = "a folder that no other run uses"
            raise ValueError(f"out: wanted {wanted}, got {out} (process {owner})") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def open_study(out: Path) -> optuna.Study:
    """Opens or makes the study in `trials.db`; raises ValueError when the file is damaged."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = (out / DATABASE).absolute()
    try:
        return optuna.create_study(
            storage=f"sqlite:///{path}",
            study_name=STUDY,
            direction="maximize",
            load_if_exists=True,
        )
    except Exception as error:  # SQLAlchemy, alembic and Optuna each have their own types
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"out: wanted an Optuna database in {path}, got {reason}") from error


def finished(study: optuna.Study) -> dict[str, dict]:
    """The scores of all complete trials by trial key."""
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return {trial.user_attrs["key"]: trial.user_attrs["result"] for trial in complete}


def run_trials(
    settings: Settings,
    trials: list[dict],
    study: optuna.Study,
    device: str,
    train: Callable[[Settings, dict], dict],
    on_done: Callable[[dict, dict | None, str | None], None],
) -> int:
    """Runs the trials that `study` lacks and returns how many failed.

    `train(settings, trial)` runs in a worker and returns a result with the keys validation and
    test; `on_done(trial, result, error)` is called after each. A failed trial is kept as
    failed, without a score, and runs again at the next start. Stopping (KeyboardInterrupt,
    SystemExit) ends the workers.
    """
    known = finished(study)
    waiting = [trial for trial in trials if trial_key(trial) not in known]
    workers = min(worker_count(settings, device), max(1, len(waiting)))
    failed = 0
    while waiting:
        pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), _start_worker, (device,)
        )
        try:
            failed += _run_in_pool(pool, workers, settings, waiting, study, train, on_done)
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    return failed


def worker_count(settings: Settings, device: str) -> int:
    """The workers asked for; by default one on a GPU, else one a core but at most two."""
    if settings.workers is not None:
        return settings.workers
    return 1 if device.startswith("cuda") else min(2, len(os.sched_getaffinity(0)))


def _run_in_pool(pool, workers, settings, waiting, study, train, on_done) -> int:
    """Takes trials off `waiting` until it is empty or a worker dies; returns how many failed."""
    running, failed, broken = {}, 0, False
    while running or (waiting and not broken):
        while waiting and len(running) < workers and not broken:
            # a worker inherits the blocked signal, so Ctrl-C reaches this process alone
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                future = pool.submit(train, settings, waiting[0])
                running[future] = (waiting.pop(0), datetime.now())
            except BrokenProcessPool:
                broken = True
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            trial, start = running.pop(future)
            error = future.exception()
            result = None if error else future.result()
            failed += error is not None
            record(study, trial, start, result, error)
            on_done(trial, result, f"{type(error).__name__}: {error}" if error else None)
    return failed


def record(study: optuna.Study, trial: dict, start: datetime, result: dict | None, error) -> None:
    """Writes one finished trial in one transaction: its parameters, configuration and result."""
    distributions = {
        "method": optuna.distributions.CategoricalDistribution(("full", "did", "said")),
        "d": optuna.distributions.IntDistribution(1, 2**53),
        "learning_rate": optuna.distributions.FloatDistribution(1e-12, 1e12, log=True),
        "seed": optuna.distributions.IntDistribution(0, 2**31),
    }
    attributes = {"key": trial_key(trial), "config": trial, **environment()}
    attributes |= {"result": result} if error is None else {"error": repr(error)}
    state = optuna.trial.TrialState.FAIL if error else optuna.trial.TrialState.COMPLETE
    frozen = optuna.trial.create_trial(
        state=state,
        value=None if error else result["validation"],
        params={name: trial[name] for name in distributions},
        distributions=distributions,
        user_attrs=attributes,
    )
    frozen.datetime_start = start
    frozen.datetime_complete = max(datetime.now(), start + timedelta(microseconds=1))
    study.add_trial(frozen)


@cache
def environment() -> dict:
    """The versions and the hardware that a result was computed with."""
    versions = {"python": platform.python_version(), "fastfood": fastfood.__version__}
    versions |= {name: metadata.version(name) for name in LIBRARIES}
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = models[0] if models else platform.processor()
    hardware = {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform()}
    return {"versions": versions, "hardware": hardware}


def _start_worker(device: str) -> None:
    """Runs first in a worker: shows it one GPU at most, and ends it when its parent is killed."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    index = int(device.partition(":")[2] or 0)
    if device.startswith("cuda"):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = [name for name in visible.split(",") if name] or [str(i) for i in range(index + 1)]
        os.environ["CUDA_VISIBLE_DEVICES"] = names[index]
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
