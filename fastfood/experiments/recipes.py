"""Studies as TOML files: the settings of several measurements, each stated, and the models that are
to be pre-trained for them. The folder `recipes` holds those of the paper's table and figures
(Aghajanyan, Gupta, Zettlemoyer, 2021).

A recipe has `title`, `kind` (which figure its report draws), `note`, a table `settings`, a table
`vary` and tables `pretrain`. The measurements are the product of the lists in `vary`, whose entries
are values of a setting or tables of several. A table `small` holds the same keys once more, which
replace those above at `--scale small`. `base` names a recipe of the package, or a file beside this
one, whose keys hold where this one has none. `settings` and `small` are replaced key by key, all
else as a whole. A model "pretrained/NAME/*" stands for all checkpoints of the pre-training NAME."""

import itertools
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from .settings import options
from .settings.measurement import KINDS, Settings, check_folder, complete, model_name, read_settings
from .settings.pretraining import Pretraining
from .settings.pretraining import complete as complete_pretraining
from .settings.study import Planned

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "recipes"
KEYS = ("title", "kind", "note", "settings", "vary", "pretrain")
PRETRAINED = "pretrained"
MOST = 1_000  # measurements of a study


def names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def single(settings: Settings) -> Planned:
    """The study of `fastfood d90`: one measurement of completed settings."""
    title = f"d90 of {model_name(asdict(settings))} on {settings.task}"
    measures = [(_label(settings), None, settings)]
    out = Path(settings.out)
    return Planned(out.name, title, "d90", "full", "", out, measures, [])


