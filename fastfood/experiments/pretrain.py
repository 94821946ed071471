"""`fastfood pretrain`: a short masked-LM or masked-patch run whose checkpoints a study can measure.

Checkpoint N depends on the settings alone, not on which checkpoints follow or on where a run was
stopped: the rate is constant after the warm-up, and masks and dropout are functions of the seed and
of the batch or the step. Nothing heavy is imported before the arguments have been read."""

import fcntl
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from .config import Settings
from .config import complete as complete_settings
from .masked import SIZE_NAMES

RECORD, RESUME, LOCK = "pretrain.json", "resume", "pretrain.lock"
DEVICES = ("auto", "cpu", "cuda")
RESUME_EVERY = 500  # steps
LOSS_STEPS = 50  # a checkpoint's loss is the mean of so many steps
TEXT_DEFAULTS = {
    "hidden_size": 128,
    "layers": 2,
    "heads": 2,
    "intermediate_size": 512,
    "mask": 0.15,
}
DIGITS_DEFAULTS = {
    "hidden_size": 64,
    "layers": 2,
    "heads": 4,
    "intermediate_size": 256,
    "mask": 0.5,
}


@dataclass(frozen=True)
class Pretraining:
    """Everything that a run depends on; `None` means the default of text or of digits. The sizes
    and `architecture` are of a new model; `model` goes on from the weights of a folder or of the
    hub instead."""

    out: str
    checkpoints: tuple[int, ...] = (0, 50, 200, 800)  # optimizer steps
    task: str = "digits"
    data: str | None = None
    text_columns: tuple[str, ...] | None = None
    label_column: str | None = None
    splits: tuple[str, ...] | None = None
    architecture: str | None = None  # a model_type of transformers: bert, roberta, electra, ...
    hidden_size: int | None = None
    layers: int | None = None
    heads: int | None = None
    intermediate_size: int | None = None
    tokenizer: str | None = None  # a folder or a hub name; by default the model's
    vocabulary: int | None = None  # or a new tokenizer of so many pieces of the training words
    model: str | None = None
    revision: str | None = None
    mask: float | None = None  # share of the tokens or patches
    batch_size: int = 32
    max_length: int = 64
    learning_rate: float = 1e-3
    warmup: int = 20  # steps
    weight_decay: float = 0.01
    seed: int = 0
    bf16: bool = False
    device: str = "auto"
    threads: int = 1  # of the CPU


def run(pretraining: Pretraining, say: Callable[[str], None] = lambda line: None) -> list[Path]:
    """Makes the checkpoints that are missing in `out` and returns the folders of all, out/step-N.

    Each loads with AutoModelForSequenceClassification and AutoTokenizer (digits:
    AutoModelForImageClassification) and holds pretrain.json. A run that was stopped goes on from
    its last saved state. Raises ValueError naming the argument before anything is written, also
    when the folder holds checkpoints of other settings.
    """
    pretraining = complete(pretraining)
    out = Path(pretraining.out)
    record = _check_record(pretraining)
    folders = [out / f"step-{step}" for step in pretraining.checkpoints]
    if all(folder.is_dir() for folder in folders):
        return folders
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(pretraining.threads)
    try:
        _train(pretraining, record, say)
    finally:
        torch.set_num_threads(threads)
    return folders


def complete(pretraining: Pretraining) -> Pretraining:
    """Fills in the defaults and checks every value that needs no torch and no data."""
    digits = pretraining.task == "digits"
    lists = {k: tuple(v) for k, v in vars(pretraining).items() if isinstance(v, list)}
    given = replace(pretraining, **lists)
    if digits:
        for name in ("architecture", "tokenizer", "vocabulary", "model"):
            _require(getattr(given, name) is None, name, "nothing for digits", getattr(given, name))
    elif given.model:
        for name in ("architecture", "vocabulary", *SIZE_NAMES):
            wanted = "nothing beside model, which has its own"
            _require(getattr(given, name) is None, name, wanted, getattr(given, name))
    else:
        wanted = "a tokenizer's folder or hub name, or else a vocabulary, for a new model"
        one = bool(given.tokenizer) != (given.vocabulary is not None)
        _require(one, "tokenizer", wanted, given.tokenizer)
        size = given.vocabulary
        _require(size is None or size >= 10, "vocabulary", "at least 10 pieces", size)
        given = replace(given, architecture=given.architecture or "bert")
    defaults = DIGITS_DEFAULTS if digits else TEXT_DEFAULTS
    filled = {"mask"} if given.model else set(defaults)
    given = replace(given, **{n: defaults[n] for n in filled if getattr(given, n) is None})
    for name in (*(SIZE_NAMES if not given.model else ()), "threads"):
        value = getattr(given, name)
        _require(isinstance(value, int) and value >= 1, name, "at least 1", value)
    if not given.model:
        wanted = f"a multiple of heads = {given.heads}"
        _require(given.hidden_size % given.heads == 0, "hidden_size", wanted, given.hidden_size)
    steps = given.checkpoints
    whole = bool(steps) and all(isinstance(step, int) and step >= 0 for step in steps)
    _require(whole, "checkpoints", "whole numbers of steps", steps)
    _require(given.warmup >= 0, "warmup", "a number of steps", given.warmup)
    _require(0 < given.mask < 1, "mask", "a share in (0, 1)", given.mask)
    rate = given.learning_rate
    _require(math.isfinite(rate) and rate > 0, "learning_rate", "a finite rate above 0", rate)
    _require(given.device in DEVICES, "device", ", ".join(DEVICES), given.device)
    complete_settings(_task_settings(given))
    return replace(given, checkpoints=tuple(sorted(set(steps))))


