"""Tests of what a study computes without training: the checks of its settings, its list of trials,
the choice of rates, d90 and its interval, and the lock of its folder."""

import json
import math
from dataclasses import replace

import pytest

from fastfood.experiments import curves, report, search
from fastfood.experiments.config import Settings, complete, theta_rates, trial_key, trial_list

FACTS = {"D": 5000, "m": 4, "device": "cpu", "model_hash": "aa", "data_hash": "bb", "majority": 0.1}
TEXT = {"task": "glue/sst2", "model": "somewhere"}


# d90


def test_d90_is_the_first_tested_d_that_reaches_the_line():
    result = curves.d90([10, 100, 1000], [[0.2], [0.91], [0.95]], [1.0])
    assert result["value"] == 100 and result["line"] == pytest.approx(0.9)
    assert result["text"] == "100"  # one seed: no interval


def test_d90_exactly_on_the_line_counts():
    assert curves.d90([10, 100], [[0.3], [0.1 + 0.2 + 0.6]], [1.0])["value"] == 100


def test_d90_uses_the_monotone_fit_and_not_the_first_lucky_point():
    # 0.88 and 0.80 pool to 0.84, below the line 0.855
    result = curves.d90([10, 30, 100, 300], [[0.5], [0.88], [0.80], [0.95]], [0.95])
    assert result["value"] == 300


def test_d90_above_every_tested_d_is_said_as_such():
    result = curves.d90([10, 100], [[0.2, 0.2], [0.5, 0.5]], [1.0, 1.0])
    assert result["value"] == math.inf
    assert result["text"] == "> 100 [> 100, > 100]"


def test_d90_below_every_tested_d_is_said_as_such():
    result = curves.d90([10, 100], [[0.95, 0.95], [0.96, 0.96]], [1.0, 1.0])
    assert (result["value"], result["text"]) == (10, "<= 10 [<= 10, <= 10]")


def test_interval_resamples_the_seeds_of_the_method():
    # the mean 0.9 reaches the line; a quarter of the resamples holds only the seed at 0.85
    result = curves.d90([10, 30, 100], [[0.1, 0.1], [0.85, 0.95], [1.0, 1.0]], [1.0, 1.0])
    assert (result["value"], result["low"], result["high"]) == (30, 30, 100)
    assert result["text"] == "30 [30, 100]"


def test_interval_resamples_the_seeds_of_the_full_run():
    scores = [[0.1, 0.1], [0.9, 0.9], [0.95, 0.95]]
    result = curves.d90([10, 30, 100], scores, [0.96, 1.0 + 0.04])
    assert (result["value"], result["low"], result["high"]) == (30, 30, 100)


def test_interval_is_the_same_every_time():
    scores = [[0.5, 0.7, 0.8], [0.8, 0.9, 0.95], [0.9, 0.95, 1.0]]
    first, second = (curves.d90([10, 30, 100], scores, [0.9, 1.0, 0.98]) for _ in range(2))
    assert first == second


# the choice of rates


def _trial(method="did", d=10, rate=0.1, seed=0):
    return {"method": method, "d": d, "learning_rate": rate, "seed": seed}


def test_rate_is_chosen_on_validation_even_where_test_prefers_another():
    trials = [_trial(rate=rate, seed=seed) for rate in (0.1, 0.5) for seed in (0, 1)]
    scores = [
        {"validation": 0.80, "test": 0.70},
        {"validation": 0.82, "test": 0.72},
        {"validation": 0.79, "test": 0.99},
        {"validation": 0.81, "test": 0.99},
    ]
    (point,) = curves.curve_points(trials, scores)
    assert point["learning_rate"] == 0.1
    assert point["test"] == [0.70, 0.72] and point["seeds"] == [0, 1]
    assert point["mean"] == pytest.approx(0.71) and point["validation"] == pytest.approx(0.81)


