"""One trial: full fine-tuning, DID or SAID of one model with one rate and one seed, through
`transformers.Trainer`. On the CPU the same trial always gives the same score."""

import time
from pathlib import Path

import torch
from torch import nn

from .config import Settings
from .tasks import Task, load_task

EVALUATION_BATCH = 128


def build_base(settings: Settings, num_labels: int, seed: int) -> nn.Module:
    """The base model theta_0 of a seed: the same for every method, d and rate.

    Raises ValueError when the model cannot be loaded.
    """
    from transformers import AutoModelForSequenceClassification, set_seed
    from transformers.utils import logging

    logging.set_verbosity_error()  # a new head is no news here
    logging.disable_progress_bar()
    set_seed(seed)  # decides a new head's weights, or all weights of the digits model
    if settings.task == "digits":
        return _digits_model(num_labels)
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            settings.model,
            num_labels=num_labels,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        wanted = "a folder or hub name of a sequence classification model"
        raise ValueError(f"model: wanted {wanted}, got {settings.model!r} ({reason})") from error


def _digits_model(num_labels: int) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=2,
            num_channels=1,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=256,
            num_labels=num_labels,
        )
    )


def build_model(settings: Settings, trial: dict, num_labels: int) -> nn.Module:
    """The module that a trial trains, on the device that it will stay on."""
    base = build_base(settings, num_labels, trial["seed"]).to(trial["device"])
    if trial["method"] == "full":
        return base
    import fastfood

    config = fastfood.SubspaceConfig(
        trial["d"],
        method=trial["method"],
        seed=trial["seed"],
        normalization=trial["normalization"],
    )
    return fastfood.get_subspace_model(base, config)


def parameter_groups(model: nn.Module, trial: dict) -> list[dict]:
    """The optimizer's groups: theta and lambda with their own rates, or every base parameter."""
    import fastfood

    if trial["method"] != "full":
        return fastfood.parameter_groups(model, trial["learning_rate"], trial["lambda_lr"])
    return [
        {
            "params": [p for p in model.parameters() if p.requires_grad],
            "lr": trial["learning_rate"],
        }
    ]


def make_trainer(settings: Settings, trial: dict, task: Task, model: nn.Module):
    """A silent Trainer for the trial; the rates rise for `warmup` of the steps, then fall to 0."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=settings.out,  # nothing is written there: no checkpoints, no logs
        max_steps=trial["max_steps"],
        per_device_train_batch_size=trial["batch_size"],
        per_device_eval_batch_size=EVALUATION_BATCH,
        lr_scheduler_type="linear",
        warmup_steps=trial["warmup"],
        bf16=trial["bf16"],
        use_cpu=trial["device"] == "cpu",
        seed=trial["seed"],
        label_names=["labels"],
        remove_unused_columns=False,  # the collator makes exactly what the model takes
        dataloader_pin_memory=trial["device"] != "cpu",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    model.accepts_loss_kwargs = False  # the loss is the batch's mean, for base and subspace alike
    model.floating_point_ops = lambda inputs: 0  # counting them takes 4 % of a small model's step
    groups = parameter_groups(model, trial)
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=task.collate,
        train_dataset=task.train,
        optimizer_cls_and_kwargs=(torch.optim.AdamW, {"params": groups, "weight_decay": 0.0}),
        preprocess_logits_for_metrics=_predicted_labels,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _predicted_labels(logits, labels) -> torch.Tensor:
    # encoder-decoder models return their hidden states beside the logits
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


def train_trial(settings: Settings, trial: dict) -> dict:
    """Trains and scores one trial; accuracies are shares in [0, 1].

    Returns `validation` and `test` accuracy, `seconds`, and the `accelerator`'s name or None.
    """
    start = time.perf_counter()
    if trial["device"] == "cpu":
        torch.set_num_threads(1)  # sums depend on the number of threads
    task = load_task(settings)
    model = build_model(settings, trial, task.num_labels)
    trainer = make_trainer(settings, trial, task, model)
    trainer.train()
    scores = {}
    for part in ("validation", "test"):
        predicted = trainer.predict(getattr(task, part)).predictions
        scores[part] = float((predicted == task.labels[part]).mean())
    if settings.save_adapters and trial["method"] != "full":
        name = f"{trial['method']}-d{trial['d']}-rate{trial['learning_rate']}-seed{trial['seed']}"
        model.save_pretrained(Path(settings.out, "adapters", name))
    on_cpu = trial["device"] == "cpu"
    accelerator = None if on_cpu else torch.cuda.get_device_name()
    return scores | {"seconds": time.perf_counter() - start, "accelerator": accelerator}