def _require(condition: bool, name: str, wanted: str, got) -> None:
    if not condition:
        raise ValueError(f"{name}: wanted {wanted}, got {got!r}")


def _check_record(pretraining: Pretraining) -> dict:
    """The settings that checkpoints depend on; raises ValueError when the folder has others."""
    settings = json.loads(json.dumps(asdict(pretraining)))
    settings = {k: v for k, v in settings.items() if k not in ("out", "checkpoints")}
    path = Path(pretraining.out, RECORD)
    if path.is_file():
        known = json.loads(path.read_text())["settings"]
        changed = [name for name in settings if known.get(name) != settings[name]]
        if changed:
            got = f"{changed[0]} = {settings[changed[0]]!r}, not {known.get(changed[0])!r}"
            raise ValueError(f"out: wanted the settings of {path}, got {got}")
    return {"settings": settings}


def _train(pretraining: Pretraining, record: dict, say: Callable[[str], None]) -> None:
    from .masked import masked_parts
    from .tasks import use_cache_without_network
    from .workers import environment

    settings = _task_settings(pretraining)
    use_cache_without_network(settings)
    from transformers import set_seed

    set_seed(pretraining.seed)
    model, tokenizer, rows, collate = masked_parts(pretraining, settings)
    record |= environment()
    out = Path(pretraining.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a driver that comes second waits and finds all done
        _write_json(out / RECORD, record)
        for partial in out.glob(".step-*"):
            shutil.rmtree(partial)
        save = _saver(pretraining, record, model, tokenizer, say)
        save(0, [])
        missing = [n for n in pretraining.checkpoints if not (out / f"step-{n}").exists()]
        if missing:
            trainer = _trainer(pretraining, model, rows, collate, save)
            trainer.train(resume_from_checkpoint=_last_state(out / RESUME, missing[0]))


def _saver(pretraining, record, model, tokenizer, say) -> Callable[[int, list[float]], None]:
    """Makes save(step, losses), which writes a checkpoint that is asked for and not there."""
    out = Path(pretraining.out)

    def save(step: int, losses: list[float]) -> None:
        if step not in pretraining.checkpoints or (out / f"step-{step}").exists():
            return
        recent = losses[-LOSS_STEPS:]
        loss = sum(recent) / len(recent) if recent else None
        partial = out / f".step-{step}"
        for part in (model, tokenizer):
            if part is not None:
                part.save_pretrained(partial)
        _write_json(partial / RECORD, record | {"step": step, "loss": loss})
        partial.rename(out / f"step-{step}")
        say(f"wrote {out / f'step-{step}'}" + (f", loss {loss:.4f}" if recent else ""))

    return save


def _task_settings(pretraining: Pretraining) -> Settings:
    names = ("task", "data", "text_columns", "label_column", "splits", "revision")
    names += ("batch_size", "max_length", "out")
    given = {name: getattr(pretraining, name) for name in names}
    # a new tokenizer comes from nowhere, which a folder that is there stands for
    model = None if pretraining.task == "digits" else "."
    return Settings(**given, model=pretraining.tokenizer or pretraining.model or model)


def _trainer(pretraining: Pretraining, model, rows: list[dict], collate, save):
    import torch
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    from .masked import random_numbers

    class Steps(TrainerCallback):
        def on_step_begin(self, args, state, control, **others):
            torch.manual_seed(random_numbers(pretraining.seed, state.global_step).initial_seed())

        def on_step_end(self, args, state, control, **others):
            control.should_save |= state.global_step in pretraining.checkpoints

        def on_log(self, args, state, control, **others):
            losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"diverged at step {state.global_step}")
            save(state.global_step, losses)

    arguments = TrainingArguments(
        output_dir=str(Path(pretraining.out, RESUME)),
        max_steps=pretraining.checkpoints[-1],
        per_device_train_batch_size=pretraining.batch_size,
        learning_rate=pretraining.learning_rate,
        weight_decay=pretraining.weight_decay,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=pretraining.warmup,
        bf16=pretraining.bf16,
        use_cpu=pretraining.device == "cpu",
        seed=pretraining.seed,
        data_seed=pretraining.seed,
        remove_unused_columns=False,  # the collator makes exactly what the model takes
        dataloader_pin_memory=torch.cuda.is_available() and pretraining.device != "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=RESUME_EVERY,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    model.accepts_loss_kwargs = False  # the loss is the batch's mean
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=collate,
        train_dataset=rows,
        callbacks=[Steps()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _last_state(folder: Path, before: int) -> str | None:
    """The last whole state of a stopped run from which step `before` can still be reached."""
    whole = {}
    for state in folder.glob("checkpoint-*/trainer_state.json"):
        try:  # this file is written last
            step = json.loads(state.read_text())["global_step"]
        except (ValueError, KeyError):
            continue
        if step < before:
            whole[step] = str(state.parent)
    return whole[max(whole)] if whole else None


def _write_json(path: Path, content: dict) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)


def _option(panel: str, text: str, *names: str, metavar: str | None = None):
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel=panel)