def test_of_equal_rates_the_smallest_wins_and_a_rate_with_a_missing_seed_does_not_count():
    same = {"validation": 0.8, "test": 0.8}
    trials = [_trial(rate=rate) for rate in (0.5, 0.1, 0.3)]
    assert curves.curve_points(trials, [same] * 3)[0]["learning_rate"] == 0.1
    trials = [_trial(rate=rate, seed=seed) for rate in (0.1, 0.5) for seed in (0, 1)]
    good = {"validation": 0.9, "test": 0.9}
    assert curves.curve_points(trials, [good, None, same, same])[0]["learning_rate"] == 0.5
    assert curves.curve_points(trials, [good, None, None, same]) == []


@pytest.mark.parametrize(
    ("majority", "remark"),
    [(0.5, None), (0.75, "90 % line"), (0.8, "does not beat"), (0.9, "does not beat")],
)
def test_a_baseline_that_says_nothing_is_remarked(majority, remark):
    score = {"validation": 0.8, "test": 0.8}
    trials = [_trial("full", 5000, seed=seed) for seed in (0, 1)]
    summary = curves.summarise(curves.curve_points(trials, [score] * 2), majority)
    assert summary["line"] == pytest.approx(0.72)
    assert [remark in text for text in summary["remarks"]] == ([True] if remark else [])


# settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "glue/rte"}, "task: wanted one of digits, .*, got 'glue/rte'"),
        ({"task": "glue/sst2"}, "model: wanted a model's folder or hub name .*, got None"),
        ({"model": "bert"}, "model: wanted nothing, .*, got 'bert'"),
        ({**TEXT, "data": "/no/such/folder"}, "data: wanted an existing folder, got"),
        ({"methods": ("lora",)}, "method: wanted did, said or both, got 'lora'"),
        ({"methods": ()}, "method: wanted at least one"),
        ({"dims": ()}, "dims: wanted at least one"),
        ({"dims": (10, 0)}, "dims: wanted whole numbers of at least 1, got 0"),
        ({"lrs": (0.1, -1.0)}, "lrs: wanted finite rates above 0, got -1.0"),
        ({"full_lrs": (math.nan,)}, "full_lrs: wanted finite rates above 0, got nan"),
        ({"lambda_lr": math.inf}, "lambda_lr: wanted a finite rate above 0, got inf"),
        ({"normalization": "batch"}, "normalization: wanted global or tensor, got 'batch'"),
        ({"seeds": 0}, "seeds: wanted at least 1, got 0"),
        ({"max_steps": 0}, "max_steps: wanted at least 1, got 0"),
        ({"batch_size": -1}, "batch_size: wanted at least 1, got -1"),
        ({"max_length": 1}, "max_length: wanted at least 4 tokens, got 1"),
        ({"warmup": 1.5}, "warmup: wanted a share"),
        ({"device": "tpu"}, "device: wanted auto, cpu, cuda or cuda:N, got 'tpu'"),
        ({"workers": 0}, "workers: wanted at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused_by_name(given, message):
    with pytest.raises(ValueError, match="^" + message):
        complete(Settings(**given))


def test_an_output_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="^out: wanted a folder, got .*file is a file"):
        complete(Settings(out=str(tmp_path / "file" / "study")))
    complete(Settings(out=str(tmp_path / "a" / "b")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]  # nothing was made


def test_defaults_come_from_the_task():
    digits, text = complete(Settings()), complete(Settings(**TEXT, dims=(300, 20, 300)))
    assert len(digits.dims) >= 6 and digits.out == "d90-digits" and digits.seeds == 2
    assert text.dims == (20, 300) and text.out == "d90-glue-sst2" and text.batch_size == 32


def test_rates_fall_as_the_root_of_d_unless_they_are_given():
    digits, text = complete(Settings()), complete(Settings(**TEXT))
    small, large = theta_rates(text, 10), theta_rates(text, 1000)
    assert [a / b for a, b in zip(small, large, strict=True)] == pytest.approx([10, 10], rel=0.05)
    assert theta_rates(digits, 1000) == large and theta_rates(digits, 10) == small[-1:]
    assert max(theta_rates(replace(text, normalization="tensor"), 10)) == pytest.approx(0.32)
    assert theta_rates(replace(digits, lrs=(0.5, 0.1, 0.5)), 10) == (0.1, 0.5)


# trials


def test_trials_cover_the_sweep_once_with_the_full_runs_first():
    settings = complete(Settings(dims=(10, 100), lrs=(0.1, 0.3), full_lrs=(1e-3,), seeds=2))
    trials = trial_list(settings, FACTS)
    assert [t["method"] for t in trials[:2]] == ["full", "full"] and trials[0]["d"] == 5000
    assert len({trial_key(t) for t in trials}) == len(trials) == 2 + 2 * 2 * 2 * 2
    assert [t["seed"] for t in trials[2:]] == [0] * 8 + [1] * 8
    assert {t["lambda_lr"] for t in trials if t["method"] == "did"} == {None}


def test_a_trial_is_known_by_what_its_score_depends_on():
    settings = complete(Settings(**TEXT, dims=(10,), lrs=(0.1,), full_lrs=(1e-5,), seeds=1))
    full, did, said = (trial_key(t) for t in trial_list(settings, FACTS))

    def keys(facts=FACTS, **changes):
        return [trial_key(t) for t in trial_list(replace(settings, **changes), facts)]

    assert keys(model="moved", out="elsewhere", workers=7) == [full, did, said]
    assert keys(lambda_lr=0.5)[:2] == [full, did] and keys(lambda_lr=0.5)[2] != said
    for changes in ({"max_steps": 7}, {"batch_size": 7}, {"max_length": 77}, {"bf16": True}):
        assert not set(keys(**changes)) & {full, did, said}
    for name in ("model_hash", "data_hash"):
        assert not set(keys(facts=FACTS | {name: "cc"})) & {full, did, said}


# the folder


def test_a_second_run_on_the_same_folder_is_refused(tmp_path):
    with search.locked_folder(tmp_path):
        second = search.locked_folder(tmp_path)
        with pytest.raises(ValueError, match=r"^out: wanted a folder that no other run uses.*\d"):
            second.__enter__()
    with search.locked_folder(tmp_path):
        pass


def test_a_damaged_database_is_refused(tmp_path):
    (tmp_path / search.DATABASE).write_text("no database " * 100)
    with pytest.raises(ValueError, match="^out: wanted an Optuna database"):
        search.open_study(tmp_path)


def test_results_are_valid_json_for_a_censored_d90(tmp_path):
    settings, trials, scores, points, summary = _study(tmp_path, full=0.9, subspace=0.2)
    path = report.write_results(settings, FACTS, trials, scores, points, summary, {})
    written = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert written["summary"]["d90"]["did"]["value"] is None
    assert written["summary"]["d90"]["did"]["text"] == "> 100"
    assert len(written["trials"]) == len(trials) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("full", "subspace"), [(0.9, 0.2), (0.5, 0.5), (None, 0.3), (0.8, None)])
def test_the_figure_is_drawn_for_whatever_came_out(tmp_path, full, subspace):
    settings, _, _, points, summary = _study(tmp_path, full, subspace)
    path = report.draw_figure(settings, FACTS, points, summary)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["figure1.png"]


def _study(folder, full, subspace):
    """A study of one seed; a score of None is missing."""
    settings = complete(Settings(dims=(10, 100), lrs=(0.1,), seeds=1, out=str(folder)))
    trials = trial_list(settings, FACTS)
    found = [full if trial["method"] == "full" else subspace for trial in trials]
    scores = [None if score is None else {"validation": score, "test": score} for score in found]
    points = curves.curve_points(trials, scores)
    return settings, trials, scores, points, curves.summarise(points, FACTS["majority"])
