"""Tests of the report on models that write: the base model beside the curves, the gain over it in
words, tables and figures, relative metrics, left-out values of d, and studies without a gain."""

import json
import math
import re
from dataclasses import replace

import pytest
from matplotlib import pyplot
from study_folders import LOSS, WITHOUT_WARNINGS, draw_nothing, write_study, writing_measure

from fastfood.experiments import recipes
from fastfood.experiments.report import display, figure_curves, figures, headline, writer
from fastfood.experiments.settings.measurement import Settings, complete
from fastfood.experiments.trials.curves import summarise

EXACT = {"half": 60, "full": 0.62}
REWARD = {"metric": "reward", "objective": "grpo", "reward": "rewards:right"}


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def _exact(**given):
    return writing_measure(EXACT, **given)


def _loss(**given):
    return writing_measure(LOSS | {"half": 20}, {"model_hash": "loss"}, metric="loss", **given)


def _reward(**given):
    shape = {"half": 16, "full": 0.66, "base": 0.2}
    return writing_measure(shape, {"model_hash": "reward"}, **REWARD | given)


def _worse(**given):
    return writing_measure({"base": -1.0, "full": -1.5}, metric="loss", **given)


def _gather(folder, *measures, kind="figure1", **state):
    record = write_study(folder, kind, list(measures), **state)
    return writer.gather(folder, record)


def _report(folder, results, monkeypatch):
    """What the files say: results.json, Markdown."""
    monkeypatch.setattr(figures, "draw", draw_nothing)
    writer.write_results(results, folder)
    return json.loads((folder / "results.json").read_text()), (folder / "report.md").read_text()


def _terminal(results):
    from rich.console import Console

    console = Console(record=True, width=140)
    writer.print_report(console, results)
    return console.export_text()


def _texts(axes):
    return [text.get_text() for text in axes.texts]


# in words


def test_the_headline_says_where_the_base_model_stands(tmp_path):
    (sentence,) = headline.headline(_gather(tmp_path, _exact()))
    start = r"SmolLM2-135M, gsm8k, SFT: full fine-tuning of D = 134,515,008 reaches 6\d\.\d %, "
    start += r"the base model 1\d\.\d %; d90, the trained parameters that reach 90 % of the gain: "
    assert re.match(start + r"DID \d+ \[.*\], SAID .*, Uni-LoRA .*, LoRA .*, TinyLoRA ", sentence)


def test_the_headline_of_a_relative_metric_names_both_ends_of_the_gain(tmp_path):
    of_loss, of_reward = headline.headline(_gather(tmp_path, _loss(), _reward()))
    ends = r"takes the loss per token from 3\.2\d* to 1\.0\d* nats; d90, .* 90 % of this gain: DID "
    assert re.search(ends, of_loss)
    assert re.search(r"takes the mean reward from 0\.\d+ to 0\.6\d+; d90, ", of_reward)


@pytest.mark.parametrize(
    ("objective", "name"), [("sft", "m, gsm8k, SFT"), ("grpo", "m, gsm8k, GRPO")]
)
def test_a_measurement_is_named_by_its_objective(tmp_path, objective, name):
    given = {"task": "gsm8k", "model": "m", "out": str(tmp_path / "new")}
    planned = recipes.single(complete(Settings(**given, objective=objective)))
    assert planned.measurements[0].label == name
    plain = recipes.single(complete(Settings(out=str(tmp_path / "new"))))
    assert plain.measurements[0].label == "small ViT, digits"


def test_the_files_have_the_base_model_and_say_that_the_line_is_of_the_gain(tmp_path, monkeypatch):
    results = _gather(tmp_path, _exact())
    kept, text = _report(tmp_path, results, monkeypatch)
    (measure,), base = kept["measures"], kept["trials"][0]
    assert (base["method"], base["d"], base["learning_rate"]) == ("base", 0, 0.0)
    summary = measure["summary"]
    assert summary["base"] == base["test"] and summary["absolute"] is None
    assert summary["line"] == pytest.approx(base["test"] + 0.9 * (summary["full"] - base["test"]))
    row = f"| {100 * summary['full']:.1f} % | {100 * summary['line']:.1f} % "
    assert f"{row}| {100 * base['test']:.1f} % |" in text and "| to beat |" in text
    assert "- d90 is at 90 % of full fine-tuning's gain over the base model, 1" in text
    point = r"\| base model \| +\| 0 \| – \| 1\d\.\d % \| 1 \| – \| 1\d\.\d % \| – \| +\| 12\.5"
    assert re.search(point, text)
    assert "full fine-tuning, 90 % of its gain over the base model, and the base model." in text
    assert "majority class" not in text
    # the task has no majority class
    assert re.search(r"\| gsm8k \| 1,000 \| 200 \| 500 \| – \| 3 \|", text)


