"""The command `fastfood pretrain`, which trains on masked words, next words or masked patches for a
few steps and saves checkpoints that a study can measure.

Checkpoint N depends on the settings alone, not on which checkpoints follow or on where a run was
stopped: the learning rate is constant after the warm-up, and masks and dropout are functions of the
seed and of the batch or the step. Nothing heavy is imported before the arguments have been read."""

import fcntl
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

from ..files import as_os_errors, whole
from ..refusal import end, one_line
from ..settings.options import read, with_options
from ..settings.pretraining import Pretraining, complete

RECORD, RESUME, LOCK = "pretrain.json", "resume", "pretrain.lock"
RESUME_EVERY = 500  # steps
LOSS_STEPS = 50  # a checkpoint's loss is the mean over its last 50 steps


def run(pretraining: Pretraining, say: Callable[[str], None] = lambda line: None) -> list[Path]:
    """Makes the checkpoints that are missing in `out` and returns the folders of all, out/step-N.

    Each folder loads with AutoModelForSequenceClassification and AutoTokenizer (digits:
    AutoModelForImageClassification, causal: AutoModelForCausalLM) and holds pretrain.json. A run
    that was stopped goes on from its last saved state. Raises ValueError naming the argument,
    before anything is written, if an argument is wrong or the folder holds checkpoints of other
    settings.
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
        with as_os_errors():
            _train(pretraining, record, say)
    finally:
        torch.set_num_threads(threads)
    return folders


def _check_record(pretraining: Pretraining) -> dict:
    """The settings that checkpoints depend on; raises ValueError if the folder's are different."""
    settings = json.loads(json.dumps(pretraining.model_dump()))
    settings = {k: v for k, v in settings.items() if k not in ("out", "checkpoints")}
    path = Path(pretraining.out, RECORD)
    if path.is_file():
        try:
            saved = dict(json.loads(path.read_text())["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"out: wanted a whole {path}, got {error!r}") from None
        fields = Pretraining.model_fields  # a setting that was added later had its default then
        saved = {name: fields[name].default for name in settings} | saved
        changed = [name for name in settings if saved[name] != settings[name]]
        if changed:
            got = f"{changed[0]} = {settings[changed[0]]!r}, not {saved[changed[0]]!r}"
            raise ValueError(f"out: wanted the settings of {path}, got {got}")
    return {"settings": settings}


def _train(pretraining: Pretraining, record: dict, say: Callable[[str], None]) -> None:
    from ..data.checkpoints import use_cache_without_network
    from .causal import causal_parts
    from .environment import environment
    from .masked import masked_parts

    use_cache_without_network(pretraining, pretraining.tokenizer)
    from transformers import set_seed
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_seed(pretraining.seed)
    make_parts = causal_parts if pretraining.causal else masked_parts
    model, tokenizer, rows, collate = make_parts(pretraining)
    record |= environment()
    out = Path(pretraining.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second driver waits, then finds all checkpoints
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
    """Makes save(step, losses), which writes a checkpoint if it is asked for and missing."""
    out = Path(pretraining.out)

    def save(step: int, losses: list[float]) -> None:
        if step not in pretraining.checkpoints or (out / f"step-{step}").exists():
            return
        recent = losses[-LOSS_STEPS:]
        loss = sum(recent) / len(recent) if recent else None
        partial = out / f".step-{step}"
        try:
            for part in (model, tokenizer):
                if part is not None:
                    part.save_pretrained(partial)
            _write_json(partial / RECORD, record | {"step": step, "loss": loss})
            partial.rename(out / f"step-{step}")
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        say(f"wrote {out / f'step-{step}'}" + (f", loss {loss:.4f}" if recent else ""))

    return save


def _trainer(pretraining: Pretraining, model, rows: list[dict], collate, save):
    import torch
    from transformers import TrainerCallback

    from .masked import random_numbers
    from .train import silent_trainer

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

    model.accepts_loss_kwargs = False  # the loss is the mean of a batch
    return silent_trainer(
        model,
        rows,
        collate,
        callbacks=[Steps()],
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
        dataloader_pin_memory=torch.cuda.is_available() and pretraining.device != "cpu",
        logging_steps=1,
        save_steps=RESUME_EVERY,
        save_total_limit=1,
    )


def _last_state(folder: Path, before: int) -> str | None:
    """The last complete state that a stopped run saved before step `before`, or None."""
    states = {}
    for state in folder.glob("checkpoint-*/trainer_state.json"):
        try:  # the Trainer writes this file last, so its state is complete
            step = json.loads(state.read_text())["global_step"]
        except (ValueError, KeyError):
            continue
        if step < before:
            states[step] = str(state.parent)
    return states[max(states)] if states else None


def _write_json(path: Path, content: dict) -> None:
    with whole(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


@with_options("options", Pretraining)
def pretrain(options: dict) -> None:
    """Trains on masked words, next words or masked patches, and saves checkpoints to be measured.

    Examples:

    `fastfood pretrain --out vit --checkpoints 0,100,1000`

    `fastfood pretrain --task glue/sst2 --vocabulary 4096 --layers 4 --out bert`

    `fastfood pretrain --causal --task arithmetic --checkpoints 0,2500 --out llama`

    `--model` of other commands takes each OUT/step-N. Labels, validation and test rows are not
    used. Stop it at any time: the same command goes on where it stopped. Exit codes: 0 done, 1
    diverged, 2 bad input, 130 interrupted.
    """
    with one_line("pretrain"):
        try:
            run(read(Pretraining, options), say=lambda line: print(line, flush=True))
        except FloatingPointError as error:
            end("pretrain", error, code=1)
        except KeyboardInterrupt:
            end("pretrain", "stopped; the same command goes on from here", code=130)
