"""The settings that measuring, pre-training and bounds share: which data set, which model, and
where both come from."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator
from typing_extensions import Self

from .options import OptionsModel, option, require, wanted
from .sources import ARITHMETIC, SOURCES

BUNDLED = ("digits", *ARITHMETIC)  # tasks that bring their data
TASKS = (*BUNDLED, *SOURCES)
MOST_TOKENS = 1_000_000

MaxLength = Annotated[
    int, Field(ge=4, le=MOST_TOKENS), wanted(f"at least 4 tokens, at most {MOST_TOKENS:,}")
]
Folder = Annotated[str, StringConstraints(pattern=r"\S"), wanted("a folder")]


class TaskSettings(OptionsModel):
    """A data set and a model. The data set is a task by name, or any one whose columns and splits
    are given."""

    task: str = option(
        "Task", f"{', '.join(TASKS)}; or a data set, by the next three options.", "digits"
    )
    text_columns: tuple[str, ...] | None = option(
        "Task", "The columns of text of any data set, one or two.", None, metavar="NAME,..."
    )
    label_column: str | None = option("Task", "Its column of labels.", None, metavar="NAME")
    splits: tuple[str, ...] | None = option(
        "Task",
        "Its splits train, (validation,) test; of train alone, parts are held out for both.",
        None,
        metavar="NAME,...",
    )
    model: str | None = option(
        "Task", "A checkpoint's folder or hub name; digits brings a small ViT.", None
    )
    revision: str | None = option("Task", "The revision of a hub model.", None)
    data: str | None = option(
        "Task",
        "A folder of local files, DIR/train.jsonl or DIR/glue/sst2/train.jsonl; without it the "
        "hub is used.",
        None,
        metavar="DIR",
    )

    def described_by(self) -> tuple[str, ...]:
        """The settings that describe a data set which is no task by name."""
        return ("text_columns", "label_column", "splits")

    def known_tasks(self) -> tuple[str, ...]:
        """The tasks by name that can be asked for."""
        return TASKS

    @model_validator(mode="after")
    def _has_columns_by_its_name_or_from_options(self) -> Self:
        columns = self.described_by()
        if self.task in TASKS:
            refused = f"nothing, because the task {self.task} has columns of its own"
            for name in columns:
                require(getattr(self, name) is None, name, refused, getattr(self, name))
        else:
            *others, last = columns
            names = f"{', '.join(others)} and {last}"
            known = f"one of {', '.join(self.known_tasks())}, or {names} beside it"
            described = all(getattr(self, name) for name in columns)
            require(bool(self.task) and described, "task", known, self.task)
            fits = len(self.text_columns or ("",)) in (1, 2)
            require(fits, "text_columns", "one or two columns", self.text_columns)
            fits = len(self.splits or ()) in (1, 2, 3)
            require(fits, "splits", "one, two or three names", self.splits)
        return self

    @model_validator(mode="after")
    def _some_tasks_bring_their_data(self) -> Self:
        refused = f"nothing, because the task {self.task} brings its own"
        require(self.task not in BUNDLED or self.data is None, "data", refused, self.data)
        return self


def check_data(settings: TaskSettings) -> None:
    """Raises ValueError unless the folder of the data is there, where one is given."""
    data = settings.data
    require(data is None or _is_folder(data), "data", "an existing folder", data)


def _is_folder(path: str) -> bool:
    try:
        return bool(path) and Path(path).is_dir()
    except OSError:  # too long a name, or no right to look
        return False


def check_folder(out: Path) -> None:
    """Raises ValueError unless `out` is a writable folder or can be made; writes nothing."""
    existing = out.absolute()
    try:
        while not existing.exists() and existing != existing.parent:
            require(not existing.is_symlink(), "out", "a folder", f"{out} (a link to nothing)")
            existing = existing.parent
    except OSError as error:
        raise ValueError(f"out: wanted a folder, got {error}") from None
    require(existing.is_dir(), "out", "a folder", f"{out} ({existing} is a file)")
    writable = os.access(existing, os.W_OK | os.X_OK)
    require(writable, "out", "a writable folder", f"{out} ({existing} is read-only)")
