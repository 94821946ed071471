"""The record of a study: an Optuna study with a row for each attempt at a trial, which any number
of drivers on any number of machines write. This file says who owns a row and when a claim is final.

Consistency. A row belongs to the driver that made it, for as long as it runs. The database numbers
the rows in the order in which they become visible, so a driver that has made a row and then reads
sees every earlier one. Of several rows for the same trial the earliest has it, unless that one
ended without an outcome; the drivers of later rows withdraw them. A claim is final once its driver
has read the rows again and kept its own. Optuna refuses to change a row that has ended, so a row
has one outcome, written by one driver.

What is lost when a driver dies. Only the attempts that its workers had in hand, and those that had
ended but were not written down yet. Their rows go on running in the record until somebody frees
them (`free_stale`): the next driver of a folder at once, because the folder's lock says that it is
alone; a driver of a shared database when three heartbeats are missing. A driver that was taken for
dead and wakes up claims the trial anew for its score, and drops the score when somebody else has
the trial by then.

A table of our own with a unique key for the trial would make claims shorter, but rows of earlier
versions are not in it and Optuna's dashboard does not show it, so there would be two truths.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import optuna
from optuna.trial import TrialState as RowState

from ..settings.trial import Score, Trial, TrialState
from .database import GRACE, Attempt, open_database, read_attempt, refusal

MOST_KILLED = 3  # attempts at a trial whose worker dies each time
PATIENCE = 20.0  # seconds that a write waits for a database that does not answer


@dataclass(frozen=True)
class Entry:
    """What the record knows of one trial after all attempts at it."""

    state: TrialState
    trial: Trial
    attempts: int  # rows that ran, or run, on a worker
    score: Score | None
    error: str | None
    halfway: float | None  # the score for which a trial was pruned, at optimizer step `step`
    step: int | None
    seconds: float | None
    environment: dict  # versions and hardware of a complete trial


def open_record(url: str, name: str, heartbeat: int | None = None) -> "Record":
    """Opens or makes the Optuna study `name` at a database URL; changes no row.

    `heartbeat` is in seconds: several drivers may work on the study, and those that miss three
    beats are taken for dead. With None this is the only driver, or a reader. Raises ValueError
    when the database is damaged or out of reach; it never shows the password.
    """
    return Record(*open_database(url, name, heartbeat), heartbeat)


class Record:
    """An open study. `claim`, `finish`, `fail`, `prune`, `give_back`, `free_stale` write; `read`
    takes in what others wrote; `decided`, `states` and `state` ask no database.

    A thread of the driver may call `beat`; all else is for one thread.
    """

    def __init__(
        self, storage: optuna.storages.RDBStorage, study: optuna.Study, heartbeat: int | None
    ) -> None:
        self.heartbeat = heartbeat
        self.alone = heartbeat is None
        self._storage, self._study = storage, study
        self._rows: dict[int, optuna.trial.FrozenTrial] = {}  # by number, as they were last read
        self._attempts: dict[str, dict[int, Attempt]] = {}  # by the trial's key and the number
        self._running: dict[int, str] = {}  # the keys of running rows
        self._entries: dict[str, Entry] = {}
        self._changed: set[str] = set()
        self._own: dict[int, int] = {}  # the database's identifiers of this driver's running rows
        self._first_seen: dict[int, float] = {}  # when a row of another driver was met, monotonic
        self._environments: dict[str, dict] = {}
        self._study_id = self._ask(storage.get_study_id_from_name, study.study_name)
        self.read()
        # What ended before this driver came does not count against a trial.
        self._past = self._rows.keys() - self._running.keys()

    def read(self) -> None:
        """Takes in the rows that are new or were running."""
        # Optuna keeps the rows that have ended and reads the others again.
        for row in self._ask(self._study.get_trials, False):
            if self._rows.get(row.number) is not row:
                self._rows[row.number] = row
                attempt = read_attempt(row)
                if attempt is not None:
                    self._take_in(attempt)

    def _ask(self, read: Callable, *arguments):
        """Reads from the database; raises ValueError when it is damaged or out of reach."""
        try:
            return read(*arguments)
        except Exception as error:  # of Optuna, of SQLAlchemy, or of what decodes a damaged row
            raise ValueError(refusal(self._storage.engine.url, error)) from None

    def _take_in(self, attempt: Attempt) -> None:
        attempts = self._attempts.setdefault(attempt.key, {})
        if attempts.get(attempt.number) == attempt:
            return
        attempts[attempt.number] = attempt
        if attempt.state == TrialState.RUNNING:
            self._running[attempt.number] = attempt.key
        else:
            self._running.pop(attempt.number, None)
            self._first_seen.pop(attempt.number, None)
        self._entries[attempt.key] = self._summarise(attempts.values())
        self._changed.add(attempt.key)

    def _summarise(self, attempts: Iterable[Attempt]) -> Entry:
        attempts = list(attempts)
        state, decisive = _outcome(attempts)
        error = decisive.error if decisive else None
        if state == TrialState.FAILED and error is None:
            killed = sum(_was_killed(attempt) for attempt in attempts)
            error = f"the worker was killed {killed} times"
        return Entry(
            state=state,
            trial=attempts[0].trial,
            attempts=sum(attempt.state != TrialState.WAITING for attempt in attempts),
            score=decisive.score if decisive else None,
            error=error,
            halfway=decisive.halfway if decisive else None,
            step=decisive.step if decisive else None,
            seconds=decisive.seconds if decisive else None,
            environment=self._environment(decisive.environment if decisive else ""),
        )

    def _environment(self, name: str) -> dict:
        if name and name not in self._environments:
            self._environments = self._ask(lambda: self._study.user_attrs)
        return self._environments.get(name, {})

    def decided(self, prune: bool) -> dict[str, Score | None]:
        """The scores of the complete trials by key, and None for the trials that gave no score and
        will not run again: those that diverged, and with `prune` also the pruned ones."""
        final = (TrialState.COMPLETE, TrialState.DIVERGED, *[TrialState.PRUNED] * prune)
        return {key: entry.score for key, entry in self._entries.items() if entry.state in final}

    def states(self) -> dict[str, Entry]:
        """What is known of each trial that was ever claimed, by key; not a copy."""
        return self._entries

    def changed(self) -> set[str]:
        """The keys that got another entry since the last call."""
        keys, self._changed = self._changed, set()
        return keys

    def state(self, key: str, prune: bool) -> TrialState:
        """How far a trial has come for this driver, which may claim it when it is WAITING.

        Errors and deaths of earlier starts do not count; without `prune` a pruned attempt does not
        count either.
        """
        counting = [
            attempt
            for attempt in self._attempts.get(key, {}).values()
            if (attempt.state != TrialState.FAILED or attempt.number not in self._past)
            and (attempt.state != TrialState.PRUNED or prune)
        ]
        return _outcome(counting)[0]

    def claim(self, trial: Trial, prune: bool = False) -> int | None:
        """Makes a running row for the trial and returns its number, or None when the trial is not
        waiting. Of several drivers at once, the one whose row came first has it."""
        key = trial.key
        if not self.alone:
            self.read()
        if self.state(key, prune) != TrialState.WAITING:
            return None
        row = optuna.trial.create_trial(
            state=RowState.RUNNING, user_attrs={"key": key, "config": asdict(trial)}
        )
        identifier = self._write(self._storage.create_new_trial, self._study_id, row)
        number = self._ask(self._storage.get_trial_number_from_id, identifier)
        self._own[number] = identifier
        if not self.alone:
            self._write(self._storage.record_heartbeat, identifier)
        self.read()
        earlier = [attempt for attempt in self._attempts[key].values() if attempt.number < number]
        if any(_stands_before(attempt, prune) for attempt in earlier):
            self._end(number, RowState.FAIL, {"left": "withdrawn"})
            return None
        return number

    def finish(self, number: int, score: Score, where: dict | None = None) -> bool:
        """Ends an attempt with its score, whose `validation` is the Optuna value; `where` holds
        the versions and the hardware of the process that computed it.

        A row that others freed meanwhile (a driver that was asleep) is claimed anew; False when
        somebody else has the trial by then.
        """
        where = where or {}
        name = "environment " + hashlib.sha256(json.dumps(where).encode()).hexdigest()[:8]
        if name not in self._environments:
            self._write(self._study.set_user_attr, name, where)
            self._environments[name] = where
        attributes = {"result": asdict(score) | {"environment": name}}
        if self._end(number, RowState.COMPLETE, attributes, score.validation):
            return True
        self.read()
        trial = next(rows[number].trial for rows in self._attempts.values() if number in rows)
        again = self.claim(trial)
        return again is not None and self._end(
            again, RowState.COMPLETE, attributes, score.validation
        )

    def fail(self, number: int, error: str, final: bool = False) -> None:
        """Ends an attempt that raised: it is tried again at the next start, or never if final."""
        attributes = {"final": True} if final else {}
        self._end(number, RowState.FAIL, attributes | {"error": error})

    def prune(self, number: int, halfway: float, step: int) -> None:
        """Ends an attempt that was stopped at optimizer step `step` for its score there."""
        self._end(number, RowState.PRUNED, {"pruned": {"halfway": halfway, "step": step}})

    def give_back(self, number: int, stopped: bool = False) -> None:
        """Ends an attempt whose worker was killed; one that the driver `stopped` itself does not
        count."""
        self._end(number, RowState.FAIL, {"left": "stopped"} if stopped else {})

    def _end(
        self, number: int, state: RowState, attributes: dict, value: float | None = None
    ) -> bool:
        """Ends a running row; False when it had been ended by somebody else."""
        identifier = self._identifier(number)
        self._own.pop(number, None)
        values = None if value is None else [value]
        try:
            for name, content in attributes.items():
                self._write(self._storage.set_trial_user_attr, identifier, name, content)
            self._write(self._storage.set_trial_state_values, identifier, state, values)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        finally:
            self.read()
        return True

    def _identifier(self, number: int) -> int:
        """The name of a row in the database, where those of several studies are counted."""
        if number in self._own:
            return self._own[number]
        find = self._storage.get_trial_id_from_study_id_trial_number
        return self._ask(find, self._study_id, number)

    def _write(self, write: Callable, *arguments):
        """Writes, and waits some seconds for a database that does not answer; raises ValueError
        when it never does, as on a full disk."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return write(*arguments)
            except optuna.exceptions.StorageInternalError as error:
                if time.monotonic() > end:
                    raise ValueError(refusal(self._storage.engine.url, error)) from None
                time.sleep(1.0)

    def beat(self) -> None:
        """Says that this driver's attempts are alive; called every `heartbeat` seconds."""
        for identifier in list(self._own.values()):
            self._storage.record_heartbeat(identifier)

    def free_stale(self) -> None:
        """Gives back the running rows of dead drivers: all that are not this driver's own when it
        is alone, else those without a heartbeat for three of its intervals."""
        self.read()
        foreign = self._running.keys() - self._own.keys()
        if self.heartbeat is None:
            for number in foreign:
                self.give_back(number)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self._study)
        # A driver may die between its claim and the row's first beat, and Optuna frees no row
        # without one. The row gets one when it has run for long, which does a live row no harm.
        now = time.monotonic()
        for number in foreign:
            if now - self._first_seen.setdefault(number, now) > GRACE * self.heartbeat:
                self._first_seen[number] = float("inf")
                self._write(self._storage.record_heartbeat, self._identifier(number))
        self.read()


