"""Tests of the statistics of scores: the choice of rates, d90 and its interval, the words where
there is no d90, the base model's score, and scores as shares of a gain over it."""

import math
from dataclasses import replace

import numpy as np
import pytest
from trials import trial_of

from fastfood.experiments.settings.metrics import METRICS
from fastfood.experiments.settings.trial import Score
from fastfood.experiments.trials import curves
from fastfood.experiments.trials.gain import summarise_gain


def test_d90_is_the_first_tested_d_that_reaches_the_line():
    result = curves.d90([10, 100, 1000], [[0.2], [0.91], [0.95]], [1.0])
    assert result.value == 100 and result.line == pytest.approx(0.9)
    assert result.text == "100"  # one seed: no interval


def test_d90_exactly_on_the_line_counts():
    assert curves.d90([10, 100], [[0.3], [0.1 + 0.2 + 0.6]], [1.0]).value == 100


def test_d90_uses_the_monotone_fit_and_not_the_first_lucky_point():
    # 0.88 and 0.80 pool to 0.84, below the line 0.855
    result = curves.d90([10, 30, 100, 300], [[0.5], [0.88], [0.80], [0.95]], [0.95])
    assert result.value == 300


def test_d90_above_every_tested_d_is_said_as_such():
    result = curves.d90([10, 100], [[0.2, 0.2], [0.5, 0.5]], [1.0, 1.0])
    assert result.value == math.inf
    assert result.text == "> 100 [> 100, > 100]"


def test_d90_below_every_tested_d_is_said_as_such():
    result = curves.d90([10, 100], [[0.95, 0.95], [0.96, 0.96]], [1.0, 1.0])
    assert (result.value, result.text) == (10, "<= 10 [<= 10, <= 10]")


def test_interval_resamples_the_seeds_of_the_method():
    # the mean 0.9 reaches the line; a quarter of the resamples holds only the seed at 0.85
    result = curves.d90([10, 30, 100], [[0.1, 0.1], [0.85, 0.95], [1.0, 1.0]], [1.0, 1.0])
    assert (result.value, result.low, result.high) == (30, 30, 100)
    assert result.text == "30 [30, 100]"


def test_interval_resamples_the_seeds_of_the_full_run():
    scores = [[0.1, 0.1], [0.9, 0.9], [0.95, 0.95]]
    result = curves.d90([10, 30, 100], scores, [0.96, 1.0 + 0.04])
    assert (result.value, result.low, result.high) == (30, 30, 100)


def test_interval_is_the_same_every_time():
    scores = [[0.5, 0.7, 0.8], [0.8, 0.9, 0.95], [0.9, 0.95, 1.0]]
    first, second = (curves.d90([10, 30, 100], scores, [0.9, 1.0, 0.98]) for _ in range(2))
    assert first == second


# the choice of rates


def _trial(method="did", d=10, rate=0.1, seed=0, size=None):
    return trial_of(method, d, seed, learning_rate=rate, size=size)


def test_rate_is_chosen_on_validation_even_where_test_prefers_another():
    trials = [_trial(rate=rate, seed=seed) for rate in (0.1, 0.5) for seed in (0, 1)]
    scores = [
        Score(0.80, 0.70),
        Score(0.82, 0.72),
        Score(0.79, 0.99),
        Score(0.81, 0.99),
    ]
    (point,) = curves.curve_points(trials, scores)
    assert point.learning_rate == 0.1
    assert point.test == (0.70, 0.72) and point.seeds == (0, 1)
    assert point.mean == pytest.approx(0.71) and point.validation == pytest.approx(0.81)


def test_of_equal_rates_the_smallest_wins_and_a_rate_with_a_missing_seed_does_not_count():
    same = Score(0.8, 0.8)
    trials = [_trial(rate=rate) for rate in (0.5, 0.1, 0.3)]
    assert curves.curve_points(trials, [same] * 3)[0].learning_rate == 0.1
    trials = [_trial(rate=rate, seed=seed) for rate in (0.1, 0.5) for seed in (0, 1)]
    good = Score(0.9, 0.9)
    assert curves.curve_points(trials, [good, None, same, same])[0].learning_rate == 0.5
    assert curves.curve_points(trials, [good, None, None, same]) == []


def _partial(runs):
    """The points of one cell from {(rate, seed): validation score, None, or "to come"}."""
    trials = [_trial(rate=rate, seed=seed) for rate, seed in runs]
    scores = [
        Score(score, score + 0.01) if isinstance(score, float) else None for score in runs.values()
    ]
    return curves.curve_points(trials, scores, [score == "to come" for score in runs.values()])


