"""A trial as a type: what one training depends on (`Trial`), what was found out of its model and
data (`Facts`), what it scored (`Score`) or that it was stopped (`Pruned`), and how far it has come
(`TrialState`)."""

import hashlib
import json
from dataclasses import dataclass, fields
from enum import Enum
from functools import cached_property


class TrialState(str, Enum):
    """How far a trial has come after all attempts at it."""

    COMPLETE = "complete"
    FAILED = "failed"  # it is tried again at the next start
    DIVERGED = "diverged"  # it failed in a way that will come again, so it is not
    PRUNED = "pruned"
    RUNNING = "running"
    WAITING = "waiting"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One (method, d, learning rate, seed) of a measurement, with everything that its score depends
    on. None stands for what does not apply to it.

    The names of the fields and their order are those of records since the first; a new field needs
    the default None, so that the keys of older trials stay as they are.
    """

    task: str
    text_columns: tuple[str, ...] | None = None
    label_column: str | None = None
    splits_asked: tuple[str, ...] | None = None
    model: str | None = None
    revision: str | None = None
    data: str | None = None
    model_hash: str
    data_hash: str
    metric: str
    max_steps: int
    batch_size: int
    max_length: int | None = None
    warmup: float
    bf16: bool
    device: str
    eval_rows: int | None = None
    gap_rows: int | None = None
    method: str
    d: int
    size: int | None = None  # the rank of lora and vera, the length of tinylora
    normalization: str | None = None
    lambda_lr: float | None = None
    head: str | None = None
    seed: int
    learning_rate: float
    objective: str | None = None  # None: it classifies
    prompt_column: str | None = None
    completion_column: str | None = None
    messages_column: str | None = None
    chat: bool | None = None
    answer: str | None = None
    reward: str | None = None
    reward_hash: str | None = None
    max_new_tokens: int | None = None
    generations: int | None = None
    temperature: float | None = None
    beta: float | None = None
    weights: str | None = None  # None: resident
    dtype: str | None = None  # None: float32
    accumulation: int | None = None  # None: 1
    gradient_checkpointing: bool | None = None

    @cached_property
    def key(self) -> str:
        """A hash of the trial; the paths are left out, the hashes of their contents are in."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        identity = {
            name: value
            for name, value in named.items()
            if name not in ("model", "data") and value is not None
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Facts:
    """What the data and the model of a measurement were found to be before any training."""

    device: str
    D: int
    m: int | None  # the groups of SAID's scales, None without SAID
    num_labels: int
    splits: dict[str, str]  # part: where its rows came from
    sizes: dict[str, int]  # part: its rows
    majority: float | None  # the best test score of always giving the same answer
    overlap: int  # test rows whose texts are also a training row's
    contamination: list[str]  # what is known of the model's own training on this task
    data_hash: str
    model_hash: str
    counts: dict[str, dict[str, int]]  # method: size: numbers that it trains
    unilora: tuple[int, int] | None = None  # the least and the largest d of Uni-LoRA
    reward_hash: str | None = None  # of the source of the reward function


@dataclass(frozen=True)
class Score:
    """What a trial scored, in shares or as correlations, and what it cost, in seconds."""

    validation: float
    test: float
    test_accuracy: float | None = None  # None where the labels are numbers to be predicted
    train_accuracy: float | None = None  # None where no training rows were scored
    halfway: float | None = None  # validation at half of the steps, where trials are pruned
    trained: int | None = None
    head_trained: int | None = None
    seconds: float | None = None
    seconds_per_step: float | None = None
    accelerator: str | None = None


class Pruned(Exception):
    """A trial was stopped at optimizer step `step`, since its validation score there, `halfway`,
    is below `floor`."""

    def __init__(self, halfway: float, floor: float, step: int) -> None:
        super().__init__(halfway, floor, step)
        self.halfway, self.floor, self.step = halfway, floor, step

    def __str__(self) -> str:
        return f"validation {self.halfway:.4f} is below {self.floor:.4f} at step {self.step}"
