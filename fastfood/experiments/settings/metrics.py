"""The metrics by name: how a report calls each, what it scores (classes, numbers or what a model
writes), and how."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

TRIVIAL = {"classes": "majority class", "numbers": "constant answer", "texts": "base model"}


class Metric(NamedTuple):
    """What a model's answers are scored by; every metric but the relative ones is 1 for perfect
    answers."""

    shown: str  # its name in figures and reports
    of: Literal["classes", "numbers", "texts"]  # what the answers are; classes are 0..k-1
    compute: Callable[[Sequence, Sequence], float]  # of the answers and the true ones
    relative: bool = False  # shown as a share of full fine-tuning's gain over the base model

    @property
    def of_numbers(self) -> bool:
        """Whether the answers are numbers to be predicted."""
        return self.of == "numbers"

    @property
    def trivial(self) -> str:
        """What a trained model has to beat."""
        return TRIVIAL[self.of]


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


def _equal(written: Sequence, wanted: Sequence) -> float:
    """The share of answers that are the wanted ones; None is no answer, which is never right."""
    right = sum(a is not None and a == b for a, b in zip(written, wanted, strict=True))
    return right / len(wanted)


def _mean(rewards: Sequence[float], _: Sequence) -> float:
    return math.fsum(rewards) / len(rewards)


def _minus_mean(losses: Sequence[float], _: Sequence) -> float:
    return -math.fsum(losses) / len(losses)


METRICS = {
    "accuracy": Metric("accuracy", "classes", _accuracy),
    "f1": Metric("F1", "classes", _f1),
    "matthews": Metric("Matthews correlation", "classes", _matthews),
    "pearson": Metric("Pearson correlation", "numbers", _pearson),
    "spearman": Metric("Spearman correlation", "numbers", _spearman),
    "pearson_spearman": Metric(
        "mean of Pearson and Spearman correlation", "numbers", _pearson_spearman
    ),
    "exact": Metric("exact match", "texts", _equal),
    "tokens": Metric("token accuracy", "texts", _equal),
    "loss": Metric("loss", "texts", _minus_mean, relative=True),
    "reward": Metric("reward", "texts", _mean, relative=True),
}


def score(metric: str, predicted: Sequence, labels: Sequence) -> float:
    """How well the predicted labels fit the true ones: a share in [0, 1] for accuracy, F1 and equal
    texts or tokens, a correlation in [-1, 1], 0 where it is undefined, for numbers, minus the mean
    of the losses, and the mean of the rewards, which come as `predicted`.

    Raises ValueError for another metric.
    """
    if metric not in METRICS:
        raise ValueError(f"metric: wanted {' or '.join(METRICS)}, got {metric!r}")
    return float(METRICS[metric].compute(predicted, labels))
