"""Tests of the figures: every kind in every state of a study, what is drawn where, and that texts
cover neither each other nor leave the picture."""

import itertools
import math
import re
from dataclasses import replace

import pytest
from study_folders import TEXT, WITHOUT_WARNINGS, facts, measures_of, score, write_study
from trials import trial_of

from fastfood.experiments.report import display, figures, writer
from fastfood.experiments.report.results import MeasureResults
from fastfood.experiments.settings.measurement import Settings
from fastfood.experiments.settings.trial import Score
from fastfood.experiments.trials import curves

STATES = {
    "complete": {},
    "half": {"share": 0.5},
    "empty": {"share": 0.0},
    "censored": {"scores": lambda trial, **shape: score(trial, **shape | {"half": 10**6})},
    "useless": {"scores": lambda trial, **shape: score(trial, **shape | {"full": 0.3})},
}


def _results(folder, kind, given=None, **state):
    record = write_study(folder, kind, measures_of(kind, **(given or {})), **state)
    return writer.gather(folder, record)


@pytest.fixture
def quick(monkeypatch):
    """Makes pictures coarse, and leaves out the curves of the single measures."""
    monkeypatch.setattr(figures, "DPI", 60)
    monkeypatch.setattr(figures.figure_curves, "draw", lambda pyplot, _: pyplot.figure())


@WITHOUT_WARNINGS
@pytest.mark.parametrize("kind", ["figure1", "table1"])
def test_a_complete_study_is_drawn(tmp_path, kind):
    results = _results(tmp_path / "study", kind)
    paths = figures.draw(results, tmp_path)
    stems = ["table1", "figure1"] if kind == "table1" else ["figure1"]
    assert [p.name for p in paths] == [f"{s}.{form}" for s in stems for form in ("png", "svg")]
    for path in paths:
        start = {".png": b"\x89PNG", ".svg": b"<?xml"}[path.suffix]
        assert path.read_bytes().startswith(start) and path.stat().st_size > 15_000
    assert not list(tmp_path.glob(".*"))


@WITHOUT_WARNINGS
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", ["table1", "figure2", "figure3", "figure4", "figure5"])
def test_a_figure_is_drawn_for_whatever_came_out(tmp_path, kind, state, quick):
    results = _results(tmp_path / "study", kind, {"dims": (10, 100, 1000)}, **STATES[state])
    path = figures.draw(results, tmp_path)[0]
    assert path.name == f"{kind}.png" and path.stat().st_size > 1500


@WITHOUT_WARNINGS
@pytest.mark.parametrize("state", STATES)
def test_curves_are_drawn_for_whatever_came_out(tmp_path, state, monkeypatch):
    monkeypatch.setattr(figures, "DPI", 60)
    results = _results(tmp_path / "study", "figure1", {"seeds": 1}, **STATES[state])
    assert figures.draw(results, tmp_path)[0].stat().st_size > 3000


def test_the_same_results_make_the_same_file_and_matplotlib_keeps_its_settings(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    results = _results(tmp_path / "study", "d90")
    first = [path.read_bytes() for path in figures.draw(results, tmp_path)]
    assert [path.read_bytes() for path in figures.draw(results, tmp_path)] == first
    before.pop("backend")
    assert {name: matplotlib.rcParams[name] for name in before} == before
    assert not matplotlib.pyplot.get_fignums()


@pytest.mark.parametrize("kind", ["figure3", "figure4"])
def test_labels_lie_inside_and_apart(tmp_path, kind):
    from matplotlib import pyplot
    from matplotlib.text import Text

    results = _results(tmp_path / "study", kind)
    with pyplot.rc_context(figures.SHAPE):
        figure = {"figure3": figures._figure3, "figure4": figures._figure4}[kind](pyplot, results)
    axes = figure.axes[0]
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(label) for label in axes.texts]
    assert len(boxes) == {"figure3": 8, "figure4": 4}[kind]
    inside = axes.get_window_extent()
    for i, box in enumerate(boxes):
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0
        assert not any(box.overlaps(other) for other in boxes[:i])
    pyplot.close(figure)


def test_steps_far_apart_are_named_on_their_axis(tmp_path):
    from matplotlib import pyplot

    results = _results(tmp_path / "study", "figure2", {"dims": (10, 100, 1000)})
    steps = itertools.cycle((0, 50, 200, 3200))
    measures = [replace(measure, x=next(steps)) for measure in results.measures]
    results = replace(results, measures=measures)
    with pyplot.rc_context(figures.SHAPE):
        axes = figures._figure2(pyplot, results).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "50", "200", "3,200"]
    pyplot.close(axes.figure)


def test_a_panel_without_points_has_the_axis_of_a_share(tmp_path):
    from matplotlib import pyplot

    results = _results(tmp_path / "study", "figure1", share=0.0)
    figure = figures.figure_curves.draw(pyplot, results)
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert low <= 0 and high >= 100
    pyplot.close(figure)


