"""The database of a study: how an Optuna study is opened there, and what its rows say. Nothing but
this file and `record` knows how Optuna names things; both go to the database through Optuna alone.
"""

import json
import time
import warnings
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, quote_plus, unquote

import optuna
import sqlalchemy as sa
from optuna.storages import RDBStorage
from pydantic import TypeAdapter, ValidationError

from ..settings.trial import Score, Trial, TrialState

GRACE = 3  # heartbeats that a driver may miss

_T = TypeVar("_T")
_TRIAL, _SCORE = TypeAdapter(Trial), TypeAdapter(Score)
_STATES = {
    optuna.trial.TrialState.COMPLETE: TrialState.COMPLETE,
    optuna.trial.TrialState.PRUNED: TrialState.PRUNED,
    optuna.trial.TrialState.RUNNING: TrialState.RUNNING,
    optuna.trial.TrialState.WAITING: TrialState.WAITING,
}


@dataclass(frozen=True)
class Attempt:
    """A row: one try at one trial. WAITING means that its driver withdrew or stopped it, so that it
    says nothing of the trial; FAILED without an error that its worker was killed."""

    number: int
    key: str
    trial: Trial
    state: TrialState
    score: Score | None
    environment: str  # the name under which the study keeps the versions and the hardware
    error: str | None
    halfway: float | None  # the score for which it was pruned, at optimizer step `step`
    step: int | None
    seconds: float | None  # wall time, None while it runs


def sqlite_url(path: Path) -> str:
    """The database URL of a file."""
    name = str(path.absolute())
    url = sa.URL.create("sqlite", database=name).render_as_string()
    if sa.make_url(url).database == name:
        return url
    # SQLAlchemy before 2.1 takes what follows a question mark for options: SQLite decodes the name
    return f"sqlite:///file:{quote(name)}?uri=true"


def without_password(url: str) -> str:
    """The URL as it may be shown and kept."""
    return sa.make_url(url).render_as_string(hide_password=True).replace(":***@", "@", 1)


def _parse(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        wanted = "a database URL such as postgresql://USER@HOST/NAME"
        raise ValueError(f"storage: wanted {wanted}, got another text") from None
    if parsed.drivername == "postgresql" and util.find_spec("psycopg2") is None:
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed


def open_database(url: str, name: str, heartbeat: int | None) -> tuple[RDBStorage, optuna.Study]:
    """Opens or makes the Optuna study `name`, as `record.open_record` describes it."""
    # Optuna also warns of errors that it raises.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    parsed = _parse(url)
    backend = parsed.get_backend_name()
    arguments = {"sqlite": {"timeout": 60}, "postgresql": {"connect_timeout": 10}}
    options = {"connect_args": arguments.get(backend, {}), "pool_pre_ping": backend != "sqlite"}
    _refuse_foreign(parsed)
    # Optuna formats the URL, so braces in a folder's name or a password are doubled.
    text = parsed.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    tries_left = 4  # drivers that make the tables at once disturb each other
    while True:
        tries_left -= 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                storage = RDBStorage(
                    text,
                    engine_kwargs=dict(options),
                    heartbeat_interval=heartbeat,
                    grace_period=heartbeat and GRACE * heartbeat,
                )
                study = optuna.create_study(
                    storage=storage, study_name=name, direction="maximize", load_if_exists=True
                )
            return storage, study
        except Exception as error:  # SQLAlchemy, alembic and Optuna each have their own types
            if not tries_left:
                raise ValueError(refusal(parsed, error)) from None
        time.sleep(0.25)


def _refuse_foreign(url: sa.URL) -> None:
    """Raises ValueError for a SQLite file of something else, into which Optuna would write."""
    file = url.database or ""
    if "uri" in url.query:
        file = unquote(file.removeprefix("file:"))
    if url.get_backend_name() != "sqlite" or not Path(file).is_file():
        return
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    try:
        tables = set(sa.inspect(engine).get_table_names())
    except sa.exc.SQLAlchemyError:
        return  # a damaged file, of which Optuna's own reading tells more
    # Another driver may be making the tables just now.
    if tables and tables.isdisjoint(("alembic_version", "studies", "version_info")):
        raise ValueError(refusal(url, ValueError("a database of something else")))


def refusal(url: sa.URL, error: Exception) -> str:
    """What to say of a database that cannot be used, without its password."""
    reason = " ".join(str(error).split())[:200]
    if url.password:
        for secret in (url.password, quote_plus(url.password)):
            reason = reason.replace(secret, "***")
    shown = url.render_as_string(hide_password=True)
    return f"storage: wanted an Optuna database at {shown}, got {reason}"


def read_attempt(row: optuna.trial.FrozenTrial) -> Attempt | None:
    """What a row of the study says; None for one that no driver of ours made.

    Fields that other versions added to a trial or its score are left out, and those that they did
    not have yet are None. Raises ValueError when the row is not as a driver writes it.
    """
    attributes, number = row.user_attrs, row.number
    if "key" not in attributes:
        return None
    complete = row.state == optuna.trial.TrialState.COMPLETE
    wanted = {"key": str, "config": dict} | ({"result": dict} if complete else {})
    for name, kind in {"error": str, "pruned": dict}.items():
        wanted |= {name: kind} if name in attributes else {}
    for name, kind in wanted.items():
        content = attributes.get(name)
        if not isinstance(content, kind):
            raise ValueError(_damage(name, number, content))
    result = attributes["result"] if complete else {}
    pruned, time_taken = attributes.get("pruned", {}), row.duration
    return Attempt(
        number=number,
        key=attributes["key"],
        trial=_read(_TRIAL, "config", number, attributes["config"]),
        state=_state(row),
        score=_read(_SCORE, "result", number, result) if complete else None,
        environment=str(result.get("environment", "")),
        error=attributes.get("error"),
        halfway=pruned.get("halfway"),
        step=pruned.get("step"),
        # A clock that was set back meanwhile gives no time less than none.
        seconds=None if time_taken is None else max(0.0, time_taken.total_seconds()),
    )


def _state(row: optuna.trial.FrozenTrial) -> TrialState:
    if row.state != optuna.trial.TrialState.FAIL:
        return _STATES[row.state]
    if "left" in row.user_attrs:
        return TrialState.WAITING
    diverged = row.user_attrs.get("final") and "error" in row.user_attrs
    return TrialState.DIVERGED if diverged else TrialState.FAILED


def _read(adapter: "TypeAdapter[_T]", name: str, number: int, content: dict) -> _T:
    try:
        return adapter.validate_json(json.dumps(content), strict=True)
    except ValidationError:
        raise ValueError(_damage(name, number, content)) from None


def _damage(name: str, number: int, content: object) -> str:
    return f"storage: wanted a whole {name} of row {number}, got {content!r:.100}"
