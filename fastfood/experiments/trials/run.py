"""Drives the trials of a study: asks the plan what is wanted, claims it in the record, has workers
train it, and writes down what came of it, until nothing is left to do. Any number of drivers may
work on one record; whatever kills one of them, the record holds whole results, and the next run
does what is missing."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager, suppress
from functools import partial

import optuna

from ..settings.measurement import Settings
from ..settings.study import Measurement
from . import plan
from .plan import trial_key
from .record import Record
from .workers import open_workers

POLL = 2.0  # seconds between looks at what other drivers have done


class _Agenda:
    """What the plans of all measures ask for, and what of it this driver may still have to do."""

    def __init__(self, measures: list[Measurement], record: Record) -> None:
        self._measures, self._record = measures, record
        self._asked: list[dict[str, dict]] = [{} for _ in measures]
        self.open: dict[str, tuple[Measurement, dict]] = {}
        self.places: dict[str, tuple[Measurement, dict]] = {}
        record.changed()
        self._plan(range(len(measures)))

    def _plan(self, numbers) -> None:
        for number in numbers:
            settings, facts = self._measures[number].settings, self._measures[number].facts
            trials = plan.trials(settings, facts, self._record.decided(settings.prune))
            self._asked[number] = {trial_key(trial): trial for trial in trials}
        self.places = {}
        for measure, asked in zip(self._measures, self._asked, strict=True):
            for key, trial in asked.items():
                self.places.setdefault(key, (measure, trial))
        self.open = {
            key: place
            for key, place in self.places.items()
            if self._status(key, place[0]) != "closed"
        }

    def _status(self, key: str, measure: Measurement) -> str:
        return self._record.status(key, measure.settings.prune)

    def update(self) -> set[str]:
        """Takes in what the record has learnt; returns the keys that are closed since."""
        changed = self._record.changed()
        closed = {
            key
            for key in changed
            if key in self.open and self._status(key, self.open[key][0]) == "closed"
        }
        for key in closed:
            del self.open[key]
        grown = [
            number
            for number, (measure, asked) in enumerate(zip(self._measures, self._asked, strict=True))
            if (measure.settings.search == "bisect" or measure.settings.prune)
            and not closed.isdisjoint(asked)
        ]
        if grown:
            self._plan(grown)
        return closed

    def next(self) -> tuple[Measurement, dict] | None:
        """The first trial that nobody runs."""
        for key, (measure, trial) in self.open.items():
            if self._status(key, measure) == "open":
                return measure, trial
        return None

    def floor(self, measure: Measurement, trial: dict) -> float | None:
        """The score below which the trial is stopped half-way."""
        if not measure.settings.prune:
            return None
        asked = list(self._asked[self._measures.index(measure)].values())
        return plan.floor(measure.settings, trial, asked, self._record.decided(True))

    def counts(self) -> tuple[int, int]:
        """How many of the trials asked for so far are closed, and how many there are."""
        return len(self.places) - len(self.open), len(self.places)

    def failed(self) -> int:
        """How many of the trials asked for failed and may come through at another start."""
        entries = self._record.states()
        return sum(
            key in entries and entries[key].state == "failed" and not entries[key].final
            for key in self.places
        )


def run_study(
    measures: list[Measurement],
    record: Record,
    on_event: Callable[[int, int, Measurement | None, dict | None, str], None],
    train: Callable[[Settings, dict, float | None], dict] | None = None,
) -> int:
    """Runs the trials of all measures that the record lacks; returns how many failed.

    Device, workers and cluster are those of the first measure. `train(settings, trial, floor)`
    runs in a worker, by default `train.train_trial`. `on_event(done, asked, measure, trial,
    outcome)` is called first with None, None and "" and then for every trial that ends, here or
    on another machine; outcome is the test score in per cent, or begins with "failed: ",
    "pruned" or "killed". Failed trials run again at the next start, those that diverged
    (FloatingPointError) never. Stopping (KeyboardInterrupt, SystemExit) ends the workers and
    gives their trials back. Raises ValueError when workers cannot be had.
    """
    if train is None:
        from ..training.train import train_trial as train
    record.free_stale()
    agenda = _Agenda(measures, record)
    on_event(*agenda.counts(), None, None, "")
    if not agenda.open:
        return agenda.failed()
    workers = open_workers(measures[0].settings, measures[0].facts["device"])
    running: dict = {}  # future: (number of the attempt, its place)
    stopped = True
    try:
        with _heartbeats(record, running):
            _drive(agenda, record, workers, running, on_event, train)
        stopped = False
    finally:
        workers.close(stop=stopped)
        for number, _, _ in running.values():
            record.give_back(number, stopped=True)
    return agenda.failed()


def _drive(agenda: _Agenda, record: Record, workers, running: dict, on_event, train) -> None:
    """Runs what is open until nothing is, also what other drivers have and may give back."""
    freed = time.monotonic()
    while agenda.open or running:
        _fill(agenda, record, workers, running, on_event, train)
        if running:
            done = wait(running, timeout=POLL, return_when=FIRST_COMPLETED).done
        else:
            time.sleep(POLL)  # all that is left is in the hands of other drivers
            done = set()
        errors = {future: workers.collect(future) for future in done}
        if errors:  # the workers go on while what they did is written down
            _fill(agenda, record, workers, running, on_event, train)
        for future, error in errors.items():
            number, measure, trial = running[future]
            if error is None:
                record.finish(number, *future.result())
            elif workers.killed(error):
                record.give_back(number)
                on_event(*agenda.counts(), measure, trial, "killed")
            else:
                _write_error(record, number, error)
            del running[future]
            _tell(agenda, record, on_event)
        if not record.alone:
            record.read()
            if time.monotonic() - freed >= record.heartbeat:
                freed = time.monotonic()
                record.free_stale()
            _tell(agenda, record, on_event)


def _fill(agenda: _Agenda, record: Record, workers, running: dict, on_event, train) -> None:
    """Gives every free worker a trial, as long as there are any."""
    while workers.free() > 0 and (place := agenda.next()) is not None:
        measure, trial = place
        floor = agenda.floor(measure, trial)
        start = partial(workers.submit, train, measure.settings, trial, floor)
        # nobody competes with a lone driver, so its workers need not wait for the database
        future = start() if record.alone else None
        number = record.claim(trial, measure.settings.prune)
        if number is not None:
            running[future or start()] = (number, measure, trial)
        _tell(agenda, record, on_event)


def _write_error(record: Record, number: int, error: BaseException) -> None:
    if isinstance(error, optuna.TrialPruned):
        record.prune(number, getattr(error, "halfway", None), getattr(error, "step", None))
    else:
        text = f"{type(error).__name__}: {error}"
        record.fail(number, text, final=isinstance(error, FloatingPointError))


def _tell(agenda: _Agenda, record: Record, on_event) -> None:
    """Brings the agenda up to date and reports the trials that are closed since."""
    places = agenda.places
    for key in agenda.update():
        entry = record.states()[key]
        if entry.state == "complete":
            outcome = f"{entry.result['test']:.1%}"
        elif entry.state == "pruned":
            outcome = "pruned"
        else:
            outcome = f"failed: {entry.error}"
        on_event(*agenda.counts(), *places[key], outcome)


@contextmanager
def _heartbeats(record: Record, running: dict) -> Iterator[None]:
    """Has a thread say that the running attempts are alive."""
    if record.alone:
        yield
        return
    end = threading.Event()

    def beat() -> None:
        while not end.wait(record.heartbeat):
            # a database out of reach is the driver's to report; the next beat may arrive
            with suppress(optuna.exceptions.StorageInternalError):
                record.beat([number for number, *_ in list(running.values())])

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
