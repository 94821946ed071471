"""Reads recipes, which are studies as TOML files. A recipe states the settings of several
measurements and the models to pre-train for them; the folder `recipes` holds one for each figure
and one for the table of the paper (Aghajanyan, Gupta, Zettlemoyer, 2021).

The keys of a recipe are `title`, `kind` (the figure that its report draws), `note`, a table
`settings`, a table `vary` and tables `pretrain`:

- `settings` applies to every measurement.
- `vary` holds lists, and there is one measurement for each combination of their entries. An entry
  is a value of the setting that the list is named after, or a table of several settings.
- Each `pretrain` makes a model, named by its key `name`. The model "pretrained/NAME/*" stands for
  all of its checkpoints, each of which becomes a measurement.
- `small` is a table of the same keys. `--scale small` makes them override the keys above.
- `base` is another recipe, by its name in the package or as a file beside this one. The keys here
  override it.

Wherever keys override others, `settings` and `small` are merged key by key; every other key
replaces the whole value."""

import itertools
import math
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from .settings.language import OBJECTIVES
from .settings.measurement import KINDS, Settings, complete, read_settings
from .settings.options import is_plain, refusal, require
from .settings.options import read as read_options
from .settings.pretraining import Pretraining
from .settings.pretraining import complete as complete_pretraining
from .settings.study import Measurement, Planned
from .settings.task import BUNDLED, TaskSettings, check_folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "recipes"
KEYS = ("title", "kind", "note", "settings", "vary", "pretrain")
PRETRAINED = "pretrained"
MOST = 1_000  # measurements of a study


def names() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def single(settings: Settings) -> Planned:
    """The study of `fastfood d90`: one measurement of completed settings."""
    out = Path(settings.out)
    return Planned(
        name=out.name,
        title=f"d90 of {settings.model_name} on {settings.task}",
        kind="d90",
        scale="full",
        note="",
        out=out,
        measurements=[Measurement(_label(settings), settings)],
        pretrainings=[],
    )


def read(recipe: str, scale: str, options: Mapping[str, object]) -> Planned:
    """Reads a recipe, given as a file or by its name in the package, at scale "full" or "small".

    `options` are settings that replace the recipe's. Raises ValueError naming the key, what was
    wanted and what was got; writes nothing.
    """
    if scale not in ("full", "small"):
        raise ValueError(f"scale: wanted full or small, got {scale!r}")
    path, parsed = _parse(recipe)
    small = parsed.pop("small", None)
    if scale == "small":
        if small is None:
            raise ValueError(f"scale: wanted full, because {path.name} has no small, got 'small'")
        parsed = _replaced(parsed, small)
    name = path.stem + ("-small" if scale == "small" else "")
    out = Path(str(options.get("out") or name))
    check_folder(out)
    pretrainings = [_pretraining(table, out, options) for table in parsed["pretrain"]]
    folders = [pretraining.out for pretraining in pretrainings]
    require(len(set(folders)) == len(folders), "pretrain", "another name in each table", folders)
    return Planned(
        name=name,
        title=parsed["title"],
        kind=parsed["kind"],
        scale=scale,
        note=parsed["note"],
        out=out,
        measurements=[
            _measurement(parsed["settings"], varied, options, out)
            for varied in _product(parsed["vary"], pretrainings)
        ],
        pretrainings=pretrainings,
    )


def _measurement(
    common: Mapping[str, object],
    varied: Mapping[str, object],
    options: Mapping[str, object],
    out: Path,
) -> Measurement:
    """One measurement: `common` settings, overridden by `varied`, overridden by `options`."""
    for key in set(varied) & set(options):
        raise refusal(key, "nothing, because the recipe varies it", options[key])
    values = {**common, **varied, **options, "out": str(out)}
    ran = "reward" in common or "reward" in varied  # a file must not decide what code is run
    given = {**common, **varied}.get("reward")
    require(not ran, "reward", "it on the command line alone, because it is run", given)
    if _brings_data(values):
        values.pop("data", None)  # it is the folder of the other tasks' data
    model = values.get("model")
    if str(model).startswith(PRETRAINED + "/"):
        values["model"] = str(out / str(model))
    settings = complete(read_settings(values))
    return Measurement(_label(settings), settings, x=_step_along_pretraining(varied))


def _brings_data(values: Mapping[str, object]) -> bool:
    return values.get("task", TaskSettings.model_fields["task"].default) in BUNDLED


def _parse(recipe: str) -> tuple[Path, dict]:
    path = _path(recipe)
    parsed = {"note": "", "vary": {}, "settings": {}, "pretrain": []} | _load(path, recipe, ())
    parsed.setdefault("title", path.stem)
    for table in (parsed, {"kind": parsed.get("kind"), **parsed.get("small", {})}):
        wanted = f"kind = one of {', '.join(KINDS)} in {path}"
        require(table.get("kind") in KINDS, "recipe", wanted, table.get("kind"))
    return path, parsed


def _path(recipe: str, folder: Path = Path()) -> Path:
    return FOLDER / f"{recipe}.toml" if recipe in names() else folder / recipe


