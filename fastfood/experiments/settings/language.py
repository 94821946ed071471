"""The settings of models that write: what is learnt from their prompts and completions."""

from typing import Literal

from .options import option
from .task import TaskSettings

OBJECTIVES = {"classify": "", "sft": "SFT", "grpo": "GRPO"}  # with their names in reports


class LanguageSettings(TaskSettings):
    """A data set and a model, and whether it classifies or writes."""

    objective: Literal[tuple(OBJECTIVES)] = option(
        "Task",
        "classify: name a text's class; sft: write a prompt's completion, learnt from it; grpo: "
        "the same, learnt from rewards for what the model writes.",
        "classify",
    )
    reward: str | None = option(
        "Language",
        "A Python function that gives completions their rewards, MODULE:FUNCTION; it is run.  "
        "[default: 1 for the right answer, 0 for any other]",
        None,
        metavar="NAME",
    )

    @property
    def writes(self) -> bool:
        """Whether the model writes completions, and names no classes."""
        return self.objective != "classify"
