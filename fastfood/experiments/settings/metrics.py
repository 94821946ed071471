"""The metrics by name: how a report calls each, whether it scores classes or numbers, and how."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Metric(NamedTuple):
    """What a model's answers are scored by; every metric is 1 for perfect answers."""

    shown: str  # its name in figures and reports
    of_numbers: bool  # whether the answers are numbers; otherwise they are classes 0..k-1
    compute: Callable[[Sequence, Sequence], float]  # of the answers and the true labels

    @property
    def trivial(self) -> str:
        """What answers the same to every row, which a trained model has to beat."""
        return "constant answer" if self.of_numbers else "majority class"


def _accuracy(predicted: Sequence[int], labels: Sequence[int]) -> float:
    from sklearn.metrics import accuracy_score

    return accuracy_score(labels, predicted)


def _f1(predicted: Sequence[int], labels: Sequence[int]) -> float:
    """F1 of label 1 where there are two classes, and the unweighted mean over the classes where
    there are more."""
    from sklearn.metrics import f1_score

    two = {*map(int, labels), *map(int, predicted)} <= {0, 1}
    average = "binary" if two else "macro"
    return f1_score(labels, predicted, average=average, zero_division=0.0)


def _matthews(predicted: Sequence[int], labels: Sequence[int]) -> float:
    from sklearn.metrics import matthews_corrcoef

    return _correlation(matthews_corrcoef, predicted, labels)


def _pearson(predicted: Sequence[float], labels: Sequence[float]) -> float:
    from scipy.stats import pearsonr

    return _correlation(lambda *both: pearsonr(*both).statistic, predicted, labels)


def _spearman(predicted: Sequence[float], labels: Sequence[float]) -> float:
    from scipy.stats import spearmanr

    return _correlation(lambda *both: spearmanr(*both).statistic, predicted, labels)


def _pearson_spearman(predicted: Sequence[float], labels: Sequence[float]) -> float:
    return (_pearson(predicted, labels) + _spearman(predicted, labels)) / 2


def _correlation(compute: Callable, predicted: Sequence[float], labels: Sequence[float]) -> float:
    """The correlation, or 0 where it is undefined, as it is when all answers are equal."""
    if len(set(predicted)) < 2 or len(set(labels)) < 2:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about answers that are almost equal
        correlation = float(compute(labels, predicted))
    return correlation if math.isfinite(correlation) else 0.0


METRICS = {
    "accuracy": Metric("accuracy", False, _accuracy),
    "f1": Metric("F1", False, _f1),
    "matthews": Metric("Matthews correlation", False, _matthews),
    "pearson": Metric("Pearson correlation", True, _pearson),
    "spearman": Metric("Spearman correlation", True, _spearman),
    "pearson_spearman": Metric("mean of Pearson and Spearman correlation", True, _pearson_spearman),
}


def score(metric: str, predicted: Sequence[float], labels: Sequence[float]) -> float:
    """How well the predicted labels fit the true ones: a share in [0, 1] for accuracy and F1, a
    correlation in [-1, 1], 0 where it is undefined, for the others.

    Raises ValueError for another metric.
    """
    if metric not in METRICS:
        raise ValueError(f"metric: wanted {' or '.join(METRICS)}, got {metric!r}")
    return float(METRICS[metric].compute(predicted, labels))
