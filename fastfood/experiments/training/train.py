"""One trial: one model trained by one method with one rate and one seed, through
`transformers.Trainer`, and its scores. On the CPU the same trial always gives the same scores."""

import functools
import math
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

import torch
from torch import nn

from ...subspace import SubspaceModel
from ..data.task import LabelledTask, Task
from ..data.tasks import LoadedTask, load_task
from ..data.written import WrittenTask
from ..settings.measurement import Settings
from ..settings.metrics import score
from ..settings.trial import Pruned, Score, Trial
from .grpo import make_grpo_trainer
from .models import build_model, parameter_groups, trained_numbers
from .rewards import answer_rewards, load_reward
from .writing import evaluating, score_written

EVALUATION_BATCH = 128
KEPT_ROWS = 5000  # a part of at most so many rows is tokenized once for all trials
CHECKS = 10  # how often a training looks whether it has diverged
SILENT = {
    "remove_unused_columns": False,
    "logging_nan_inf_filter": False,  # the filter would hide that a training diverged
    "report_to": "none",
    "disable_tqdm": True,
    "log_level": "error",
}


@dataclass(frozen=True)
class Schedule:
    """How a training goes, whatever it trains."""

    max_steps: int
    batch_size: int
    warmup: float  # the share of the steps in which the learning rate rises
    bf16: bool
    device: str
    seed: int  # of the order of the rows
    accumulation: int = 1  # passes that a step's rows are divided into
    gradient_checkpointing: bool = False

    @classmethod
    def of(cls, trial: Trial) -> "Schedule":
        named = {name: getattr(trial, name) for name in cls.__dataclass_fields__}
        return cls(**{name: value for name, value in named.items() if value is not None})

    def arguments(self) -> dict:
        """The arguments of a training that keeps no checkpoint."""
        return {
            "output_dir": gettempdir(),  # it has to exist; nothing is written there
            "max_steps": self.max_steps,
            "per_device_train_batch_size": self.batch_size // self.accumulation,
            "gradient_accumulation_steps": self.accumulation,
            "lr_scheduler_type": "linear",
            "warmup_steps": self.warmup,
            "bf16": self.bf16,
            "use_cpu": self.device == "cpu",
            "seed": self.seed,
            "label_names": ["labels"],
            "dataloader_pin_memory": self.device != "cpu",
            "logging_strategy": "no",
            "save_strategy": "no",
            **({"gradient_checkpointing": True} if self.gradient_checkpointing else {}),
        }


def train_trial(settings: Settings, trial: Trial, floor: float | None = None) -> Score:
    """Trains and scores one trial.

    The score has `halfway` with `settings.prune` alone. Raises FloatingPointError when the loss or
    a parameter is not finite, and with `settings.prune` Pruned when `halfway` is below `floor`.
    """
    start = time.perf_counter()
    _share_the_machine(settings, trial)
    task = load_task(settings)
    model = build_model(settings, trial, task.num_labels)
    trained, head_trained = trained_numbers(model, trial)
    halfway = seconds_per_step = None
    if trial.method != "base":
        halfway, seconds_per_step = _fit(settings, trial, task, model, floor)
    scores = _scores(trial, task, model)
    if settings.save_adapters and isinstance(model, SubspaceModel):
        name = f"{trial.method}-d{trial.d}-rate{trial.learning_rate}-seed{trial.seed}"
        model.save_pretrained(Path(settings.out, "adapters", f"{name}-{trial.key}"))
    return Score(
        **scores,
        halfway=halfway,
        trained=trained,
        head_trained=head_trained,
        seconds=time.perf_counter() - start,
        seconds_per_step=seconds_per_step,
        accelerator=None if trial.device == "cpu" else torch.cuda.get_device_name(),
    )


def _share_the_machine(settings: Settings, trial: Trial) -> None:
    if trial.device == "cpu":
        torch.set_num_threads(1)  # sums depend on the number of threads
        return
    torch.cuda.empty_cache()  # another process may need the memory that the last trial kept
    if settings.gpu_share < 1:  # a trial that takes more than its share fails itself, not another
        torch.cuda.set_per_process_memory_fraction(settings.gpu_share)


def _fit(
    settings: Settings,
    trial: Trial,
    task: LoadedTask,
    model: nn.Module,
    floor: float | None,
) -> tuple[float | None, float]:
    """Trains the model in place; returns the score at half of the steps, None without
    `settings.prune`, and the seconds of a step."""
    steps = trial.max_steps
    every, half = math.ceil(steps / CHECKS), math.ceil(steps / 2)
    halfway, paused = None, 0.0

    def after_step(step: int) -> None:
        nonlocal halfway, paused
        stop = settings.prune and step == half
        if stop or step % every == 0 or step == steps:
            _check_finite(model, step)  # on a GPU this also waits for the step
        if stop:
            start = time.perf_counter()
            halfway = _score(trial, task, model, task.validation)
            paused = time.perf_counter() - start
            if floor is not None and halfway < floor:
                raise Pruned(halfway, floor, step)

    schedule, groups = Schedule.of(trial), parameter_groups(model, trial)
    if isinstance(task, WrittenTask) and trial.objective == "grpo":
        reward = load_reward(trial.reward) if trial.reward else answer_rewards(task)
        arguments = SILENT | schedule.arguments()
        trainer = make_grpo_trainer(trial, groups, task, model, reward, arguments)
    else:
        trainer = make_trainer(schedule, groups, task, model)
    trainer.add_callback(_step_callback(after_step))
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about what TRL asks transformers
        loss = trainer.train().training_loss
    seconds = time.perf_counter() - start - paused
    if not math.isfinite(loss):
        raise FloatingPointError(f"diverged: the mean loss of {steps} steps is {loss}")
    return halfway, seconds / steps