def read(recipe: str, scale: str, given: Mapping[str, object]) -> Planned:
    """Reads a recipe, by its file or its name here, at scale "full" or "small".

    `given` are settings that replace the recipe's. Raises ValueError naming the key, what was
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
    out = Path(given.get("out") or name)
    check_folder(out)
    pretrainings = [_pretraining(table, out, given) for table in parsed["pretrain"]]
    folders = [pretraining.out for pretraining in pretrainings]
    once = len(set(folders)) == len(folders)
    options.require(once, "pretrain", "another name in each table", folders)
    measures = []
    for varied in _product(parsed["vary"], pretrainings):
        for key in set(varied) & set(given):
            wanted = "nothing, because the recipe varies it"
            raise ValueError(f"{key}: wanted {wanted}, got {given[key]!r}")
        values = parsed["settings"] | varied | dict(given) | {"out": str(out)}
        if values.get("task", Settings.task) == "digits":
            values.pop("data", None)  # given for the other tasks
        model = values.get("model")
        if str(model).startswith(PRETRAINED + "/"):
            values["model"] = str(out / model)
        settings = complete(read_settings(values))
        measures.append((_label(settings), _place(varied), settings))
    return Planned(
        name, parsed["title"], parsed["kind"], scale, parsed["note"], out, measures, pretrainings
    )


def _parse(recipe: str) -> tuple[Path, dict]:
    path = _path(recipe)
    parsed = {"note": "", "vary": {}, "settings": {}, "pretrain": []} | _load(path, recipe, ())
    parsed.setdefault("title", path.stem)
    for table in (parsed, {"kind": parsed.get("kind"), **parsed.get("small", {})}):
        wanted = f"kind = one of {', '.join(KINDS)} in {path}"
        options.require(table.get("kind") in KINDS, "recipe", wanted, table.get("kind"))
    return path, parsed


def _path(recipe: str, folder: Path = Path()) -> Path:
    return FOLDER / f"{recipe}.toml" if recipe in names() else folder / recipe


def _load(path: Path, recipe: str, above: tuple[Path, ...]) -> dict:
    """The checked tables of a recipe, over those that it builds on; `above` are the files that
    build on it."""
    what = "base" if above else "recipe"
    real = Path(os.path.realpath(path))  # also of a link to itself
    if real in above:
        wanted = "a recipe that is not built on itself"
        raise ValueError(f"base: wanted {wanted}, got {recipe!r} in {above[-1]}")
    try:
        parsed = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        wanted = f"a TOML file or one of {', '.join(names())}"
        raise ValueError(f"{what}: wanted {wanted}, got {recipe!r} ({error})") from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a ValueError
        raise ValueError(f"{what}: wanted TOML in {path}, got {error}") from None
    _check_tables(parsed, path)
    base = parsed.pop("base", None)
    if base is None:
        return parsed
    below = _load(_path(base, path.parent), base, (*above, real))
    return _replaced(below, parsed)


def _replaced(tables: dict, by: dict) -> dict:
    """`tables` with the keys of `by` in the place of its own."""
    merged = {
        key: _replaced(tables[key], by[key])
        for key in ("settings", "small")
        if isinstance(tables.get(key), dict) and isinstance(by.get(key), dict)
    }
    return tables | by | merged


def _check_tables(parsed: dict, path: Path) -> None:
    base, small = parsed.get("base", ""), parsed.get("small", {})
    plain = isinstance(base, str) and options.is_plain(base)
    options.require(plain, "base", f"a recipe's name or file in {path}", base)
    options.require(isinstance(small, dict), "recipe", f"a table small in {path}", small)
    for table, keys in ((parsed, (*KEYS, "small", "base")), (small, KEYS)):
        wanted = f"keys among {', '.join(keys)} in {path}"
        options.require(set(table) <= set(keys), "recipe", wanted, sorted(set(table) - set(keys)))
        for key in ("title", "note"):
            text = table.get(key, "")
            fits = isinstance(text, str) and options.is_plain(text.replace("\n", ""))
            options.require(fits, "recipe", f"a text {key} in {path}", text)
        for key in ("settings", "vary"):
            inner = table.get(key, {})
            options.require(isinstance(inner, dict), "recipe", f"a table {key} in {path}", inner)
        many = table.get("pretrain", [])
        fits = isinstance(many, list) and all(isinstance(one, dict) for one in many)
        options.require(fits, "recipe", f"tables pretrain in {path}", many)


def _pretraining(
    table: Mapping[str, object], out: Path, given: Mapping[str, object]
) -> Pretraining:
    """One pre-training, which goes into OUT/pretrained/NAME."""
    name = str(table.get("name", ""))
    fits = re.fullmatch(r"[\w.+ -]+", name) and name.strip(". ") == name
    options.require(bool(fits), "pretrain", "a name in each table, of one folder", dict(table))
    arguments = {key: value for key, value in table.items() if key != "name"}
    if "data" in given and arguments.get("task", Pretraining.task) != "digits":
        arguments["data"] = given["data"]
    arguments["out"] = str(out / PRETRAINED / name)
    return complete_pretraining(options.read(Pretraining, arguments))


def _product(vary: Mapping[str, list], pretrainings: list[Pretraining]) -> list[dict]:
    """The settings that distinguish each measurement."""
    lists = []
    for key, values in vary.items():
        full = isinstance(values, list) and values
        options.require(bool(full), "vary", f"a list for {key}", values)
        tables = [value if isinstance(value, dict) else {key: value} for value in values]
        lists.append([e for table in tables for e in _checkpoints(table, pretrainings)])
    count = math.prod(map(len, lists))
    options.require(count <= MOST, "vary", f"at most {MOST:,} measurements", count)
    return [
        {name: value for table in choice for name, value in table.items()}
        for choice in itertools.product(*lists)
    ]


def _checkpoints(table: dict, pretrainings: list[Pretraining]) -> list[dict]:
    """[table], or one table for each checkpoint that its model "pretrained/NAME/*" stands for."""
    model = table.get("model")
    if not isinstance(model, str):
        return [table]  # refused where the setting is read
    if not (model.startswith(PRETRAINED + "/") and model.endswith("/*")):
        return [table]
    folder = model.removesuffix("/*")
    for pretraining in pretrainings:
        if pretraining.out.endswith(folder):
            steps = pretraining.checkpoints
            return [table | {"model": f"{folder}/step-{step}"} for step in steps]
    raise ValueError(f"vary: wanted a model of a table pretrain, got {model!r}")


def _label(settings: Settings) -> str:
    """What a measurement is called in the report: its model and task."""
    return f"{model_name(asdict(settings))}, {settings.task}"


def _place(varied: Mapping[str, object]) -> float | None:
    """The number at the end of a varied revision or model, such as 200 of "step-200" or 20000 of
    "step_20k": where a measurement stands along pre-training."""
    for key in ("revision", "model"):
        found = re.search(r"step[-_]?(\d+)(k?)$", str(varied.get(key)))
        if found:
            return int(found[1]) * (1000 if found[2] else 1)
    return None
