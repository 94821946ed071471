"""Studies as TOML files: the settings of several measurements, each stated, and the models that are
to be pre-trained for them. The folder `recipes` holds those of the paper's table and figures
(Aghajanyan, Gupta, Zettlemoyer, 2021).

A recipe has `title`, `kind` (which figure its report draws), `note`, a table `settings`, a table
`vary` and tables `pretrain`. The measurements are the product of the lists in `vary`, whose entries
are values of a setting or tables of several. A table `small` holds the same keys once more, which
replace those above at `--scale small`. A model "pretrained/NAME/*" stands for every checkpoint of
the pre-training NAME."""

import itertools
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from . import options, pretrain
from .config import Settings, check_out, complete, read_settings
from .pretrain import Pretraining
from .report.display import model_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "recipes"
KINDS = ("d90", "table1", "figure1", "figure2", "figure3", "figure4", "figure5")
KEYS = ("title", "kind", "note", "settings", "vary", "pretrain", "small")
PRETRAINED = "pretrained"


class Planned(NamedTuple):
    """A study before anything was loaded. `measures` are (label, x, settings)."""

    name: str
    title: str
    kind: str
    scale: str
    note: str
    out: Path
    measures: list[tuple[str, float | None, Settings]]
    pretrainings: list[Pretraining]


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
        parsed = {**parsed, **small, "settings": parsed["settings"] | small.get("settings", {})}
    name = path.stem + ("-small" if scale == "small" else "")
    out = Path(given.get("out") or name)
    check_out(out)
    pretrainings = [_pretraining(table, out, given) for table in parsed["pretrain"]]
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
    path = FOLDER / f"{recipe}.toml" if recipe in names() else Path(recipe)
    try:
        parsed = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        wanted = f"a TOML file or one of {', '.join(names())}"
        raise ValueError(f"recipe: wanted {wanted}, got {recipe!r} ({error})") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"recipe: wanted TOML in {path}, got {error}") from None
    _check_tables(parsed, path)
    parsed = {"note": "", "vary": {}, "settings": {}, "pretrain": []} | parsed
    parsed.setdefault("title", path.stem)
    if parsed.get("kind") not in KINDS:
        wanted = f"kind = one of {', '.join(KINDS)}"
        raise ValueError(f"recipe: wanted {wanted} in {path}, got {parsed.get('kind')!r}")
    return path, parsed


def _check_tables(parsed: dict, path: Path) -> None:
    for key in ("settings", "vary", "small"):
        if not isinstance(parsed.get(key, {}), dict):
            raise ValueError(f"recipe: wanted a table {key} in {path}, got {parsed[key]!r}")
    for table in (parsed, parsed.get("small", {})):
        unknown = set(table) - set(KEYS)
        if unknown:
            wanted = f"keys among {', '.join(KEYS)}"
            raise ValueError(f"recipe: wanted {wanted} in {path}, got {sorted(unknown)}")
        many = table.get("pretrain", [])
        if not isinstance(many, list) or not all(isinstance(one, dict) for one in many):
            raise ValueError(f"recipe: wanted tables pretrain in {path}, got {many!r}")


def _pretraining(
    table: Mapping[str, object], out: Path, given: Mapping[str, object]
) -> Pretraining:
    """One pre-training, which goes into OUT/pretrained/NAME."""
    if "name" not in table:
        raise ValueError(f"pretrain: wanted a name in each table, got {dict(table)}")
    arguments = {key: value for key, value in table.items() if key != "name"}
    if "data" in given and arguments.get("task", Pretraining.task) != "digits":
        arguments["data"] = given["data"]
    arguments["out"] = str(out / PRETRAINED / table["name"])
    return pretrain.complete(options.read(Pretraining, arguments))


def _product(vary: Mapping[str, list], pretrainings: list[Pretraining]) -> list[dict]:
    """The settings that distinguish each measurement."""
    lists = []
    for key, values in vary.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"vary: wanted lists, got {key} = {values!r}")
        tables = [value if isinstance(value, dict) else {key: value} for value in values]
        lists.append([e for table in tables for e in _checkpoints(table, pretrainings)])
    return [
        {name: value for table in choice for name, value in table.items()}
        for choice in itertools.product(*lists)
    ]


def _checkpoints(table: dict, pretrainings: list[Pretraining]) -> list[dict]:
    """[table], or one table for each checkpoint that its model "pretrained/NAME/*" stands for."""
    model = table.get("model", "")
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