# where a d90 is drawn


def _point(method="did", d=10):
    return curves.curve_points([trial_of(method, d)], [Score(0.5, 0.5)])[0]


def _measure(value, low, high, tested=(10, 100, 1000), so_far=False):
    d90 = curves.D90(0.45, value, low, high, False, "", so_far)
    summary = curves.Summary(0.5, 0.45, {"did": d90}, ())
    points = [_point(d=d) for d in tested]
    return MeasureResults("one", None, {}, {}, summary, points, None)


@pytest.mark.parametrize(
    ("d90", "mark"),
    [
        ((100, 10, 1000), (100, 10, 1000, None, False, False)),
        ((100, 100, math.inf), (100, 100, 1000, None, True, False)),
        ((math.inf, 100, math.inf), (1000, 100, 1000, "above", True, False)),
        ((10, 10, 100), (10, 10, 100, "below", False, False)),
        ((None, None, None), None),
        ((100, 10, 1000, (10, 1000), True), (100, 10, 1000, None, False, True)),
    ],
)
def test_a_d90_is_cut_to_the_tested_d(d90, mark):
    assert display.d90_mark(_measure(*d90), "did") == mark
    assert display.d90_mark(_measure(*d90), "said") is None


def test_relative_gaps_are_of_accuracies_by_seed():
    point = replace(_point(), test_accuracy=(0.8, 0.6), train_accuracy=(0.9, 1.0))
    assert display.gaps(point) == pytest.approx([0.5, 1.0])  # 0.1 / 0.2 and 0.4 / 0.4
    assert display.gaps(replace(point, train_accuracy=(None, None))) == []
    assert display.gaps(replace(point, test_accuracy=(1.0, 0.6))) == []


@pytest.mark.parametrize(
    ("model", "revision", "name"),
    [
        (None, None, "small ViT"),
        ("google/bert", None, "bert"),
        ("google/multiberts-seed_0-step_20k", None, "multiberts-seed_0-step_20k"),
        ("/models/roberta", "main", "roberta@main"),
        ("out/pretrained/vit-16/step-800", None, "vit-16 step-800"),
        ("step-800", None, "step-800"),
        (".", None, "."),
    ],
)
def test_models_are_named_so_that_they_differ(model, revision, name):
    assert Settings(model=model, revision=revision).model_name == name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("bert-base-uncased", "BERT-base"),
        ("google-bert/bert-large-cased", "BERT-large"),
        ("FacebookAI/roberta-large", "RoBERTa-large"),
        ("/models/roberta-base", "RoBERTa-base"),
        ("somebody/roberta-base", None),
        ("FacebookAI/bert-base-cased", None),
        ("distilroberta-base", None),
        ("bert-base-multilingual-cased", None),
        (None, None),
    ],
)
def test_models_agree_with_the_papers_by_their_whole_name(model, name):
    assert display.paper_model(Settings(model=model)) == name
    assert display.paper_model(Settings(model=model, revision="step-10")) is None


def test_the_papers_d90s_are_those_of_its_table():
    given = {"task": "glue/mrpc", "model": "roberta-large", "metric": "accuracy"}
    assert display.paper_d90(Settings(**given)) == {"said": 207, "did": 322}
    assert display.paper_d90(Settings(**given | {"metric": "f1"})) == {}
    assert display.paper_d90(Settings(**given | {"task": "glue/sst2"})) == {}
    qqp = given | {"task": "glue/qqp", "model": "bert-base-cased"}
    assert display.paper_d90(Settings(**qqp)) == {"said": 8030, "did": 9295}


def test_every_method_has_a_style_of_its_own():
    from fastfood.experiments.settings.measurement import METHODS

    styles = figures.STYLES
    assert set(styles) == set(METHODS) and {"base", "full", *METHODS} == set(display.METHOD_NAMES)
    for part in ("color", "marker", "linestyle"):
        assert len({str(style[part]) for style in styles.values()}) == len(METHODS)


def test_the_figure_names_each_d90(tmp_path):
    given = TEXT | {"methods": ("did", "lora")}
    measures = [("one", None, given, facts(), {})]
    results = writer.gather(tmp_path / "s", write_study(tmp_path / "s", "figure1", measures))
    from matplotlib import pyplot

    figure = figures.figure_curves.draw(pyplot, results)
    texts = [text.get_text() for text in figure.axes[0].texts]
    pyplot.close(figure)
    for method, name in (("did", "DID"), ("lora", "LoRA")):
        d90 = results.measures[0].summary.d90[method].text
        assert f"{name}: {d90}" in texts
    assert any(re.fullmatch(r"90 % of full, \d\d\.\d", text) for text in texts)
