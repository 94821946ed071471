"""A loaded task as a type: three disjoint parts, train, validation (on which learning rates are
chosen) and test (on which scores are reported), of labelled rows or of prompts with completions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..settings.metrics import METRICS, score
from ..settings.sources import PARTS
from .parts import count_overlap


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """A loaded task. The parts are sequences of rows, `collate` makes a model's batch of rows."""

    train: Sequence[dict]
    validation: Sequence[dict]
    test: Sequence[dict]
    collate: Callable[[list[dict]], dict]
    splits: dict  # part name: where its rows came from
    data_hash: str  # of the rows of all parts
    metric: str
    contamination: tuple[str, ...] = ()  # what is known of the model's own training on this task
    num_labels: int = 0  # outputs of a classifier; 1 where the label is a number

    @property
    def sizes(self) -> dict:
        """The number of rows of every part."""
        return {part: len(getattr(self, part)) for part in PARTS}

    def overlap(self) -> int:
        """How many test rows have texts that are also a training row's, but for case, spaces and
        punctuation."""
        raise NotImplementedError

    def majority(self) -> float | None:
        """The best test score of always giving the same answer, None where a model writes: there
        the base model is what has to be beaten."""
        return None


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledTask(Task):
    """A task whose rows have a class or a number as label."""

    labels: dict  # part name: list of classes, or of the numbers to be predicted
    texts: tuple[str, ...] = ()  # the columns of text; images have none

    @property
    def of_numbers(self) -> bool:
        """Whether the label is a number to be predicted, and no class."""
        return METRICS[self.metric].of_numbers

    def overlap(self) -> int:
        """No two digits are the same."""
        return count_overlap(self.train, self.test, self.texts) if self.texts else 0

    def majority(self) -> float:
        """In the task's metric; it is 0 for correlations."""
        labels = self.labels["test"]
        answers = set(labels[:1] if self.of_numbers else labels)
        return max(score(self.metric, [answer] * len(labels), labels) for answer in answers)