def _load(path: Path, recipe: str, above: tuple[Path, ...]) -> dict:
    """The checked tables of a recipe, merged over the tables of its base; `above` lists the files
    whose chain of bases has led here."""
    argument = "base" if above else "recipe"
    real = Path(os.path.realpath(path))  # unlike resolve(), accepts a link to itself
    if real in above:
        wanted = "a recipe that is not built on itself"
        raise ValueError(f"base: wanted {wanted}, got {recipe!r} in {above[-1]}")
    try:
        parsed = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        wanted = f"a TOML file or one of {', '.join(names())}"
        raise ValueError(f"{argument}: wanted {wanted}, got {recipe!r} ({error})") from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a ValueError
        raise ValueError(f"{argument}: wanted TOML in {path}, got {error}") from None
    _check_tables(parsed, path)
    base = parsed.pop("base", None)
    if base is None:
        return parsed
    below = _load(_path(base, path.parent), base, (*above, real))
    return _replaced(below, parsed)


def _replaced(tables: dict, by: dict) -> dict:
    """`tables`, overridden by the keys of `by`."""
    merged = {
        key: _replaced(tables[key], by[key])
        for key in ("settings", "small")
        if isinstance(tables.get(key), dict) and isinstance(by.get(key), dict)
    }
    return tables | by | merged


def _check_tables(parsed: dict, path: Path) -> None:
    base, small = parsed.get("base", ""), parsed.get("small", {})
    plain = isinstance(base, str) and is_plain(base)
    require(plain, "base", f"a recipe's name or file in {path}", base)
    require(isinstance(small, dict), "recipe", f"a table small in {path}", small)
    for table, keys in ((parsed, (*KEYS, "small", "base")), (small, KEYS)):
        wanted = f"keys among {', '.join(keys)} in {path}"
        require(set(table) <= set(keys), "recipe", wanted, sorted(set(table) - set(keys)))
        for key in ("title", "note"):
            text = table.get(key, "")
            fits = isinstance(text, str) and is_plain(text.replace("\n", ""))
            require(fits, "recipe", f"a text {key} in {path}", text)
        for key in ("settings", "vary"):
            inner = table.get(key, {})
            require(isinstance(inner, dict), "recipe", f"a table {key} in {path}", inner)
        many = table.get("pretrain", [])
        fits = isinstance(many, list) and all(isinstance(one, dict) for one in many)
        require(fits, "recipe", f"tables pretrain in {path}", many)


def _pretraining(
    table: Mapping[str, object], out: Path, options: Mapping[str, object]
) -> Pretraining:
    """One pre-training, which goes into OUT/pretrained/NAME."""
    name = str(table.get("name", ""))
    fits = re.fullmatch(r"[\w.+ -]+", name) and name.strip(". ") == name
    require(bool(fits), "pretrain", "a name in each table, of one folder", dict(table))
    arguments = {key: value for key, value in table.items() if key != "name"}
    if "data" in options and not _brings_data(arguments):
        arguments["data"] = options["data"]
    arguments["out"] = str(out / PRETRAINED / name)
    return complete_pretraining(read_options(Pretraining, arguments))


def _product(vary: Mapping[str, list], pretrainings: list[Pretraining]) -> list[dict]:
    """The settings that distinguish the measurements, one dict for each."""
    lists = []
    for key, values in vary.items():
        full = isinstance(values, list) and values
        require(bool(full), "vary", f"a list for {key}", values)
        tables = [value if isinstance(value, dict) else {key: value} for value in values]
        lists.append([e for table in tables for e in _checkpoints(table, pretrainings)])
    count = math.prod(map(len, lists))
    require(count <= MOST, "vary", f"at most {MOST:,} measurements", count)
    return [
        {name: value for table in choice for name, value in table.items()}
        for choice in itertools.product(*lists)
    ]


def _checkpoints(table: dict, pretrainings: list[Pretraining]) -> list[dict]:
    """[table], or one table for each checkpoint that its model "pretrained/NAME/*" stands for."""
    model = table.get("model")
    if not isinstance(model, str):
        return [table]  # reading the settings will refuse it
    if not (model.startswith(PRETRAINED + "/") and model.endswith("/*")):
        return [table]
    folder = model.removesuffix("/*")
    for pretraining in pretrainings:
        if pretraining.out.endswith(folder):
            steps = pretraining.checkpoints
            return [table | {"model": f"{folder}/step-{step}"} for step in steps]
    raise ValueError(f"vary: wanted a model of a table pretrain, got {model!r}")


def _label(settings: Settings) -> str:
    """The name of a measurement in the report: its model and task, and how a model that writes is
    trained."""
    parts = settings.model_name, settings.task, OBJECTIVES[settings.objective]
    return ", ".join(filter(None, parts))


def _step_along_pretraining(varied: Mapping[str, object]) -> float | None:
    """After how many steps of pre-training the model was saved: the number at the end of a varied
    revision or model, such as 200 of "step-200" or 20000 of "step_20k"."""
    for key in ("revision", "model"):
        step = re.search(r"step[-_]?(\d+)(k?)$", str(varied.get(key)))
        if step:
            return int(step[1]) * (1000 if step[2] else 1)
    return None
