"""The record of a study: an Optuna study with a row for each attempt at a trial, which any number
of drivers on any number of machines write through Optuna's storage interface."""

import hashlib
import json
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import optuna
from optuna.trial import TrialState

from .database import GRACE, Attempt, new_rows, open_database, refusal
from .plan import trial_key

MOST_KILLED = 3  # attempts at a trial whose worker dies each time
PATIENCE = 20.0  # seconds that a write waits for a database that does not answer


class Entry(NamedTuple):
    """What the record knows of one trial after all attempts at it."""

    state: str  # complete, pruned, running, failed, or waiting (given back)
    trial: dict
    attempts: int  # rows that ran, or run, on a worker
    result: dict | None
    error: str | None
    final: bool  # failed in a way that will come again, such as diverged training
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
    storage, study = open_database(url, name, heartbeat)
    try:
        return Record(storage, study, heartbeat)
    except (optuna.exceptions.OptunaError, KeyError) as error:
        raise ValueError(refusal(storage.engine.url, error)) from None


class Record:
    """An open study. `claim`, `finish`, `fail`, `prune`, `give_back`, `free_stale` write; `read`
    takes in what others wrote; `known`, `decided`, `states` and `status` ask no database.

    A thread of the driver may call `beat`; all else is for one thread.
    """

    def __init__(self, storage, study: optuna.Study, heartbeat: int | None) -> None:
        self.heartbeat = heartbeat
        self.alone = heartbeat is None
        self._storage, self._study = storage, study
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._attempts: dict[str, dict[int, Attempt]] = {}
        self._keys: dict[int, str] = {}  # of the rows that had not ended when they were read
        self._entries: dict[str, Entry] = {}
        self._known: dict[str, dict | None] = {}
        self._changed: set[str] = set()
        self._last = 0  # rows become visible in the order of their numbers
        self._mine: set[int] = set()
        self._seen: dict[int, float] = {}  # when a foreign running row was met, monotonic
        self._environments = study.user_attrs
        self.read()
        # what ended before this driver came does not count against a trial
        self._past = {
            number for rows in self._attempts.values() for number in rows
        } - self._keys.keys()

    def read(self) -> None:
        """Takes in the rows that are new or were running."""
        running = list(self._keys)
        for attempt in new_rows(self._storage, self._study_id, self._last, running):
            self._last = max(self._last, attempt.number)
            if "key" in attempt.attributes:
                self._take_in(attempt)

    def _take_in(self, attempt: Attempt) -> None:
        key = attempt.attributes["key"]
        rows = self._attempts.setdefault(key, {})
        if rows.get(attempt.number) == attempt:
            return
        rows[attempt.number] = attempt
        if attempt.state == "RUNNING":
            self._keys[attempt.number] = key
        else:
            self._keys.pop(attempt.number, None)
            self._seen.pop(attempt.number, None)
        entry = self._entries[key] = self._summarise(rows)
        self._changed.add(key)
        if entry.state == "complete":
            self._known[key] = entry.result

    def _summarise(self, rows: dict[int, Attempt]) -> Entry:
        ran = [row for _, row in sorted(rows.items()) if not _was_left(row)]
        by_state: dict[str, list[Attempt]] = {}
        for row in ran:
            by_state.setdefault(row.state, []).append(row)
        failed = by_state.get("FAIL", [])
        errors = [row for row in failed if "error" in row.attributes]
        final = [row for row in errors if row.attributes.get("final")]
        killed = len(failed) - len(errors)
        found = (
            ("complete", by_state.get("COMPLETE", [])[:1]),
            ("failed", final[-1:]),
            ("pruned", by_state.get("PRUNED", [])[-1:]),
            ("running", by_state.get("RUNNING", [])[:1]),
            ("failed", errors[-1:] or (failed[-1:] if killed >= MOST_KILLED else [])),
        )
        state, row = next(((name, rows[0]) for name, rows in found if rows), ("waiting", None))
        attributes = row.attributes if row else {}
        error = attributes.get("error")
        if state == "failed" and error is None:
            error = f"the worker was killed {killed} times"
        result = dict(attributes["result"]) if state == "complete" else None
        pruned = attributes.get("pruned", {})
        return Entry(
            state=state,
            trial=next(iter(rows.values())).attributes["config"],
            attempts=len(ran),
            result=result,
            error=error,
            final=bool(final) and state == "failed",
            halfway=pruned.get("halfway"),
            step=pruned.get("step"),
            seconds=row.seconds if row else None,
            environment=self._environment(result.pop("environment", "") if result else ""),
        )

    def _environment(self, name: str) -> dict:
        if name and name not in self._environments:
            self._environments = self._study.user_attrs
        return self._environments.get(name, {})

    def known(self) -> dict[str, dict]:
        """The results of the complete trials by key; not a copy."""
        return self._known

    def decided(self, prune: bool) -> dict[str, dict | None]:
        """`known`, and None for the trials that gave no score and will not run again: those that
        failed for good, and with `prune` also the pruned ones."""
        scoreless = {
            key: None
            for key, entry in self._entries.items()
            if entry.final or (prune and entry.state == "pruned")
        }
        return scoreless | self._known

    def states(self) -> dict[str, Entry]:
        """What is known of each trial that was ever claimed, by key; not a copy."""
        return self._entries

    def changed(self) -> set[str]:
        """The keys that got another entry since the last call."""
        keys, self._changed = self._changed, set()
        return keys

    def status(self, key: str, prune: bool) -> str:
        """`closed` when this driver is not to run the trial any more, `running`, or `open`.

        Errors and deaths of earlier starts do not close a trial; without `prune` a pruned one is
        open.
        """
        entry = self._entries.get(key)
        if entry is None:
            return "open"
        if entry.state == "complete" or entry.final or (entry.state == "pruned" and prune):
            return "closed"
        rows = [row for row in self._attempts[key].values() if not _was_left(row)]
        if any(row.state == "RUNNING" for row in rows):
            return "running"
        failed = [row for row in rows if row.state == "FAIL" and row.number not in self._past]
        errors = sum("error" in row.attributes for row in failed)
        return "closed" if errors or len(failed) >= MOST_KILLED else "open"

    def claim(self, trial: dict, prune: bool = False) -> int | None:
        """Makes a running row for the trial and returns its number, or None when the trial is not
        open. Of several drivers at once, the one whose row came first has it."""
        key = trial_key(trial)
        if not self.alone:
            self.read()
        if self.status(key, prune) != "open":
            return None
        row = optuna.trial.create_trial(
            state=TrialState.RUNNING, user_attrs={"key": key, "config": trial}
        )
        number = self._write(self._storage.create_new_trial, self._study_id, row)
        self._mine.add(number)
        self._write(self.beat, [number])
        self.read()
        rivals = [row for row in self._attempts[key].values() if row.number < number]
        if any(_stands_before(row, prune) for row in rivals):
            self._end(number, TrialState.FAIL, {"left": "withdrawn"})
            return None
        return number

    def finish(self, number: int, result: dict, where: dict | None = None) -> bool:
        """Ends an attempt with its result, whose `validation` is the Optuna value; `where` holds
        the versions and the hardware of the process that computed it.

        A row that others freed meanwhile (a driver that was asleep) is claimed anew; False when
        somebody else has the trial by then.
        """
        where = where or {}
        name = "environment " + hashlib.sha256(json.dumps(where).encode()).hexdigest()[:8]
        if name not in self._environments:
            self._write(self._study.set_user_attr, name, where)
            self._environments[name] = where
        attributes = {"result": result | {"environment": name}}
        if self._end(number, TrialState.COMPLETE, attributes, result["validation"]):
            return True
        self.read()
        trial = next(rows[number] for rows in self._attempts.values() if number in rows)
        again = self.claim(trial.attributes["config"])
        return again is not None and self._end(
            again, TrialState.COMPLETE, attributes, result["validation"]
        )

    def fail(self, number: int, error: str, final: bool = False) -> None:
        """Ends an attempt that raised: it is tried again at the next start, or never if final."""
        attributes = {"final": True} if final else {}
        self._end(number, TrialState.FAIL, attributes | {"error": error})

    def prune(self, number: int, halfway: float | None, step: int | None) -> None:
        """Ends an attempt that was stopped at optimizer step `step` for its score there."""
        self._end(number, TrialState.PRUNED, {"pruned": {"halfway": halfway, "step": step}})

    def give_back(self, number: int, stopped: bool = False) -> None:
        """Ends an attempt whose worker was killed; one that the driver `stopped` itself does not
        count."""
        self._end(number, TrialState.FAIL, {"left": "stopped"} if stopped else {})

    def _end(
        self, number: int, state: TrialState, attributes: dict, value: float | None = None
    ) -> bool:
        """Ends a running row; False when it had been ended by somebody else."""
        self._mine.discard(number)
        values = None if value is None else [value]
        try:
            for name, content in attributes.items():
                self._write(self._storage.set_trial_user_attr, number, name, content)
            self._write(self._storage.set_trial_state_values, number, state, values)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        finally:
            self.read()
        return True

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

    def beat(self, numbers: list[int]) -> None:
        """Says that the attempts are alive; called every `heartbeat` seconds."""
        if not self.alone:
            for number in numbers:
                self._storage.record_heartbeat(number)

    def free_stale(self) -> None:
        """Gives back the running rows of dead drivers: all that are not this driver's own when it
        is alone, else those without a heartbeat for three of its intervals."""
        self.read()
        foreign = self._keys.keys() - self._mine
        if self.alone:
            for number in list(foreign):
                self.give_back(number)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self._study)
        # a driver may die between its claim and the row's first beat, and Optuna frees no row
        # without one: it gets one when it has run for long, which does a live row no harm
        now = time.monotonic()
        for number in foreign:
            if now - self._seen.setdefault(number, now) > GRACE * self.heartbeat:
                self._seen[number] = float("inf")
                self.beat([number])
        self.read()


def _was_left(row: Attempt) -> bool:
    """Whether the attempt was withdrawn or stopped by its driver, so that it says nothing."""
    return "left" in row.attributes and row.state == "FAIL"


def _stands_before(row: Attempt, prune: bool) -> bool:
    """Whether an earlier row keeps a later one from running."""
    if row.state == "PRUNED":
        return prune
    return row.state in ("RUNNING", "COMPLETE") or bool(row.attributes.get("final"))