def _check_finite(model: nn.Module, step: int) -> None:
    trained = [p.detach() for p in model.parameters() if p.requires_grad]
    # A tensor with an entry that is not finite has a sum that is not finite either; a sum of finite
    # entries in float64 does not overflow.
    sums = torch.stack([p.sum(dtype=torch.float64) for p in trained])
    if not sums.isfinite().all():
        raise FloatingPointError(f"diverged: a parameter is not finite after {step} steps")


def _step_callback(act: Callable[[int], None]):
    """A callback of the Trainer that calls act(step) after every optimizer step."""
    from transformers import TrainerCallback

    class AfterStep(TrainerCallback):
        def on_step_end(self, args, state, control, **others):
            act(state.global_step)

    return AfterStep()


def make_trainer(schedule: Schedule, groups: list[dict], task: Task, model: nn.Module):
    """A silent Trainer of a model on a task's training rows. `groups` are the optimizer's groups of
    parameters with their learning rates, which rise for `warmup` of the steps, then fall to 0."""
    trainer = silent_trainer(
        model,
        task.train,
        task.collate,
        optimizer_cls_and_kwargs=(torch.optim.AdamW, {"params": groups, "weight_decay": 0.0}),
        **schedule.arguments(),
    )
    trainer.floating_point_ops = lambda inputs: 0  # counting them takes 4 % of a small model's step
    return trainer


def silent_trainer(
    model: nn.Module,
    rows: Sequence[dict],
    collate: Callable,
    optimizer_cls_and_kwargs: tuple | None = None,
    callbacks: list | None = None,
    **arguments,
):
    """A Trainer that prints and reports nothing, with further TrainingArguments; `collate` makes
    exactly what the model takes."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    trainer = Trainer(
        model=model,
        args=TrainingArguments(**SILENT | arguments),
        data_collator=collate,
        train_dataset=rows,
        optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _score(trial: Trial, task: LoadedTask, model: nn.Module, rows: Sequence[dict]) -> float:
    """The score of rows of the task in the trial's metric."""
    if isinstance(task, LabelledTask):
        return score(trial.metric, *predict(model, task, rows, trial.bf16))
    reward = load_reward(trial.reward) if trial.reward else None
    return score_written(trial.metric, model, task, rows, trial.bf16, reward)


def _scores(trial: Trial, task: LoadedTask, model: nn.Module) -> dict[str, float | None]:
    if isinstance(task, WrittenTask):
        parts = {"validation": task.validation, "test": task.test}
        return {part: _score(trial, task, model, rows) for part, rows in parts.items()}
    validation = predict(model, task, task.validation, trial.bf16)
    test = predict(model, task, task.test, trial.bf16)
    scores = {
        "validation": score(trial.metric, *validation),
        "test": score(trial.metric, *test),
        "test_accuracy": None if task.of_numbers else score("accuracy", *test),
        "train_accuracy": None,
    }
    if trial.gap_rows and not task.of_numbers:
        rows = some_rows(task.train, trial.gap_rows)
        scores["train_accuracy"] = score("accuracy", *predict(model, task, rows, trial.bf16))
    return scores


def some_rows(rows: Sequence[dict], count: int) -> list[dict]:
    """At most `count` of the rows, always the same random choice, texts by length."""
    chosen = random.Random(0).sample(range(len(rows)), min(count, len(rows)))
    return sorted((rows[i] for i in chosen), key=_length)


def predict(
    model: nn.Module, task: LabelledTask, rows: Sequence[dict], bf16: bool = False
) -> tuple[list[float], list[float]]:
    """The labels that the model predicts for rows of the task, and their true labels: classes, or
    numbers as `task.collate` scales them.

    It runs in evaluation mode and leaves the model's mode and the random numbers as they were.
    """
    parts = [part for part in ("validation", "test") if rows is getattr(task, part)]
    keep = parts and len(rows) <= KEPT_ROWS
    batches = _kept_batches(task, parts[0]) if keep else _batches(task, rows)
    order, labels, predicted = [], [], []
    with evaluating(model, bf16) as device:
        for numbers, batch in batches:
            inputs = {name: x.to(device) for name, x in batch.items() if name != "labels"}
            logits = model(**inputs).logits
            predicted.append(logits[:, 0].float() if task.of_numbers else logits.argmax(-1))
            labels.append(batch["labels"])
            order += numbers
    by_row = torch.tensor(order).argsort()
    answers, wanted = (torch.cat(x).cpu()[by_row].tolist() for x in (predicted, labels))
    return answers, wanted


def _batches(task: Task, rows: Sequence[dict]) -> Iterator[tuple[list[int], dict]]:
    """The numbers of a batch's rows among all, and the batch. Texts come by length, so that little
    of a batch is padding."""
    rows = list(rows)
    order = sorted(range(len(rows)), key=lambda i: _length(rows[i]))
    for start in range(0, len(rows), EVALUATION_BATCH):
        numbers = order[start : start + EVALUATION_BATCH]
        yield numbers, task.collate([rows[i] for i in numbers])


@functools.lru_cache(maxsize=4)
def _kept_batches(task: Task, part: str) -> list[tuple[list[int], dict]]:
    """The batches of a part that every trial of a study is scored on."""
    return list(_batches(task, getattr(task, part)))


def _length(row: dict) -> int:
    return sum(len(value) for value in row.values() if isinstance(value, str))
