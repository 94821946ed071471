"""Tests of the statistics of scores: the choice of rates, d90 and its interval, and the words where
there is no d90."""

import math

import pytest
from trials import trial_of

from fastfood.experiments.settings.metrics import METRICS
from fastfood.experiments.settings.trial import Score
from fastfood.experiments.trials import curves


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