def test_the_files_keep_the_scores_of_a_relative_metric(tmp_path, monkeypatch):
    results = _gather(tmp_path, _loss())
    kept, text = _report(tmp_path, results, monkeypatch)
    (measure,), trials = kept["measures"], kept["trials"]
    full = [row["test"] for row in trials if row["method"] == "full"]
    mean = sum(full) / len(full)
    assert trials[0]["test"] == pytest.approx(-3.2, abs=0.01) and mean < -1
    assert measure["summary"]["absolute"] == pytest.approx([trials[0]["test"], mean])
    assert (measure["summary"]["base"], measure["summary"]["full"]) == (0, 1)
    shares = {(p["method"], p["d"]): p["mean"] for p in measure["points"]}
    assert shares["base", 0] == 0 and shares["did", 1] == pytest.approx(1 / 21, abs=0.01)
    assert f"- loss per token: base {-trials[0]['test']:.4g}, full {-mean:.4g} nats" in text
    assert "| 100.0 % | 90.0 % | 0.0 % |" in text
    assert "they are shares of full fine-tuning's gain" in text
    assert "Share of full fine-tuning's gain in the test score over the base model against" in text


def test_what_a_study_of_classes_is_called_stays(tmp_path, monkeypatch):
    from study_folders import measures_of

    kept, text = _report(tmp_path, _gather(tmp_path, *measures_of("d90")), monkeypatch)
    caption = "Test score against the number of trained parameters: the mean over seeds with their "
    caption += "range, full fine-tuning, its 90 % line and the majority class. Circles mark d90, "
    assert caption in text and "base model" not in text
    assert kept["measures"][0]["summary"]["base"] is None
    sentences = headline.headline(_gather(tmp_path / "both", *measures_of("d90"), _exact()))
    assert " of it: " in sentences[0] and " of the gain: " in sentences[1]
    _, text = _report(
        tmp_path / "both", _gather(tmp_path / "both", *measures_of("d90"), _loss()), monkeypatch
    )
    assert "Test score, or the share of full fine-tuning's gain in it, against" in text
    assert "the majority class; of models that write, 90 % of its gain over" in text


def test_the_terminal_says_the_same(tmp_path):
    text = _terminal(_gather(tmp_path / "exact", _exact()))
    assert re.search(r"base model 1\d\.\d%, full 6\d\.\d%, 90 % of the gain 5\d\.\d%", text)
    assert re.search(r"base model .* 0 .* 1\d\.\d .* – .* –", text)
    text = _terminal(_gather(tmp_path / "loss", _loss()))
    assert "share of full fine-tuning's gain in loss in %" in " ".join(text.split())
    assert re.search(r"note: loss per token: base 3\.2\d*, full 1\.0\d* nats", text)


def test_the_values_of_d_that_a_method_cannot_have_are_named(tmp_path, monkeypatch):
    found = {"m": 15, "unilora": (1, 5000)}
    measure = writing_measure(EXACT, found, methods=("did", "said", "unilora", "lora"))
    results = _gather(tmp_path, measure)
    said = "SAID: d = 1, 3, 10 are left out, since its 15 scales count in d"
    unilora = "Uni-LoRA: d = 10000 is left out, since it trains from 1 to 5,000 numbers"
    _, text = _report(tmp_path, results, monkeypatch)
    for remark in (said, unilora):
        assert f"- {remark}\n" in text and f"note: {remark}\n" in _terminal(results)
    assert text.count("left out") == 2
    bisected = writing_measure(EXACT, found, search="bisect", methods=("said",))
    assert "left out" not in _terminal(_gather(tmp_path / "bisected", bisected))


# without a gain, and before one is known


def test_a_full_run_that_does_not_beat_the_base_model_has_no_d90(tmp_path, monkeypatch):
    exact = writing_measure({"base": 0.6, "full": 0.5})
    results = _gather(tmp_path, exact, _worse())
    kept, text = _report(tmp_path, results, monkeypatch)
    none = "none: the full run does not beat the base model"
    assert text.count(none) >= 2 * 5 and none in _terminal(results)
    for measure in kept["measures"]:
        assert measure["summary"]["line"] is None
        assert {d90["text"] for d90 in measure["summary"]["d90"].values()} == {none}
    assert kept["measures"][1]["points"] == []
    assert re.search(r"loss per token: base [\d.]+, full 1\.[45]\d* nats", text)
    assert len([row for row in kept["trials"] if row["test"] < 0]) > 50
    axes = figure_curves.draw(pyplot, results).axes
    assert any(re.match(r"base model, (59|60)\.", text) for text in _texts(axes[0]))
    assert not any(text.startswith(("full", "90 %", "base")) for text in _texts(axes[1]))


@pytest.mark.parametrize("done", [0, 1, 3, 4])
@pytest.mark.parametrize("measure", [_exact, _loss])
def test_a_study_without_base_or_full_is_reported(tmp_path, monkeypatch, measure, done):
    measure = measure(seeds=2, lrs=(0.1,), dims=(100, 300), methods=("did", "said"))
    results = _gather(tmp_path, measure, share=done / 11)  # base, 2 full, 8 of both methods
    (measured,) = results.measures
    assert results.progress.complete == done
    relative = measured.metric.relative
    shown = {"base"} if done and not (relative and done < 3) else set()
    shown |= {"full"} if done >= 3 else set()
    assert {point.method for point in measured.points} - {"did", "said"} == shown
    kept, text = _report(tmp_path, results, monkeypatch)
    assert ("the full runs are missing" in text) == (done < 3)
    assert ("the base model's score is missing" in text) == (done < 1)
    (axes,) = figure_curves.draw(pyplot, results).axes
    levels = [text.split(",")[0] for text in _texts(axes) if re.search(r", -?\d+\.\d$", text)]
    wanted = ["full fine-tuning", "90 % of the gain"] if done >= 3 else []
    assert levels == wanted + (["base model"] if "base" in shown else [])