def test_rates_are_compared_over_the_seeds_that_they_share():
    # over all seeds that each has, 0.1 would win: 0.85 against 0.8
    runs = {(0.1, 0): 0.7, (0.1, 1): 1.0, (0.5, 0): 0.8, (0.5, 1): "to come"}
    (point,) = _partial(runs)
    assert (point.learning_rate, point.seeds, point.mean) == (0.5, (0,), pytest.approx(0.81))
    assert not point.whole and point.seeds_asked == 2
    # the chosen rate shows every seed that it has
    (point,) = _partial(runs | {(0.5, 0): 0.6})
    assert (point.learning_rate, point.seeds) == (0.1, (0, 1)) and not point.whole
    assert point.validation == pytest.approx(0.85) and point.test == pytest.approx((0.71, 1.01))


def test_rates_that_share_no_seed_are_compared_at_the_seed_that_most_have():
    runs = {(0.1, 0): 0.9, (0.1, 1): "to come", (0.3, 0): "to come", (0.3, 1): 0.7}
    assert _partial(runs)[0].learning_rate == 0.1  # the smallest seed of equals
    runs |= {(0.5, 0): "to come", (0.5, 1): 0.8}
    assert _partial(runs)[0].learning_rate == 0.5


def test_a_point_appears_with_its_first_score_and_names_the_rates_tried():
    runs = {(rate, seed): "to come" for rate in (0.1, 0.3, 0.5) for seed in (0, 1)}
    assert _partial(runs) == []
    (point,) = _partial(runs | {(0.3, 0): 0.8})
    assert (point.learning_rate, point.rates, point.seeds) == (0.3, (0.3,), (0,))
    (point,) = _partial(runs | {(0.3, 0): 0.8, (0.5, 1): None})
    assert point.rates == (0.3, 0.5)


def test_a_rate_with_a_score_that_never_comes_is_out_and_leaves_the_point_whole():
    runs = {(0.1, 0): 0.9, (0.1, 1): None, (0.5, 0): 0.7, (0.5, 1): 0.8}
    (point,) = _partial(runs)
    assert point.learning_rate == 0.5 and point.whole
    (point,) = _partial(runs | {(0.1, 0): "to come"})  # its score could change nothing
    assert point.learning_rate == 0.5 and point.whole
    assert _partial({(0.1, 0): None, (0.1, 1): None}) == []


def test_a_d90_so_far_says_so_and_has_no_interval_where_a_point_has_one_seed():
    dims, full = [10, 100], [1.0, 0.98, 1.02]
    result = curves.d90(dims, [[0.3, 0.4], [0.95, 0.96]], full, so_far=True)
    assert (result.text, result.so_far) == ("100 [100, 100] so far", True)
    result = curves.d90(dims, [[0.3, 0.4], [0.95]], full, so_far=True)
    assert result.text == "100 so far" and (result.low, result.high) == (100, 100)
    assert curves.d90(dims, [[0.3], [0.4]], full, so_far=True).text == "> 100 so far"


def test_a_d90_is_so_far_while_its_method_or_the_full_run_has_runs_to_come():
    score = Score(0.8, 0.8)
    points = curves.curve_points(
        [_trial("full", 5000), _trial("did", 10), _trial("said", 10)], [score] * 3
    )
    for unfinished, so_far in ((), ()), (("did",), ("did",)), (("full",), ("did", "said")):
        summary = curves.summarise(points, 0.1, unfinished)
        assert tuple(m for m, d90 in summary.d90.items() if d90.so_far) == so_far
    none = curves.summarise(points, 0.9, ("full",)).d90["did"]
    assert none.text == "none so far: the full run does not beat the majority class"


@pytest.mark.parametrize(
    ("majority", "remark"),
    [(0.5, None), (0.75, "90 % line"), (0.8, "does not beat"), (0.9, "does not beat")],
)
def test_a_baseline_that_says_nothing_is_remarked(majority, remark):
    score = Score(0.8, 0.8)
    trials = [_trial("full", 5000, seed=seed) for seed in (0, 1)]
    summary = curves.summarise(curves.curve_points(trials, [score] * 2), majority)
    assert summary.line == (None if majority >= 0.8 else pytest.approx(0.72))
    assert [remark in text for text in summary.remarks] == ([True] if remark else [])


