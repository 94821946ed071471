"""The settings of a pre-training run. The checks here need neither torch nor data."""

import math
from dataclasses import dataclass, replace

from .measurement import Settings
from .measurement import complete as complete_settings
from .options import option, require

DEVICES = ("auto", "cpu", "cuda")
MOST_OF = {"hidden_size": 65_536, "intermediate_size": 262_144, "layers": 1_000}
MOST_OF |= {"heads": 1_000, "threads": 1_000}
MOST_PIECES = 10_000_000  # of a vocabulary
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


# The names of a model's sizes in the configurations of transformers.
SIZE_NAMES = {
    "hidden_size": ("hidden_size", "d_model", "dim"),
    "layers": (
        "num_hidden_layers",
        "encoder_layers",
        "decoder_layers",
        "num_layers",
        "num_decoder_layers",
        "n_layers",
        "n_layer",
    ),
    "heads": (
        "num_attention_heads",
        "encoder_attention_heads",
        "decoder_attention_heads",
        "num_heads",
        "n_heads",
        "n_head",
    ),
    "intermediate_size": (
        "intermediate_size",
        "encoder_ffn_dim",
        "decoder_ffn_dim",
        "d_ff",
        "hidden_dim",
        "d_inner",
    ),
}


@dataclass(frozen=True)
class Pretraining:
    """Everything that a run depends on; `None` means the default of text or of digits."""

    out: str = option("Output", "Folder of step-0, step-50, ...; the same folder again resumes.")
    checkpoints: tuple[int, ...] = option(
        "Output", "Optimizer steps after which to save.", (0, 50, 200, 800), metavar="N,..."
    )
    task: str = option("Data", "digits, or a text task as of d90.", "digits")
    data: str | None = option(
        "Data", "A folder of local files; without it the hub.", None, metavar="DIR"
    )
    text_columns: tuple[str, ...] | None = option(
        "Data", "Columns of text of any data set.", None, metavar="NAME,..."
    )
    label_column: str | None = option("Data", "Its column of labels.", None, metavar="NAME")
    splits: tuple[str, ...] | None = option(
        "Data", "Its splits train, (validation,) test.", None, metavar="NAME,..."
    )
    architecture: str | None = option(
        "Model",
        "Of a new model, a type of transformers: bert, roberta, electra, ...  [default: bert]",
        None,
    )
    hidden_size: int | None = option("Model", "Width; 128, digits 64.", None)
    layers: int | None = option("Model", "Layers (of each stack); 2.", None)
    heads: int | None = option("Model", "Attention heads; 2, digits 4.", None)
    intermediate_size: int | None = option(
        "Model", "Width of the feed-forward layers; 512, digits 256.", None
    )
    tokenizer: str | None = option(
        "Model", "A folder or hub name, for a new model.", None, metavar="NAME"
    )
    vocabulary: int | None = option(
        "Model", "Or make a tokenizer of so many pieces of the training text's words.", None
    )
    model: str | None = option(
        "Model", "Go on from a masked LM's folder or hub name.", None, metavar="NAME"
    )
    revision: str | None = option("Model", "Of a hub model.", None)
    mask: float | None = option("Training", "Share that is masked; 0.15, of patches 0.5.", None)
    batch_size: int = option("Training", "Rows of a step.", 32)
    max_length: int = option("Training", "Tokens of a text at most.", 64)
    learning_rate: float = option("Training", "Constant after the warm-up.", 1e-3)
    warmup: int = option("Training", "Steps of warm-up.", 20)
    weight_decay: float = option("Training", "Of AdamW.", 0.01)
    seed: int = option("Training", "Of weights, order and masks.", 0)
    bf16: bool = option("Training", "Compute in bfloat16 (autocast).", False)
    device: str = option("Training", "auto, cpu or cuda.", "auto")
    threads: int = option("Training", "CPU threads.", 1)


def complete(pretraining: Pretraining) -> Pretraining:
    """Fills in the defaults and checks every value that needs no torch and no data."""
    digits = pretraining.task == "digits"
    given = pretraining
    if digits:
        for name in ("architecture", "tokenizer", "vocabulary", "model"):
            require(getattr(given, name) is None, name, "nothing for digits", getattr(given, name))
    elif given.model:
        for name in ("architecture", "vocabulary", *SIZE_NAMES):
            wanted = "nothing beside model, which has its own"
            require(getattr(given, name) is None, name, wanted, getattr(given, name))
    else:
        wanted = "a tokenizer's folder or hub name, or else a vocabulary, for a new model"
        one = bool(given.tokenizer) != (given.vocabulary is not None)
        require(one, "tokenizer", wanted, given.tokenizer)
        size = given.vocabulary
        fits = size is None or 10 <= size <= MOST_PIECES
        require(fits, "vocabulary", f"10 to {MOST_PIECES:,} pieces", size)
        given = replace(given, architecture=given.architecture or "bert")
    defaults = DIGITS_DEFAULTS if digits else TEXT_DEFAULTS
    filled = {"mask"} if given.model else set(defaults)
    given = replace(given, **{n: defaults[n] for n in filled if getattr(given, n) is None})
    for name in (*(SIZE_NAMES if not given.model else ()), "threads"):
        value, most = getattr(given, name), MOST_OF[name]
        fits = isinstance(value, int) and 1 <= value <= most
        require(fits, name, f"at least 1, at most {most:,}", value)
    if not given.model:
        wanted = f"a multiple of heads = {given.heads}"
        require(given.hidden_size % given.heads == 0, "hidden_size", wanted, given.hidden_size)
    steps = given.checkpoints
    whole = bool(steps) and all(isinstance(step, int) and step >= 0 for step in steps)
    require(whole, "checkpoints", "whole numbers of steps", steps)
    require(given.warmup >= 0, "warmup", "a number of steps", given.warmup)
    require(0 <= given.seed < 2**32, "seed", "a number of 32 bits", given.seed)
    decay = given.weight_decay
    require(0 <= decay < math.inf, "weight_decay", "a finite number of at least 0", decay)
    require(0 < given.mask < 1, "mask", "a share in (0, 1)", given.mask)
    rate = given.learning_rate
    require(math.isfinite(rate) and rate > 0, "learning_rate", "a finite rate above 0", rate)
    require(given.device in DEVICES, "device", ", ".join(DEVICES), given.device)
    complete_settings(task_settings(given))
    return replace(given, checkpoints=tuple(sorted(set(steps))))


def task_settings(pretraining: Pretraining) -> Settings:
    names = ("task", "data", "text_columns", "label_column", "splits", "revision")
    names += ("batch_size", "max_length", "out")
    given = {name: getattr(pretraining, name) for name in names}
    # a new tokenizer comes from nowhere, which a folder that is there stands for
    model = None if pretraining.task == "digits" else "."
    return Settings(**given, model=pretraining.tokenizer or pretraining.model or model)