def _was_killed(attempt: Attempt) -> bool:
    return attempt.state == TrialState.FAILED and attempt.error is None


def _outcome(attempts: list[Attempt]) -> tuple[TrialState, Attempt | None]:
    """The state that attempts at a trial bring it to, and the attempt that decides it: the first
    that is complete or runs, the last of those that ended without a score."""
    by_state: dict[TrialState, list[Attempt]] = {}
    for attempt in sorted(attempts, key=lambda attempt: attempt.number):
        by_state.setdefault(attempt.state, []).append(attempt)
    for state, which in (
        (TrialState.COMPLETE, 0),
        (TrialState.DIVERGED, -1),
        (TrialState.PRUNED, -1),
        (TrialState.RUNNING, 0),
    ):
        if state in by_state:
            return state, by_state[state][which]
    failed = by_state.get(TrialState.FAILED, [])
    raised = [attempt for attempt in failed if not _was_killed(attempt)]
    if raised or len(failed) >= MOST_KILLED:
        return TrialState.FAILED, (raised or failed)[-1]
    return TrialState.WAITING, None


def _stands_before(attempt: Attempt, prune: bool) -> bool:
    """Whether an earlier attempt keeps a later one from running."""
    if attempt.state == TrialState.PRUNED:
        return prune
    return attempt.state in (TrialState.RUNNING, TrialState.COMPLETE, TrialState.DIVERGED)
