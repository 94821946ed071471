"""What a decoded model loses on rows, and the bounds that follow from it: the wrong answers of a
classifier, or the losses of the tokens that a model which writes should write. Both classes have
the same methods: certify.py scores the models, chooses a message, and reports what it promises."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from ..data.task import LabelledTask
from ..data.written import WrittenTask, token_count
from ..settings.measurement import Settings
from ..training.train import predict
from ..training.writing import token_scores
from .formulas import all_bounds, best_bound, kl_of_bits, paper_order
from .message import Message, with_alpha
from .tokens import ALPHA_BITS, Tokens, best_smoothing, interval, row_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASE = "the base checkpoint, parameters and buffers: it must not have been made from these rows"
HEAD = "the initial values of a new head: a function of its seed"
CODE = "the architecture, the tokenizer and its chat template, max_length and this code"
ROWS = "delta and the m rows"
ASSUMED = "the m rows are independent draws from the distribution that the risk is about"


class Losses(Protocol):
    """What certify.py asks of either kind."""

    in_advance: tuple[str, ...]
    assumed: str
    test: Sequence[dict]

    def score(self, model: nn.Module, rows: Sequence[dict]) -> Any: ...
    def tried(self, message: Message, scored: Any, screened: int) -> tuple[float, dict]: ...
    def certified(self, message: Message, scored: Any, test_scored: Any) -> dict: ...


class WrongAnswers(Losses):
    """The errors of a classifier. delta: one minus the confidence. d: the numbers of the adapter,
    for the order of magnitude of the paper's Theorem 1."""

    in_advance = (BASE, HEAD, CODE, ROWS)
    assumed = ASSUMED

    def __init__(self, settings: Settings, task: LabelledTask, rows: list, delta: float, d: int):
        self.task, self.rows, self.delta, self.d = task, rows, delta, d
        self.bf16, self.test = settings.bf16, task.test

    def score(self, model: nn.Module, rows: Sequence[dict]) -> int:
        """How many rows the model answers wrongly."""
        predicted, labels = predict(model, self.task, rows, self.bf16)
        return sum(answer != label for answer, label in zip(predicted, labels, strict=True))

    def tried(self, message: Message, errors: int, screened: int) -> tuple[float, dict]:
        """The least bound if the m rows are like those `screened`, and what is said of it."""
        m = len(self.rows)
        bounds = all_bounds(m, math.ceil(m * errors / screened), message.bits, self.delta)
        return bounds[best_bound(bounds)], {"bits": message.bits, "errors": errors}

    def certified(self, message: Message, errors: int, test_errors: int) -> dict:
        """The message, the bounds from the errors on the m rows, and what to compare them with."""
        m = len(self.rows)
        bounds = all_bounds(m, errors, message.bits, self.delta)
        return {
            **_promised(message, m, bounds, best_bound(bounds), self.delta),
            "train_errors": errors,
            "train_error": errors / m,
            "paper_order": paper_order(m, errors, self.d),
            "majority_error": {
                "train": _majority_error(self.rows),
                "test": _majority_error(self.test),
            },
            "test_error": test_errors / len(self.test),
            "test_rows": len(self.test),
        }


class TokenLosses(Losses):
    """The losses of a model that writes, in bits per token under prediction smoothing (tokens.py).

    The rows are those of at most max_length tokens, since longer ones are left out of training, and
    so the test rows are too. base: makes the base model, whose losses are reported for comparison.
    Raises ValueError if no test row is as short.
    """

    in_advance = (BASE, CODE, ROWS)

    def __init__(
        self,
        settings: Settings,
        task: WrittenTask,
        rows: list,
        delta: float,
        base: Callable[[], nn.Module],
    ):
        self.task, self.rows, self.delta, self.base = task, rows, delta, base
        self.bf16, most = settings.bf16, settings.max_length
        self.test = [row for row in task.test if token_count(row) <= most]
        if not self.test:
            wanted = f"test rows of at most {most} tokens"
            raise ValueError(f"max_length: wanted {wanted}, got none in {len(task.test)}")
        self.assumed = f"{ASSUMED}, pairs of prompt and completion of at most {most} tokens"

    def score(self, model: "PreTrainedModel", rows: Sequence[dict]) -> Tokens:
        """Each token's log-probability, so that every alpha can be tried on them."""
        scored = token_scores(model, self.task, rows, self.bf16)
        return Tokens(
            torch.cat([row.log_probabilities for row in scored]),
            torch.tensor([len(row.log_probabilities) for row in scored]),
            model.get_output_embeddings().weight.shape[0],
        )

    def tried(self, message: Message, tokens: Tokens, screened: int) -> tuple[float, dict]:
        """The least bound if the m rows are like those `screened`, and what is said of it."""
        bits = message.bits + ALPHA_BITS
        found = best_smoothing(len(self.rows), tokens, bits, self.delta)
        return found.bounds[found.best], {"bits": bits, "loss": found.mean, "alpha": found.alpha}

    def certified(self, message: Message, tokens: Tokens, test_tokens: Tokens) -> dict:
        """The message with alpha, the bounds from the losses on the m rows, and what to compare
        them with; losses are means over rows in bits per token."""
        m, bits = len(self.rows), message.bits + ALPHA_BITS
        found = best_smoothing(m, tokens, bits, self.delta)
        message, uniform = with_alpha(message, found.place), math.log2(tokens.vocabulary)
        base = self.base()
        at_base = {"train": self.score(base, self.rows), "test": self.score(base, self.test)}
        adapted = {"train": tokens, "test": test_tokens}
        losses = {
            name: {part: row_losses(scored[part], alpha).mean().item() for part in scored}
            for name, scored, alpha in (
                ("loss", adapted, found.alpha),
                ("base_loss", at_base, found.alpha),
                ("unsmoothed_loss", adapted, 0),
                ("unsmoothed_base_loss", at_base, 0),
            )
        }
        return {
            **_promised(message, m, found.bounds, found.best, self.delta),
            "unit": "bits per token",
            "alpha": found.alpha,
            "vocabulary": tokens.vocabulary,
            "interval": list(interval(found.alpha, tokens.vocabulary)),
            "uniform": uniform,
            "vacuous": [name for name, value in found.bounds.items() if value >= uniform],
            **losses,
            "train_tokens": len(tokens.log_p),
            "test_rows": len(self.test),
        }


def _promised(message: Message, m: int, bounds: dict, best: str, delta: float) -> dict:
    return {
        "message": message.data.hex(),
        "ledger": message.ledger,
        "bits": message.bits,
        "kl": kl_of_bits(message.bits),
        "m": m,
        "bounds": bounds,
        "best": {"name": best, "value": bounds[best], "confidence": 1 - delta},
    }


def _majority_error(rows) -> float:
    """The error of always answering the most frequent label of the rows."""
    labels = [row["labels" if "labels" in row else "label"] for row in rows]
    return 1 - max(labels.count(label) for label in set(labels)) / len(labels)
