"""Learning from rewards by TRL's GRPOTrainer (Shao et al., 2024, section 4.1), as it comes: each
step samples several completions of a prompt, and those with more reward than the mean of their
prompt become likelier."""

import logging
import warnings

import torch
from torch import nn

from ..data.written import WrittenTask
from ..settings.measurement import Settings
from ..settings.trial import Trial
from .models import SAFELY
from .rewards import Reward

TRL_NEEDED = "the package trl (pip install trl), which needs Python 3.11 or later"


def check_grpo(settings: Settings, task: WrittenTask) -> None:
    """Raises ValueError where TRL is missing or does not train such a model."""
    try:
        _trl()
    except ImportError as error:
        raise ValueError(f"objective: wanted {TRL_NEEDED}, for grpo, got {error}") from None
    if task.encoder_decoder:
        wanted = "a model of one stack of layers for the objective grpo"
        raise ValueError(f"model: wanted {wanted}, got {settings.model!r}")


def _trl():
    import trl

    logging.getLogger("trl").setLevel(logging.ERROR)  # it warns of what is meant so
    return trl


def make_grpo_trainer(
    trial: Trial,
    groups: list[dict],
    task: WrittenTask,
    model: nn.Module,
    reward: Reward,
    arguments: dict,
):
    """A silent GRPOTrainer of a model on a task's training prompts. `groups` are the optimizer's
    groups of parameters, `arguments` those of any training by a Trainer."""
    from datasets import Dataset, disable_progress_bars
    from transformers import PrinterCallback

    disable_progress_bars()
    trl = _trl()
    if trial.beta:  # TRL loads the base model again, by its name, unless PEFT has an adapter on it
        again = SAFELY | {"revision": trial.revision or "main"}
        arguments = arguments | {"model_init_kwargs": again}
    rows = [{"prompt": row["asked"], "reference": row["completion"]} for row in task.train]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about what TRL asks transformers
        trainer = trl.GRPOTrainer(
            model,
            reward_funcs=reward,
            args=trl.GRPOConfig(
                **{"gradient_checkpointing": False} | arguments,
                num_generations=trial.generations,
                max_completion_length=task.max_new_tokens,
                temperature=trial.temperature,
                beta=trial.beta,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=task.tokenizer,
            optimizers=(torch.optim.AdamW(groups, weight_decay=0.0), None),
        )
    trainer.remove_callback(PrinterCallback)
    return trainer
