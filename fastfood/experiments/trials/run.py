"""Drives the trials of a study: asks the plan what is wanted, claims it in the record, has workers
train it, and writes down what came of it, until nothing is left to do. Any number of drivers may
work on one record; whatever kills one of them, the record holds whole results, and the next run
does what is missing."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import optuna

from ..settings.measurement import Settings
from ..settings.metrics import METRICS
from ..settings.study import Measurement
from ..settings.trial import Pruned, Score, Trial, TrialState
from . import plan
from .record import Record
from .workers import Workers, open_workers

POLL = 2.0  # seconds between looks at what other drivers have done

Train = Callable[[Settings, Trial, float | None], Score]
OnEvent = Callable[[int, int, Measurement | None, Trial | None, str], None]


@dataclass(eq=False)
class _Sweep:
    """A measurement and the trials that it asks for so far, by key."""

    measurement: Measurement
    asked: dict[str, Trial] = field(default_factory=dict)

    @property
    def prune(self) -> bool:
        return self.measurement.settings.prune

    @property
    def grows(self) -> bool:
        """Whether the trials depend on scores."""
        return self.prune or self.measurement.settings.search == "bisect"

    def extend(self, record: Record) -> None:
        settings, facts = self.measurement.settings, self.measurement.known_facts
        asked = plan.trials(settings, facts, record.decided(self.prune))
        self.asked = {trial.key: trial for trial in asked}


@dataclass(frozen=True, eq=False)
class _Job:
    """A trial, and of the sweeps that ask for it the first."""

    sweep: _Sweep
    trial: Trial


class _Agenda:
    """What the sweeps of all measurements ask for, and what of it this driver may still have to do.

    `jobs` and `open`, those that are not done with, are in the order in which they run, by key.
    """

    def __init__(self, measurements: Iterable[Measurement], record: Record) -> None:
        self._record = record
        self._sweeps = [_Sweep(measurement) for measurement in measurements]
        self.jobs: dict[str, _Job] = {}
        self.open: dict[str, _Job] = {}
        record.changed()
        self._extend(self._sweeps)

    def _extend(self, sweeps: list[_Sweep]) -> None:
        for sweep in sweeps:
            sweep.extend(self._record)
        self.jobs = {}
        for sweep in self._sweeps:
            for key, trial in sweep.asked.items():
                self.jobs.setdefault(key, _Job(sweep, trial))
        self.open = {key: job for key, job in self.jobs.items() if self._is_open(key, job)}

    def _state(self, key: str, job: _Job) -> TrialState:
        return self._record.state(key, job.sweep.prune)

    def _is_open(self, key: str, job: _Job) -> bool:
        return self._state(key, job) in (TrialState.WAITING, TrialState.RUNNING)

    def update(self) -> list[_Job]:
        """Takes in what the record has learnt; returns the jobs that are closed since."""
        changed = self._record.changed()
        closed = {
            key: self.open[key]
            for key in changed
            if key in self.open and not self._is_open(key, self.open[key])
        }
        for key in closed:
            del self.open[key]
        grown = [
            sweep
            for sweep in self._sweeps
            if sweep.grows and not closed.keys().isdisjoint(sweep.asked)
        ]
        if grown:
            self._extend(grown)
        return list(closed.values())

    def next(self) -> _Job | None:
        """The first job that nobody works on."""
        for key, job in self.open.items():
            if self._state(key, job) == TrialState.WAITING:
                return job
        return None

    def floor(self, job: _Job) -> float | None:
        """The score below which the trial is stopped half-way."""
        if not job.sweep.prune:
            return None
        settings, asked = job.sweep.measurement.settings, list(job.sweep.asked.values())
        return plan.floor(settings, job.trial, asked, self._record.decided(True))

    def counts(self) -> tuple[int, int]:
        """How many of the trials asked for so far are closed, and how many there are."""
        return len(self.jobs) - len(self.open), len(self.jobs)

    def failed(self) -> int:
        """How many of the trials asked for failed and may come through at another start."""
        entries = self._record.states()
        return sum(key in entries and entries[key].state == TrialState.FAILED for key in self.jobs)


def run_study(
    measurements: list[Measurement], record: Record, on_event: OnEvent, train: Train | None = None
) -> int:
    """Runs the trials of all measurements that the record lacks; returns how many failed.

    Device, workers and cluster are those of the first measurement. `train(settings, trial, floor)`
    runs in a worker, by default `train.train_trial`. `on_event(done, asked, measurement, trial,
    outcome)` is called first with None, None and "" and then for every trial that ends, here or
    on another machine; outcome is the test score, in per cent unless its metric is relative, or
    begins with "failed: ", "pruned" or "killed". Failed trials run again at the next start, those
    that diverged (FloatingPointError) never. Stopping (KeyboardInterrupt, SystemExit) ends the
    workers and gives their trials back. Raises ValueError when workers cannot be had.
    """
    if train is None:
        from ..training.train import train_trial

        train = train_trial
    record.free_stale()
    agenda = _Agenda(measurements, record)
    on_event(*agenda.counts(), None, None, "")
    if agenda.open:
        workers = open_workers(measurements[0].settings, measurements[0].known_facts.device)
        Driver(agenda, record, workers, on_event, train).run()
    return agenda.failed()


class Driver:
    """Has workers do what an agenda holds, and writes it into the record."""

    def __init__(
        self, agenda: _Agenda, record: Record, workers: Workers, on_event: OnEvent, train: Train
    ) -> None:
        self._agenda, self._record, self._workers = agenda, record, workers
        self._on_event, self._train = on_event, train
        self._running: dict[Future, tuple[int, _Job]] = {}  # with the numbers of the attempts
        self._freed = time.monotonic()  # when the rows of dead drivers were last looked for

    def run(self) -> None:
        """Works until nothing is open, also what other drivers have in hand and may give back."""
        stopped = True
        try:
            with self._heartbeats():
                while self._agenda.open or self._running:
                    self._start_trials()
                    self._end_trials(self._wait())
                    self._look_at_others()
            stopped = False
        finally:
            self._workers.close(stop=stopped)
            for number, _ in self._running.values():
                self._record.give_back(number, stopped=True)

    def _start_trials(self) -> None:
        """Gives every free worker a trial, as long as there are any."""
        while self._workers.free() > 0 and (job := self._agenda.next()) is not None:
            settings, floor = job.sweep.measurement.settings, self._agenda.floor(job)
            start = partial(self._workers.submit, self._train, settings, job.trial, floor)
            # Nobody competes with a lone driver, so its workers need not wait for the database.
            future = start() if self._record.alone else None
            number = self._record.claim(job.trial, job.sweep.prune)
            if number is not None:
                self._running[future or start()] = (number, job)
            self._report()

    def _wait(self) -> set[Future]:
        """The trials that have ended, after a while at most."""
        if self._running:
            return wait(self._running, timeout=POLL, return_when=FIRST_COMPLETED).done
        time.sleep(POLL)  # all that is left is in the hands of other drivers
        return set()

    def _end_trials(self, done: set[Future]) -> None:
        errors = {future: self._workers.collect(future) for future in done}
        if errors:  # the workers go on while what they did is written down
            self._start_trials()
        for future, error in errors.items():
            number, job = self._running[future]
            if error is None:
                self._record.finish(number, *future.result())
            elif self._workers.killed(error):
                self._record.give_back(number)
                self._tell(job, "killed")
            elif isinstance(error, Pruned):
                self._record.prune(number, error.halfway, error.step)
            else:
                text = f"{type(error).__name__}: {error}"
                self._record.fail(number, text, final=isinstance(error, FloatingPointError))
            del self._running[future]
            self._report()

    def _look_at_others(self) -> None:
        """Takes in what other drivers did, and takes over from dead ones."""
        if self._record.heartbeat is None:
            return
        self._record.read()
        if time.monotonic() - self._freed >= self._record.heartbeat:
            self._freed = time.monotonic()
            self._record.free_stale()
        self._report()

    def _report(self) -> None:
        """Brings the agenda up to date and tells of the trials that are closed since."""
        for job in self._agenda.update():
            entry = self._record.states()[job.trial.key]
            if entry.score is not None:
                metric = METRICS[job.sweep.measurement.settings.metric or "accuracy"]
                self._tell(job, f"{entry.score.test:{'.4g' if metric.relative else '.1%'}}")
            elif entry.state == TrialState.PRUNED:
                self._tell(job, "pruned")
            else:
                self._tell(job, f"failed: {entry.error}")

    def _tell(self, job: _Job, outcome: str) -> None:
        self._on_event(*self._agenda.counts(), job.sweep.measurement, job.trial, outcome)

    @contextmanager
    def _heartbeats(self) -> Iterator[None]:
        """Has a thread say that the running attempts are alive."""
        if self._record.alone:
            yield
            return
        end = threading.Event()

        def beat() -> None:
            while not end.wait(self._record.heartbeat):
                # A database out of reach is the driver's to report; the next beat may arrive.
                with suppress(optuna.exceptions.StorageInternalError):
                    self._record.beat()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()
