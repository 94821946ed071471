"""Tests of the metrics: scores that were computed by hand, and of answers that say nothing."""

import math
import warnings

import numpy as np
import pytest

from fastfood.experiments.settings.metrics import METRICS, score

LABELS, PREDICTED = [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0]


def test_scores_are_those_computed_by_hand():
    assert score("accuracy", PREDICTED, LABELS) == 6 / 8
    assert score("f1", PREDICTED, LABELS) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    # classes 0, 1, 2: F1 of 2/3, 4/5 and 0
    three = score("f1", [0, 1, 1, 0, 1], [0, 1, 1, 2, 0])
    assert three == pytest.approx((1 / 2 + 4 / 5 + 0) / 3)
    assert score("f1", [0, 0], [0, 0]) == 0
    # 2 true positives, 4 true negatives, 1 false of each
    matthews = (2 * 4 - 1 * 1) / (3 * 3 * 5 * 5) ** 0.5
    assert score("matthews", PREDICTED, LABELS) == pytest.approx(matthews)


def test_correlations_are_those_computed_by_hand():
    labels, predicted = [0.0, 1.0, 2.0, 5.0], [0.1, 0.3, 0.2, 0.9]
    pearson = np.corrcoef(labels, predicted)[0, 1]
    assert score("pearson", predicted, labels) == pytest.approx(pearson)
    # ranks 1 2 3 4 and 1 3 2 4
    assert score("spearman", predicted, labels) == pytest.approx(1 - 6 * 2 / (4 * 15))
    mean = (pearson + 0.8) / 2
    assert score("pearson_spearman", predicted, labels) == pytest.approx(mean)
    assert score("pearson", [-x for x in predicted], labels) == pytest.approx(-pearson)


@pytest.mark.parametrize("metric", [name for name, one in METRICS.items() if not one.relative])
def test_every_metric_is_one_at_best(metric):
    assert score(metric, LABELS, LABELS) == pytest.approx(1)
    assert METRICS[metric].shown


def test_what_is_written_is_scored_by_equal_answers_losses_and_rewards():
    assert score("exact", ["7", None, "9"], ["7", None, "8"]) == pytest.approx(1 / 3)
    assert score("loss", [0.5, 1.0], []) == -0.75
    assert score("reward", [0.5, 1.0], []) == 0.75


@pytest.mark.parametrize("metric", ["matthews", "pearson", "spearman", "pearson_spearman"])
@pytest.mark.parametrize(
    ("predicted", "labels"),
    [
        ([1, 1, 1], [0, 1, 1]),
        ([0, 1, 1], [1, 1, 1]),
        ([1], [1]),
    ],
)
def test_answers_without_any_order_score_nothing(metric, predicted, labels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert score(metric, predicted, labels) == 0


@pytest.mark.parametrize("metric", ["pearson", "spearman", "pearson_spearman"])
@pytest.mark.parametrize("odd", [math.nan, math.inf, 1 + 1e-15])
def test_correlations_are_numbers(metric, odd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert -1 <= score(metric, [1.0, odd, 1.0], [1, 2, 4]) <= 1


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="^metric: wanted accuracy or f1 or .*, got 'mcc'"):
        score("mcc", LABELS, PREDICTED)