def test_without_a_full_run_above_the_majority_class_there_is_no_d90():
    score = Score(0.8, 0.8)
    trials = [_trial("full", 5000), _trial("did", 10)]
    result = curves.summarise(curves.curve_points(trials, [score] * 2), 0.8).d90["did"]
    assert result.value is None
    assert result.text == "none: the full run does not beat the majority class"


def test_an_interval_that_is_open_on_both_sides_is_called_unstable():
    # the seeds disagree on whether any d, or every d, is on the line 0.9
    result = curves.d90([10, 100], [[0.1, 1.0], [0.7, 1.0]], [1.0, 1.0])
    assert (result.low, result.high) == (10, math.inf)
    assert result.unstable and result.text == "unstable: > 100 [<= 10, > 100]"
    assert not curves.d90([10, 100], [[0.1, 0.2], [0.7, 1.0]], [1.0, 1.0]).unstable


def test_points_keep_sizes_apart_and_the_accuracies_of_the_chosen_rate():
    trials = [_trial("lora", 50, rate, size=size) for size in (1, 4) for rate in (0.1, 0.5)]
    scores = [
        Score(v, v, train_accuracy=v + 0.1, test_accuracy=v, seconds=1.0)
        for v in (0.5, 0.6, 0.8, 0.7)
    ]
    small, large = curves.curve_points(trials, scores)
    assert (small.size, small.learning_rate) == (1, 0.5)
    assert (large.size, large.learning_rate) == (4, 0.1)
    assert small.train_accuracy == (0.7,) and large.test_accuracy == (0.8,)
    assert small.rates == (0.1, 0.5)


def test_a_metric_of_numbers_has_no_majority_class():
    trials, score = [trial_of("full", 1000, metric="pearson")], Score(validation=-0.1, test=-0.1)
    points = curves.curve_points(trials, [score])
    summary = curves.summarise(points, 0.0, trivial=METRICS["pearson"].trivial)
    assert "does not beat the constant answer (0.0%)" in summary.remarks[0]


# the base model's score in place of the majority class


def _with_base(base=0.2, full=(1.0, 1.0), **curves_of):
    """Points of the base model, the full run, and of methods {d: scores by seed}."""
    runs = [("base", 0, (base,)), ("full", 5000, full)]
    runs += [(method, d, scores) for method, curve in curves_of.items() for d, scores in curve]
    runs = [(m, d, scores) for m, d, scores in runs if None not in scores]
    trials = [_trial(m, d, seed=seed) for m, d, scores in runs for seed in range(len(scores))]
    return curves.curve_points(trials, [Score(s, s) for _, _, scores in runs for s in scores])


def test_the_line_lies_at_90_percent_of_the_gain_over_the_base_model():
    points = _with_base(did=[(10, (0.91, 0.91)), (100, (0.93, 0.93))])
    summary = curves.summarise(points, None, trivial="base model")
    assert (summary.full, summary.base, summary.line) == (1.0, 0.2, pytest.approx(0.92))
    assert set(summary.d90) == {"did"} and summary.d90["did"].text == "100 [100, 100]"
    gain = "d90 is at 90 % of full fine-tuning's gain over the base model, "
    assert summary.remarks == (gain + "20.0 % + 0.9 (100.0 % - 20.0 %)",)


@pytest.mark.parametrize(("at_30", "interval"), [(0.78, (30, 100)), (0.75, (100, 100))])
def test_every_resampled_full_run_has_its_own_line_above_the_base_model(at_30, interval):
    # the lines are 0.77, 0.86 and 0.95 where the mean of two full runs is 0.8, 0.9 and 1
    scores = [[0.5, 0.5], [at_30, at_30], [1.0, 1.0]]
    result = curves.d90([10, 30, 100], scores, [0.8, 1.0], base=0.5)
    assert result.line == pytest.approx(0.86) and result.value == 100
    assert (result.low, result.high) == interval


def test_a_base_model_that_scores_nothing_leaves_the_line_of_classes():
    curve = [(10, (0.5, 0.7)), (30, (0.8, 0.9)), (100, (0.9, 0.95))]
    points = _with_base(0.0, (0.97, 1.0), did=curve)
    summary = curves.summarise(points, None, trivial="base model")
    of_classes = curves.summarise(points[1:], 0.0)
    assert summary.line == 0.9 * ((0.97 + 1.0) / 2) == of_classes.line
    assert summary.d90 == of_classes.d90 and summary.remarks == of_classes.remarks == ()


