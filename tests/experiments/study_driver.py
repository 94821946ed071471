"""A made-up study for tests: its settings; a function in place of training, which notes every run
in files of the study's folder; and a program that drives the study, `python study_driver.py FOLDER
URL HEARTBEAT`. FOLDER/behaviour.json says what differs from the settings, and which trials fail,
die, sleep or diverge."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path


def facts(**changes):
    from fastfood.experiments.settings.trial import Facts

    given = {"device": "cpu", "D": 5000, "m": 4, "num_labels": 2, "majority": 0.1, "overlap": 0}
    given |= {"splits": {}, "sizes": {}, "contamination": [], "counts": {}}
    return Facts(**given | {"model_hash": "aa", "data_hash": "bb"} | changes)


def scores_of(record):
    """The scores of the complete trials by key."""
    return {key: entry.score for key, entry in record.states().items() if entry.score is not None}


def work_in_threads(monkeypatch, count=1):
    """Lets the workers of a study be threads of this process, which has loaded everything."""
    from fastfood.experiments.trials import run

    monkeypatch.setattr(run, "open_workers", lambda settings, device: Threads(count))


def measures(folder, **changes):
    from fastfood.experiments.settings.measurement import Settings, complete
    from fastfood.experiments.settings.study import Measurement

    given = {"dims": (10, 100), "lrs": (0.1, 0.2), "workers": 2, "out": str(folder)}
    given |= {name: tuple(v) if isinstance(v, list) else v for name, v in changes.items()}
    return [Measurement(label="made up", settings=complete(Settings(**given)), facts=facts())]


def behave(folder, changes=None, **behaviour):
    """Writes behaviour.json: changes of the settings, and how trials behave from now on."""
    folder.mkdir(exist_ok=True)
    text = json.dumps({"changes": changes or {}} | behaviour)
    (folder / "behaviour.json").write_text(text)


def name_of(trial):
    return f"{trial.method}-{trial.d}-{trial.learning_rate}-{trial.seed}"


def pretend(settings, trial, floor):
    """Replaces training: notes its start, may sleep, fail or die, and scores by a formula."""
    from fastfood.experiments.settings.trial import Pruned, Score

    folder, name = Path(settings.out), name_of(trial)
    behaviour = json.loads((folder / "behaviour.json").read_text())
    _note(folder / "started", f"{name} {os.getpid()}")
    time.sleep(behaviour.get("sleep", 0.0))
    if name.startswith(behaviour.get("fail", "nothing")):
        raise RuntimeError("this trial fails")
    if name.startswith(behaviour.get("diverge", "nothing")):
        raise FloatingPointError("diverged: the loss is nan")
    if name.startswith(behaviour.get("prune", "nothing")):
        raise Pruned(0.25, floor or 0.5, 150)
    runs = [run for run, _ in started(folder)].count(name)
    if name.startswith(behaviour.get("die", "nothing")) and runs <= behaviour.get("deaths", 99):
        os.kill(os.getpid(), signal.SIGKILL)
    score = 0.95 if trial.method == "full" else 0.95 * trial.d / (trial.d + 30)
    score += 0.001 * trial.seed
    _note(folder / "ended", f"{name} {os.getpid()}")
    return Score(validation=score - 0.1 * trial.learning_rate, test=score, seconds=1.0)


def _note(path, line):
    with path.open("a") as notes:
        notes.write(line + "\n")


def started(folder):
    """The (name, process id) of every run of a trial so far."""
    notes = folder / "started"
    lines = notes.read_text().splitlines() if notes.exists() else []
    return [tuple(line.split()) for line in lines]


def names(folder):
    return [name for name, _ in started(folder)]


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def package_without_torch(folder):
    """Environment variables with which a process imports `fastfood.experiments` beside an empty
    `fastfood`, so that it does not load torch."""
    from fastfood import experiments

    stub = folder / "stub" / "fastfood"
    stub.mkdir(parents=True, exist_ok=True)
    real = str(Path(experiments.__file__).parents[1])
    (stub / "__init__.py").write_text(f"__version__ = '0'\n__path__ = [{real!r}]\n")
    return {"PYTHONPATH": str(stub.parent), "RAY_USAGE_STATS_ENABLED": "0"}


@contextmanager
def drivers(folder):
    """Starts programs of drivers of the study in a folder; kills those that are left at the end."""
    variables = os.environ | package_without_torch(folder.parent)
    processes = []

    def start(url=None, heartbeat=0, **more):
        url = url or f"sqlite:///{folder / 'trials.db'}"
        command = [sys.executable, __file__, str(folder), url, str(heartbeat)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, env=variables | more, text=True, **pipes))
        return processes[-1]

    try:
        yield start
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def finish(process):
    """The exit code, output and errors of a program."""
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


class Threads:
    """Workers in threads of this process, for tests of what a driver decides."""

    def __init__(self, count):
        from concurrent.futures import ThreadPoolExecutor

        self.pool, self.count, self.busy = ThreadPoolExecutor(count), count, 0

    def free(self):
        return self.count - self.busy

    def submit(self, train, *arguments):
        self.busy += 1
        return self.pool.submit(lambda: (train(*arguments), {"versions": {}, "hardware": {}}))

    def collect(self, future):
        self.busy -= 1
        return future.exception()

    def killed(self, error):
        # a test's training raises it where a real worker would be killed
        return isinstance(error, ProcessLookupError)

    def close(self, stop):
        self.pool.shutdown(cancel_futures=True)


def main(folder, url, heartbeat):
    from fastfood.experiments.refusal import exit_on_signals
    from fastfood.experiments.trials import run
    from fastfood.experiments.trials.record import open_record

    behaviour = json.loads((folder / "behaviour.json").read_text())
    # nohup and a shell's "&", with which the tests may have been started, have these two ignored
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    exit_on_signals()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "threads" in behaviour:
        run.open_workers = lambda settings, device: Threads(behaviour["threads"])
    run.POLL = 0.1
    record = open_record(url, behaviour.get("study", "made up"), heartbeat)

    def on_event(done, asked, measure, trial, outcome):
        print(f"{done}/{asked} {name_of(trial) if trial else ''} {outcome}", flush=True)

    try:
        failed = run.run_study(measures(folder, **behaviour["changes"]), record, on_event, pretend)
    except KeyboardInterrupt:
        return 130
    return 1 if failed else 0


if __name__ == "__mp_main__":  # a worker process
    behaviour = json.loads(Path(sys.argv[1], "behaviour.json").read_text())
    if "import" in behaviour:  # a worker that takes long to start
        _note(Path(sys.argv[1]) / "started", f"import {os.getpid()}")
        time.sleep(behaviour["import"])

if __name__ == "__main__":
    seconds = int(sys.argv[3])
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], seconds or None))
