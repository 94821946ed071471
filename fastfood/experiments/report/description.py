"""What a report needs of study.json, checked as a whole before any of it is used: the file may be
cut off, changed by hand, or another program's."""

import math
from collections.abc import Mapping

from ..settings.measurement import KINDS, SIZED_METHODS, check, read_settings
from ..settings.options import LARGEST, is_plain, require

_TEXTS = ("name", "title", "kind", "scale", "command", "study")
_FACTS = {"device": str, "model_hash": str, "data_hash": str, "D": int, "num_labels": int}
_FACTS |= {"overlap": int, "sizes": dict, "splits": dict, "contamination": list, "counts": dict}


def described(content: dict) -> dict:
    """`content`, what was read from study.json, with the defaults of settings that it lacks.

    Raises ValueError, KeyError or TypeError naming what is missing or of another form.
    """
    for name in _TEXTS:
        _require_text(name, content[name])
    require(content["kind"] in KINDS, "kind", f"one of {', '.join(KINDS)}", content["kind"])
    _require_text("note", content.get("note") or "")
    _require_text("storage", content["storage"] or "")
    measures = content["measures"]
    require(isinstance(measures, list) and measures, "measures", "a list", measures)
    for measure in measures:
        _require_text("label", measure["label"])
        place = measure["x"]
        require(place is None or _is_number(place), "x", "a number", place)
        given = measure["settings"]
        require(isinstance(given, dict), "settings", "a table", given)
        settings = read_settings(given)
        check(settings)
        _check_facts(measure["facts"], settings)
        measure["settings"] = settings.model_dump()
    return content


def _check_facts(facts: Mapping[str, object], settings) -> None:
    for name, kind in _FACTS.items():
        require(isinstance(facts[name], kind), name, f"a {kind.__name__}", facts[name])
    counts = [facts["D"], facts["num_labels"], facts["m"] or 1]
    for method in set(SIZED_METHODS) & set(settings.methods):
        counts += [facts["counts"][method][str(size)] for size in settings.sizes]
    for count in counts:
        fits = isinstance(count, int) and 1 <= count <= LARGEST
        require(fits, "facts", "a count of at least 1", count)
    for count in (*facts["sizes"].values(), facts["overlap"]):
        fits = isinstance(count, int) and 0 <= count <= LARGEST
        require(fits, "facts", "a count", count)
    majority = facts["majority"]
    fits = _is_number(majority) and 0 <= majority <= 1
    require(fits, "majority", "a share in [0, 1]", majority)
    texts = [*facts["splits"], *facts["splits"].values(), *facts["contamination"]]
    for text in (*texts, facts["device"], facts["model_hash"], facts["data_hash"]):
        _require_text("facts", text)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) <= LARGEST


def _require_text(name: str, text: object) -> None:
    plain = isinstance(text, str) and is_plain(text.replace("\n", ""))
    require(plain, name, "a text", text)
