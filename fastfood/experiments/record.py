"""The record of a study: an Optuna study with a row for each attempt at a trial, which any number
of drivers on any number of machines write. Rows are written through Optuna's storage interface;
reading goes to its tables, for new rows alone, since a row as an Optuna object takes ten times as
long."""

import hashlib
import json
import time
import warnings
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote_plus

import optuna
import sqlalchemy as sa
from optuna.trial import TrialState

from .plan import trial_key

MOST_KILLED = 3  # attempts at a trial whose worker dies each time
GRACE = 3  # heartbeats that a driver may miss
PATIENCE = 20.0  # seconds that a write waits for a database that does not answer

_TRIALS = sa.table(
    "trials",
    sa.column("trial_id", sa.Integer),
    sa.column("study_id", sa.Integer),
    sa.column("state", sa.String),
    sa.column("datetime_start", sa.DateTime),
    sa.column("datetime_complete", sa.DateTime),
)
_ATTRIBUTES = sa.table(
    "trial_user_attributes",
    sa.column("trial_id", sa.Integer),
    sa.column("key", sa.String),
    sa.column("value_json", sa.Text),
)
_IS_NEW = (_TRIALS.c.study_id == sa.bindparam("study")) & (
    (_TRIALS.c.trial_id > sa.bindparam("last"))
    | _TRIALS.c.trial_id.in_(sa.bindparam("running", expanding=True))
)
_NEW_ROWS = sa.select(
    _TRIALS.c.trial_id, _TRIALS.c.state, _TRIALS.c.datetime_start, _TRIALS.c.datetime_complete
).where(_IS_NEW)
_NEW_ATTRIBUTES = (
    sa.select(*_ATTRIBUTES.c)
    .join_from(_ATTRIBUTES, _TRIALS, _ATTRIBUTES.c.trial_id == _TRIALS.c.trial_id)
    .where(_IS_NEW)
)


class Attempt(NamedTuple):
    """A row: one try at one trial. `state` is Optuna's name of it."""

    number: int
    state: str
    attributes: dict
    seconds: float | None  # wall time, None while it runs


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


def sqlite_url(path: Path) -> str:
    """The database URL of a file."""
    return sa.URL.create("sqlite", database=str(path.absolute())).render_as_string()


def _parse(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        wanted = "a database URL such as postgresql://USER@HOST/NAME"
        raise ValueError(f"storage: wanted {wanted}, got another text") from None
    if parsed.drivername == "postgresql" and util.find_spec("psycopg2") is None:
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed


def open_record(url: str, name: str, heartbeat: int | None = None) -> "Record":
    """Opens or makes the Optuna study `name` at a database URL; changes no row.

    `heartbeat` is in seconds: several drivers may work on the study, and those that miss three
    beats are taken for dead. With None this is the only driver, or a reader. Raises ValueError
    when the database is damaged or out of reach; it never shows the password.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parsed = _parse(url)
    backend = parsed.get_backend_name()
    arguments = {"sqlite": {"timeout": 60}, "postgresql": {"connect_timeout": 10}}
    options = {"connect_args": arguments.get(backend, {}), "pool_pre_ping": backend != "sqlite"}
    # Optuna formats the URL, so braces in a folder's name or a password are doubled
    text = parsed.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    tries_left = 4  # drivers that make the tables at once disturb each other
    while True:
        tries_left -= 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                storage = optuna.storages.RDBStorage(
                    text,
                    engine_kwargs=dict(options),
                    heartbeat_interval=heartbeat,
                    grace_period=heartbeat and GRACE * heartbeat,
                )
                study = optuna.create_study(
                    storage=storage, study_name=name, direction="maximize", load_if_exists=True
                )
            return Record(storage, study, heartbeat)
        except Exception as error:  # SQLAlchemy, alembic and Optuna each have their own types
            if not tries_left:
                raise ValueError(_refusal(parsed, error)) from None
        time.sleep(0.25)


def _refusal(url: sa.URL, error: Exception) -> str:
    """What to say of a database that cannot be opened, without its password."""
    reason = " ".join(str(error).split())[:200]
    if url.password:
        for secret in (url.password, quote_plus(url.password)):
            reason = reason.replace(secret, "***")
    shown = url.render_as_string(hide_password=True)
    return f"storage: wanted an Optuna database at {shown}, got {reason}"


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
        self._engine = storage.engine.execution_options(isolation_level="AUTOCOMMIT")
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
        wanted = {"study": self._study_id, "last": self._last, "running": list(self._keys)}
        with self._engine.connect() as connection:
            rows = connection.execute(_NEW_ROWS, wanted).all()
            texts = connection.execute(_NEW_ATTRIBUTES, wanted).all()
        attributes: dict[int, dict] = {}
        for number, name, text in texts:
            attributes.setdefault(number, {})[name] = json.loads(text)
        for number, state, start, end in rows:
            mine = attributes.get(number, {})
            seconds = (end - start).total_seconds() if start and end else None
            self._last = max(self._last, number)
            if "key" in mine:
                self._take_in(Attempt(number, state, mine, seconds))

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
        self.beat([number])
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
            self._study.set_user_attr(name, where)
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
        """Writes, and waits some seconds for a database that does not answer."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return write(*arguments)
            except optuna.exceptions.StorageInternalError:
                if time.monotonic() > end:
                    raise
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
