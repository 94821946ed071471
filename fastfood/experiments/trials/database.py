"""The database of a study, where it is opened and its rows are read. Optuna makes the tables;
reading goes to them for new rows alone, since a row as an Optuna object takes ten times as long."""

import json
import time
import warnings
from importlib import util
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote_plus

import optuna
import sqlalchemy as sa
from optuna.storages import RDBStorage

GRACE = 3  # heartbeats that a driver may miss

_KINDS = {"key": str, "config": dict, "result": dict, "pruned": dict, "error": str}

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


def open_database(url: str, name: str, heartbeat: int | None) -> tuple[RDBStorage, optuna.Study]:
    """Opens or makes the Optuna study `name`, as `record.open_record` describes it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parsed = _parse(url)
    backend = parsed.get_backend_name()
    arguments = {"sqlite": {"timeout": 60}, "postgresql": {"connect_timeout": 10}}
    options = {"connect_args": arguments.get(backend, {}), "pool_pre_ping": backend != "sqlite"}
    _refuse_foreign(parsed)
    # Optuna formats the URL, so braces in a folder's name or a password are doubled
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
    if url.get_backend_name() != "sqlite" or not url.database or not Path(url.database).is_file():
        return
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    try:
        tables = set(sa.inspect(engine).get_table_names())
    except sa.exc.SQLAlchemyError:
        return  # a damaged file, of which Optuna's own reading tells more
    # another driver may be making the tables just now
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


def new_rows(storage: RDBStorage, study_id: int, last: int, running: list[int]) -> list[Attempt]:
    """The rows after number `last` and those in `running`, as they are now.

    Raises ValueError when the database cannot be read, or a row is not as a driver writes it.
    """
    wanted = {"study": study_id, "last": last, "running": running}
    engine = storage.engine.execution_options(isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            rows = connection.execute(_NEW_ROWS, wanted).all()
            texts = connection.execute(_NEW_ATTRIBUTES, wanted).all()
    except sa.exc.SQLAlchemyError as error:
        raise ValueError(refusal(engine.url, error)) from None
    attributes: dict[int, dict] = {}
    for number, name, text in texts:
        attributes.setdefault(number, {})[name] = _read_attribute(number, name, text)
    return [_attempt(*row, attributes.get(row[0], {})) for row in rows]


def _attempt(number: int, state: str, start, end, attributes: dict) -> Attempt:
    needed = {"config", "result"} if state == "COMPLETE" else {"config"}
    if "key" in attributes and not needed <= attributes.keys():
        raise ValueError(f"storage: wanted a whole row {number}, got {sorted(attributes)}")
    # a clock that was set back meanwhile gives no time less than none
    seconds = max(0.0, (end - start).total_seconds()) if start and end else None
    return Attempt(number, state, attributes, seconds)


def _read_attribute(number: int, name: str, text: str) -> object:
    try:
        content = json.loads(text)
    except (ValueError, TypeError) as error:
        raise ValueError(f"storage: wanted JSON as {name} of row {number}, got {error}") from None
    fits = isinstance(content, _KINDS.get(name, object))
    if name == "result" and fits:
        fits = all(isinstance(content.get(part), int | float) for part in ("validation", "test"))
    if not fits:
        raise ValueError(f"storage: wanted a whole {name} of row {number}, got {content!r:.100}")
    return content
