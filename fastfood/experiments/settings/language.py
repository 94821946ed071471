"""The settings of models that write: which columns are the prompt and its completion, what is
learnt from them (`objective`), how an answer is told from the words around it, and what GRPO needs.
"""

import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator
from typing_extensions import Self

from .options import Count, option, refusal, require, wanted, whole_number
from .sources import ARITHMETIC, SOURCES
from .task import TASKS, TaskSettings

OBJECTIVES = {"classify": "", "sft": "SFT", "grpo": "GRPO"}  # with their names in reports
GRPO_DEFAULTS = {"generations": 8, "temperature": 1.0, "beta": 0.0}
COLUMNS = ("prompt_column", "completion_column", "messages_column")

Generations = Annotated[int, Field(ge=2, le=1_000), wanted("at least 2, at most 1,000")]
Temperature = Annotated[float, Field(gt=0, le=100), wanted("a number in (0, 100]")]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False), wanted("a finite number of at least 0")]
Column = Annotated[str, StringConstraints(min_length=1), wanted("a name")]


class LanguageSettings(TaskSettings):
    """A data set and a model, and whether it classifies or writes."""

    objective: Literal[tuple(OBJECTIVES)] = option(
        "Task",
        "classify: name a text's class; sft: write a prompt's completion, learnt from it; grpo: "
        "the same, learnt from rewards for what the model writes.",
        "classify",
    )
    prompt_column: Column | None = option(
        "Language", "The column of prompts of any data set.", None, metavar="NAME"
    )
    completion_column: Column | None = option(
        "Language", "Its column of completions.", None, metavar="NAME"
    )
    messages_column: Column | None = option(
        "Language",
        "In place of both, a column of chat messages, whose last one is the completion.",
        None,
        metavar="NAME",
    )
    chat: bool = option("Language", "Put prompts into the model's chat template.", False)
    answer: str | None = option(
        "Language",
        "What of a text is its answer: the last match, or its first group.  [default: all of it]",
        None,
        metavar="REGEX",
    )
    reward: str | None = option(
        "Language",
        "A Python function that gives completions their rewards, MODULE:FUNCTION; it is run.  "
        "[default: 1 for the right answer, 0 for any other]",
        None,
        metavar="NAME",
    )
    max_new_tokens: whole_number(1, 1_000_000) | None = option(
        "Language",
        "Tokens that the model may write.  [default: those of train's longest completion]",
        None,
    )
    generations: Generations | None = option(
        "Language", "Completions of a prompt that GRPO compares; 8.", None
    )
    temperature: Temperature | None = option("Language", "Of GRPO's samples; 1.", None)
    beta: Weight | None = option(
        "Language", "GRPO's weight of the divergence from the base model; 0.", None
    )
    weights: Literal["resident", "streamed"] = option(
        "Training",
        "DID and SAID: resident: a copy of all weights; streamed: made for each layer, in less "
        "memory.",
        "resident",
    )
    dtype: Literal["float32", "bfloat16"] = option("Training", "Of the model's weights.", "float32")
    accumulation: Count = option(
        "Training", "Passes that a step's rows are divided into, to save memory.", 1
    )
    gradient_checkpointing: bool = option(
        "Training", "Compute activations again in the backward, to save memory.", False
    )

    @property
    def writes(self) -> bool:
        """Whether the model writes completions, and names no classes."""
        return self.objective != "classify"

    def described_by(self) -> tuple[str, ...]:
        if not self.writes:
            return super().described_by()
        columns = COLUMNS[2:] if self.messages_column else COLUMNS[:2]
        return (*columns, "splits")

    def known_tasks(self) -> tuple[str, ...]:
        return tuple(name for name in TASKS if _is_written(name) == self.writes)

    @model_validator(mode="after")
    def _the_objective_has_its_columns(self) -> Self:
        unused = ("text_columns", "label_column") if self.writes else (*COLUMNS, "answer", "reward")
        if self.messages_column:
            unused += COLUMNS[:2]
        if not self.writes:
            unused += ("max_new_tokens",)
        if self.objective != "grpo":
            unused += tuple(GRPO_DEFAULTS)
        beside = "messages_column" if self.messages_column else f"the objective {self.objective}"
        for name in unused:
            given = getattr(self, name)
            require(given is None, name, f"nothing beside {beside}", given)
        require(self.writes or not self.chat, "chat", f"nothing beside {beside}", self.chat)
        narrow = self.task == "digits" and self.dtype != "float32"
        require(not narrow, "dtype", "float32 for the task digits", self.dtype)
        if self.task in TASKS:
            known = self.known_tasks()
            text = f"one of {', '.join(known)}, or a data set, for the objective {self.objective}"
            require(self.task in known, "task", text, self.task)
        return self

    @model_validator(mode="after")
    def _the_answer_is_a_pattern(self) -> Self:
        try:
            re.compile(self.answer or "")
        except (re.error, RecursionError, OverflowError) as error:
            text = f"a regular expression ({error})"
            raise refusal("answer", text, self.answer) from None
        return self

    @model_validator(mode="after")
    def _a_reward_is_named(self) -> Self:
        fits = self.reward is None or re.fullmatch(r"[^:]*[^:\s]:[^\W\d]\w*", self.reward)
        require(bool(fits), "reward", "MODULE:FUNCTION or FILE.py:FUNCTION", self.reward)
        return self


def _is_written(task: str) -> bool:
    return task in ARITHMETIC or (task in SOURCES and SOURCES[task].written)