@pytest.mark.parametrize("base", [0.8, 0.85])
def test_without_a_full_run_above_the_base_model_there_is_no_d90(base):
    points = _with_base(base, (0.8,), did=[(10, (0.9,))])
    summary = curves.summarise(points, None, trivial="base model")
    assert summary.line is None and summary.d90["did"].value is None
    assert summary.d90["did"].text == "none: the full run does not beat the base model"
    assert f"(80.0%) does not beat the base model ({base:.1%})" in summary.remarks[0]


def test_what_is_missing_for_a_line_is_said():
    curve = [(10, (0.9,))]
    summary = curves.summarise(_with_base(None, (1.0,), did=curve), None)
    assert (summary.full, summary.line, summary.d90) == (1.0, None, {})
    assert summary.remarks == ("the base model's score is missing",)
    summary = curves.summarise(_with_base(0.2, (None,), did=curve), None)
    assert (summary.full, summary.base, summary.d90) == (None, 0.2, {})
    assert summary.remarks == ("the full runs are missing",)


# shares of the gain


def _loss_points(full=(-1.0, -1.2), base=-3.0, did=(-2.05, -1.2)):
    """Points of a loss, whose validation scores are all lower by 1."""
    runs = [("base", 0, base), *(("full", 5000, score) for score in full)]
    runs += [("did", d, score) for d, score in zip((10, 100), did, strict=True)]
    runs = [run for run in runs if run[2] is not None]
    trials = [_trial(m, d, seed=i if m == "full" else 0) for i, (m, d, _) in enumerate(runs)]
    return curves.curve_points(trials, [Score(score - 1, score) for *_, score in runs])


def test_scores_become_shares_of_the_gain_part_by_part():
    points = _loss_points()
    points[2] = replace(points[2], validation=-3.0)  # the base model's is -4, the full run's -2.1
    shares, summary = summarise_gain(points, (), "base model")
    assert [point.mean for point in shares] == pytest.approx([0, 1, 0.5, 1.8 / 1.9])
    assert shares[1].test == pytest.approx((2 / 1.9, 1.8 / 1.9))
    assert [point.validation for point in shares] == pytest.approx([0, 1, 1 / 1.9, 1.8 / 1.9])
    assert (summary.base, summary.full, summary.line) == (0, 1, pytest.approx(0.9))
    assert summary.absolute == (-3.0, pytest.approx(-1.1)) and summary.d90["did"].value == 100


def test_d90_is_the_same_of_scores_and_of_their_shares():
    rng, dims = np.random.default_rng(0), [10, 30, 100]
    for _ in range(20):
        base, full = -3.0, tuple(rng.uniform(-1.5, -1, 3))
        curve = [(d, tuple(rng.uniform(-2.5 + 0.5 * i, -1, 3))) for i, d in enumerate(dims)]
        shares, summary = summarise_gain(_with_base(base, full, did=curve), (), "base model")
        raw = curves.d90(dims, [scores for _, scores in curve], full, base=base)
        found = summary.d90["did"]
        assert (found.value, found.low, found.high) == (raw.value, raw.low, raw.high)
        assert len(shares) == 5


@pytest.mark.parametrize(
    ("missing", "remark"),
    [
        ({"base": None}, "the base model's score is missing"),
        ({"full": (None,)}, "the full runs are missing"),
    ],
)
def test_no_share_is_shown_before_the_gain_is_known(missing, remark):
    shares, summary = summarise_gain(_loss_points(**missing), ("did",), "base model")
    assert shares == [] and summary == curves.Summary(None, None, {}, (remark,))


@pytest.mark.parametrize("full", [-3.0, -3.5])
def test_without_a_gain_there_are_no_shares_and_no_d90(full):
    shares, summary = summarise_gain(_loss_points(full=(full,)), ("full",), "base model")
    assert shares == [] and summary.line is None and summary.absolute == (-3.0, full)
    assert summary.d90["did"].text == "none so far: the full run does not beat the base model"
    assert summary.remarks[0].startswith("full fine-tuning does not beat the base model: there is")


def test_a_gain_on_test_alone_leaves_shares_of_validation_open():
    points = [replace(point, validation=-4.0) for point in _loss_points()]
    shares, summary = summarise_gain(points, (), "base model")
    assert all(math.isnan(point.validation) for point in shares)
    assert summary.d90["did"].value == 100