def pretrain(
    out: Annotated[
        str,
        _option("Output", "Folder of step-0, step-50, ...; the same folder again resumes."),
    ],
    checkpoints: Annotated[
        str, _option("Output", "Steps after which to save, between commas.", metavar="N,...")
    ] = ",".join(map(str, Pretraining.checkpoints)),
    task: Annotated[str, _option("Data", "digits, or a text task as of d90.")] = "digits",
    data: Annotated[
        str | None, _option("Data", "A folder of local files; without it the hub.", metavar="DIR")
    ] = None,
    text_columns: Annotated[
        str | None, _option("Data", "Columns of text of your own data set.", metavar="NAME,...")
    ] = None,
    label_column: Annotated[str | None, _option("Data", "Its column of labels.")] = None,
    splits: Annotated[
        str | None, _option("Data", "Its splits: train, validation, test.", metavar="NAME,...")
    ] = None,
    architecture: Annotated[
        str | None, _option("Model", "bert, roberta, electra, albert, bart, ...  [default: bert]")
    ] = None,
    hidden_size: Annotated[int | None, _option("Model", "Width; 128, digits 64.")] = None,
    layers: Annotated[int | None, _option("Model", "Layers (of each stack); 2.")] = None,
    heads: Annotated[int | None, _option("Model", "Attention heads; 2, digits 4.")] = None,
    intermediate_size: Annotated[
        int | None, _option("Model", "Width of the feed-forward layers; 512, digits 256.")
    ] = None,
    tokenizer: Annotated[
        str | None, _option("Model", "A folder or hub name, for a new model.", metavar="NAME")
    ] = None,
    vocabulary: Annotated[
        int | None,
        _option("Model", "Or make a tokenizer of so many pieces of the training text's words."),
    ] = None,
    model: Annotated[
        str | None,
        _option("Model", "Go on from a masked LM's folder or hub name.", metavar="NAME"),
    ] = None,
    revision: Annotated[str | None, _option("Model", "Of a hub model.")] = None,
    mask: Annotated[
        float | None, _option("Training", "Share that is masked; 0.15, of patches 0.5.")
    ] = None,
    batch_size: Annotated[int, _option("Training", "Rows of a step.")] = Pretraining.batch_size,
    max_length: Annotated[
        int, _option("Training", "Tokens of a text at most.")
    ] = Pretraining.max_length,
    learning_rate: Annotated[
        float, _option("Training", "Constant after the warm-up.")
    ] = Pretraining.learning_rate,
    warmup: Annotated[int, _option("Training", "Steps of warm-up.")] = Pretraining.warmup,
    weight_decay: Annotated[float, _option("Training", "Of AdamW.")] = Pretraining.weight_decay,
    seed: Annotated[int, _option("Training", "Of weights, order and masks.")] = Pretraining.seed,
    bf16: Annotated[bool, _option("Training", "Compute in bfloat16 (autocast).", "--bf16")] = False,
    device: Annotated[str, _option("Training", "auto, cpu or cuda.")] = Pretraining.device,
    threads: Annotated[int, _option("Training", "CPU threads.")] = Pretraining.threads,
) -> None:
    """Makes checkpoints along a short masked-LM or masked-patch run, for `fastfood study`.

    Examples:

    `fastfood pretrain --out vit --checkpoints 0,100,1000`

    `fastfood pretrain --task glue/sst2 --vocabulary 4096 --layers 4 --out bert`

    Each OUT/step-N is a model's folder for `--model`. Labels, validation and test rows are not
    used. Stop it at any time: the same command goes on where it stopped. Exit codes: 0 done, 1
    diverged, 2 bad input, 130 interrupted.
    """
    given = dict(locals())
    try:
        given["checkpoints"] = tuple(int(part) for part in checkpoints.split(",") if part.strip())
    except ValueError:
        _fail(f"checkpoints: wanted whole numbers between commas, got {checkpoints!r}", 2)
    for name in ("text_columns", "splits"):
        if given[name] is not None:
            given[name] = tuple(part.strip() for part in given[name].split(","))
    try:
        run(Pretraining(**given), say=lambda line: print(line, flush=True))
    except ValueError as error:
        _fail(str(error), 2)
    except FloatingPointError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("stopped; the same command goes on from here", 130)


def _fail(message: str, code: int) -> None:
    print(f"fastfood pretrain: error: {message}", file=sys.stderr)
    raise typer.Exit(code)
