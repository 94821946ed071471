"""Tests of the report of a study that ended after 84 of its 126 trials, so that every point has at
most two of three seeds, and of its report after even fewer trials."""

import json
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot
from study_folders import facts, measures_of, score, write_study

from fastfood.experiments.report import figure_curves, figures, headline, writer
from fastfood.experiments.settings.measurement import read_settings
from fastfood.experiments.settings.trial import Facts
from fastfood.experiments.trials.plan import trials

GIVEN = {"task": "glue/sst2", "model": "MiniLM-L6", "dims": (100, 300, 1000, 3000, 10000)}
GIVEN |= {"lr_factors": (4.0, 8.0, 16.0, 32.0), "lrs": None, "full_lrs": (5e-5, 1e-4), "seeds": 3}
LABEL = "MiniLM-L6, glue/sst2"


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    monkeypatch.setattr(figures, "DPI", 40)
    yield
    pyplot.close("all")


def _accelerated(trial, **shape):
    return replace(score(trial, **shape), accelerator="a GPU")


def _stopped(folder, done=84):
    """The results of a study of 126 trials whose first `done` have finished."""
    measures = [(LABEL, None, GIVEN | {"methods": ("did", "said")}, facts(22_713_986), {})]
    record = write_study(folder, "d90", measures, _accelerated, share=done / 126)
    results = writer.gather(folder, record)
    assert (results.progress.asked, results.progress.complete) == (126, done)
    return results


def test_two_of_three_seeds_are_reported(tmp_path):
    results = _stopped(tmp_path)
    (measure,) = results.measures
    assert len(measure.points) == 1 + 2 * 5
    assert measure.full.whole and measure.full.seeds == (0, 1, 2)
    for point in measure.points[1:]:
        assert not point.whole and point.seeds_asked == 3 and len(point.rates) == 4
        assert point.seeds in ((0,), (0, 1))  # the last rates of d = 10000 have one seed
    for method, d90 in measure.summary.d90.items():
        assert d90.so_far and d90.text.endswith(" so far") and d90.value in GIVEN["dims"], method


def test_the_headline_says_how_much_there_is(tmp_path):
    found, done, partial = headline.headline(_stopped(tmp_path))
    assert "; d90, the trained parameters that reach 90 % of it: DID " in found
    assert found.count(" so far") == 2
    assert done == "This study is not finished: 84 of 126 trials are done."
    assert partial.startswith("Not whole yet, and may change: 10 of 11 points, which rest on ")
    assert partial.endswith("of 3 seeds or lack a learning rate.")


def test_the_files_say_what_is_partial(tmp_path):
    results = _stopped(tmp_path)
    writer.write_results(results, tmp_path)
    (kept,) = json.loads((tmp_path / "results.json").read_text())["measures"]
    assert [point["whole"] for point in kept["points"]] == [True] + 10 * [False]
    assert kept["summary"]["d90"]["did"]["so_far"] is True
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text()
        assert (
            text.count("2 of 3") > 8
            and "| 84 trials on | a GPU; a CPU, 2 cores |" in text
            or "<td>a GPU; a CPU, 2 cores</td>" in text
        )
        assert text.count("Hollow points lack seeds or learning rates so far.") == 2
        assert "1 times: " not in text and "the highest rate tried was best at" not in text


def test_the_terminal_counts_the_seeds_of_partial_points(tmp_path):
    from rich.console import Console

    console = Console(record=True, width=100)
    writer.print_report(console, _stopped(tmp_path))
    text = console.export_text()
    assert text.count("2 of 3") >= 9 and "so far" in text


def _hollow(axes):
    """How many points of the curves are white inside, without the markers of d90 below y = 1."""
    hollow = [line for line in axes.lines if line.get_mfc() == "white"]
    return sum(len(line.get_xdata()) for line in hollow if min(line.get_ydata()) > 1)


def test_partial_points_are_hollow_and_whole_ones_filled(tmp_path):
    results = _stopped(tmp_path / "stopped")
    figure = figure_curves.draw(pyplot, results)
    (axes,) = figure.axes
    curves = [line for line in axes.lines if list(line.get_xdata()) == list(GIVEN["dims"])]
    assert len(curves) == 2 * 2 and _hollow(axes) == 2 * 5  # a line and hollow markers each
    assert figure_curves.PARTIAL in [text.get_text() for text in axes.texts]
    assert "of 3 seeds" in axes.get_title(loc="left")
    figure = figure_curves.draw(pyplot, _stopped(tmp_path / "done", 126))
    assert _hollow(figure.axes[0]) == 0
    assert figure_curves.PARTIAL not in [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize(
    ("done", "seeds", "said"),
    [(2, 0, "No d90 yet."), (6, 0, "No d90 yet."), (46, 1, "DID"), (86, 2, "DID")],
)
def test_a_study_shows_what_it_has_after_each_seed(tmp_path, done, seeds, said):
    results = _stopped(tmp_path, done)
    points = [point for point in results.measures[0].points if point.method != "full"]
    assert len(points) == (10 if seeds else 0)
    assert {point.seeds for point in points} == ({tuple(range(seeds))} if seeds else set())
    assert any(said in sentence for sentence in headline.headline(results))
    for d90 in results.measures[0].summary.d90.values():
        assert d90.text.endswith(" so far") and ("[" in d90.text) == (seeds > 1)


def test_a_figure_has_marks_as_soon_as_there_are_two_points(tmp_path):
    results = _stopped(tmp_path, 7)  # the full run, and one rate of the first d
    assert [point.d for point in results.measures[0].points] == [22_713_986, 100]
    figure = figure_curves.draw(pyplot, results)
    assert _hollow(figure.axes[0]) == 1


@pytest.mark.parametrize("kind", ["table1", "figure2", "figure3", "figure4", "figure5"])
def test_every_figure_of_an_unfinished_study_has_half_filled_marks(tmp_path, kind):
    measures = measures_of(kind, dims=(10, 100, 1000), lrs=(0.1, 0.4), seeds=3)
    record = write_study(tmp_path, kind, measures, share=0.7)
    results = writer.gather(tmp_path, record)
    with pyplot.rc_context(figures.SHAPE):
        figure = figures._DRAWINGS[kind](pyplot, results)
    half = [line for line in figure.axes[0].lines if line.get_fillstyle() == "bottom"]
    assert half and all(np.isfinite(line.get_ydata()).all() for line in half)
    (legend,) = figure.legends
    assert "so far: runs are missing" in [text.get_text() for text in legend.get_texts()]


def test_a_failed_trial_leaves_its_point_partial_until_it_is_run_again(tmp_path):
    record = write_study(tmp_path, "d90", measures_of("d90", dims=(10, 100)), share=1.0)
    (told,) = json.loads((tmp_path / "study.json").read_text())["measures"]
    asked = trials(read_settings(told["settings"]), Facts(**told["facts"]), record.results)
    failed = next(trial for trial in asked if trial.method == "did" and trial.d == 100)
    record.add(failed, state="failed", error="RuntimeError: no memory")
    del record.results[failed.key]
    (measure,) = writer.gather(tmp_path, record).measures
    assert [(p.method, p.d) for p in measure.points if not p.whole] == [("did", 100)]
    assert measure.summary.d90["did"].so_far and not measure.summary.d90["said"].so_far