def test_without_the_base_model_s_score_there_is_no_d90(tmp_path, monkeypatch):
    for name, measure in (("exact", _exact(seeds=1)), ("loss", _loss(seeds=1))):
        record = write_study(tmp_path / name, "figure1", [measure])
        key = next(trial.key for trial in record.trials if trial.method == "base")
        del record.results[key], record.entries[key]
        results = writer.gather(tmp_path / name, record)
        (measured,) = results.measures
        assert measured.summary.d90 == {} and bool(measured.points) == (name == "exact")
        assert measured.summary.remarks == ("the base model's score is missing",)
        assert headline.headline(results)[0] == "No d90 yet."
        _report(tmp_path / name, results, monkeypatch)
        figure_curves.draw(pyplot, results)


# drawn


@WITHOUT_WARNINGS
def test_the_base_model_is_a_level_and_no_point(tmp_path):
    results = _gather(tmp_path, _exact())
    (axes,) = figure_curves.draw(pyplot, results).axes
    base = results.measures[0].summary.base
    assert f"base model, {100 * base:.1f}" in _texts(axes)
    assert any(re.fullmatch(r"90 % of the gain, 5\d\.\d", text) for text in _texts(axes))
    assert axes.get_xscale() == "log" and axes.get_ylabel() == "test exact match (%)"
    assert axes.get_title(loc="left").startswith("gsm8k, SmolLM2-135M, SFT, $D$ = 134,515,008; ")
    curves = [line for line in axes.lines if len(line.get_xdata()) > 2]
    assert len(curves) == 5 and min(min(line.get_xdata()) for line in curves) == 1
    levels = {float(line.get_ydata()[0]) for line in axes.lines if line.get_linestyle() != "None"}
    assert 100 * base in levels


def test_each_panel_names_the_score_that_it_shows(tmp_path):
    of_loss, of_reward = figure_curves.draw(pyplot, _gather(tmp_path, _loss(), _reward())).axes
    assert of_loss.get_ylabel() == "share of full fine-tuning's gain in loss (%)"
    assert of_reward.get_ylabel() == "share of full fine-tuning's gain in reward (%)"
    given = {"objective": "grpo"}
    same = _gather(tmp_path / "same", _exact(), _exact(**given))
    labels = [axes.get_ylabel() for axes in figure_curves.draw(pyplot, same).axes]
    assert labels == ["test exact match (%)", ""]


@pytest.mark.parametrize("count", [1, 2])
def test_six_methods_keep_apart_from_the_rows_of_their_d90s(tmp_path, count):
    methods = ("did", "said", "unilora", "lora", "vera", "tinylora")
    measures = [_loss(methods=methods), _reward(methods=methods)][:count]
    figure = figure_curves.draw(pyplot, _gather(tmp_path, *measures, share=0.9))
    figure.draw_without_rendering()
    for axes in figure.axes:
        rows = [t for t in axes.texts if ":" in t.get_text()]
        assert len(rows) == 7  # six d90s and what hollow points are
        boxes = sorted((t.get_window_extent() for t in rows), key=lambda box: box.y0)
        assert all(low.y1 <= high.y0 + 4 for low, high in zip(boxes, boxes[1:], strict=False))
        base = next(t for t in axes.texts if t.get_text().startswith("base model"))
        assert boxes[-1].y1 < base.get_window_extent().y0
        # the curves have more than half of the panel
        low, high = axes.get_ylim()
        assert (0 - low) / (high - low) < 0.5


@pytest.mark.parametrize("last, told", [(0.0, True), (0.9, False)])
def test_a_curve_that_falls_below_the_line_again_is_told(tmp_path, last, told):
    (measure,) = _gather(tmp_path, writing_measure(EXACT, methods=("did",))).measures
    ends = [
        replace(p, mean=m, test=(m,)) for p, m in zip(measure.points[:2], (0.1, 0.9), strict=True)
    ]
    assert [point.method for point in ends] == ["base", "full"]
    curve = sorted(measure.points[2:], key=lambda point: point.d)
    means = [0.1, 0.85, *[0.9] * (len(curve) - 3), last]
    curve = [replace(p, mean=m, test=(m,)) for p, m in zip(curve, means, strict=True)]
    summary = summarise([*ends, *curve], None, (), "base model")
    found = display.remarks(replace(measure, points=[*ends, *curve], summary=summary))
    reached = ", ".join(f"{point.d}" for point in curve[1:-1])
    remark = f"DID: d = {reached} reach the line, but larger d fall below it again, so a curve that"
    assert any(text.startswith(remark) for text in found) == told
    assert (summary.d90["did"].value == math.inf) == told
