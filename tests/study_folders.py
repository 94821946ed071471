"""Folders of studies without training: study.json, and a record of scores that follow a curve."""

import json
from collections import namedtuple
from dataclasses import asdict

from fastfood.experiments.config import Settings, complete
from fastfood.experiments.plan import trial_key, trials

Entry = namedtuple("Entry", "state error final seconds environment")
ENVIRONMENT = {
    "versions": {"python": "3.13.0", "torch": "2.10.0"},
    "hardware": {"cpu": "a CPU", "cores": 2},
}


class FakeRecord:
    """The reading half of a record."""

    def __init__(self):
        self.results, self.entries, self.trials = {}, {}, []

    def read(self):
        pass

    def known(self):
        return self.results

    def decided(self, prune):
        closed = {key: None for key, entry in self.entries.items() if entry.final}
        return closed | self.results

    def states(self):
        return self.entries

    def add(self, trial, result=None, state="complete", error=None, final=False):
        key = trial_key(trial)
        self.trials.append(trial)
        if result is not None:
            self.results[key] = result
        seconds = None if state == "running" else 12.5
        self.entries[key] = Entry(state, error, final, seconds, ENVIRONMENT if result else {})


def facts(D=100_000, majority=0.5, **changes):
    return {
        "device": "cpu",
        "D": D,
        "m": 7,
        "splits": {"train": "train, 1,000 rows", "validation": "dev", "test": "test"},
        "sizes": {"train": 1000, "validation": 200, "test": 500},
        "majority": majority,
        "num_labels": 2,
        "overlap": 3,
        "contamination": ["3 test rows are training rows too"],
        "model_hash": f"model{D}",
        "data_hash": "0123456789abcdef",
        "counts": {
            "lora": {"1": 900, "4": 3600, "16": 14400},
            "vera": {"1": 500, "4": 512, "16": 560},
            "tinylora": {"1": 210, "4": 240, "16": 360},
        },
    } | changes


def score(trial, half=300, full=0.92, majority=0.5):
    """A score that rises with d from the majority rate; at d = `half` it is half of the way up."""
    rise = 1.0 if trial["method"] == "full" else trial["d"] / (trial["d"] + half)
    rise *= {"said": 1.02, "vera": 0.8}.get(trial["method"], 1.0)
    noise = int(trial_key(trial)[:4], 16) / 0xFFFF - 0.5
    test = min(0.99, majority + (full - majority) * min(1, rise) + 0.015 * noise)
    return {
        "validation": test - 0.01 * trial["learning_rate"],
        "test": test,
        "test_accuracy": test,
        "train_accuracy": min(1.0, test + 0.04) if trial["gap_rows"] else None,
        "trained": trial["d"],
        "seconds": 12.5,
    }


def draw_nothing(results, folder):
    """Stands for the drawing of figures, which takes a second."""
    for name in {"figure1", results["kind"]} - {"d90"}:
        (folder / f"{name}.svg").write_text("<svg/>")
    return []


def write_study(folder, kind, measures, scores=score, share=1.0, title="a study"):
    """Writes DIR/study.json and returns a record that holds the first `share` of the trials.

    `measures` are (label, x, settings given, facts, arguments of `scores`).
    """
    folder.mkdir(exist_ok=True)
    record, told = FakeRecord(), []
    for label, x, given, found, shape in measures:
        base = {"lrs": (0.1, 0.4), "full_lrs": (1e-5,), "out": str(folder), "seeds": 2}
        settings = complete(Settings(**base | given))
        told.append({"label": label, "x": x, "settings": asdict(settings), "facts": found})
        asked = trials(settings, found, record.results)
        for trial in asked[: round(share * len(asked))]:
            record.add(trial, scores(trial, majority=found["majority"], **shape))
    description = {
        "name": folder.name,
        "title": title,
        "kind": kind,
        "scale": "small",
        "note": "",
        "command": f"fastfood study {kind} --scale small",
        "storage": None,
        "study": "fastfood",
        "pretrainings": [],
        "measures": told,
    }
    (folder / "study.json").write_text(json.dumps(description))
    return record


DIMS = (10, 30, 100, 300, 1000, 3000, 10000)
TEXT = {"task": "glue/sst2", "model": "MiniLM-L6", "dims": DIMS}
MODELS = {  # millions of parameters
    "bert-base-cased": 108,
    "bert-large-cased": 333,
    "roberta-base": 124,
    "roberta-large": 355,
    "albert-base-v2": 12,
    "electra-small-discriminator": 14,
    "t5-small": 60,
    "xlm-roberta-base": 278,
}


def measures_of(kind, **given):
    """What a small study of this kind measures; `given` are settings of all of them."""
    given = TEXT | given
    if kind in ("d90", "figure1"):
        methods = ("did", "said") if kind == "d90" else ("did", "said", "lora", "vera", "tinylora")
        given = {"methods": methods} | given
        return [("MiniLM-L6, glue/sst2", None, given, facts(22_713_216), {})]
    if kind in ("table1", "figure3"):
        models = list(MODELS.items())[: 2 if kind == "table1" else None]
        tasks = ("glue/mrpc", "glue/qqp") if kind == "table1" else ("glue/mrpc",)
        return [
            (
                f"{name}, {task}",
                None,
                given | {"model": name, "task": task},
                facts(10**6 * millions),
                {"half": 30_000 // millions},
            )
            for task in tasks
            for name, millions in models
        ]
    return [
        (
            f"step-{step}, {task}",
            step,
            given | {"model": f"pretrained/a/step-{step}", "task": task, "gap_rows": 100},
            facts(22_713_216, model_hash=f"model{step}"),
            {"half": 4000 / (i + 1) / (step / 100 + 1), "full": 0.8 + 0.02 * i + step / 20_000},
        )
        for i, task in enumerate(("glue/sst2", "glue/mrpc"))
        for step in (0, 400, 1600)
    ]
