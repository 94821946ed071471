"""The settings of a pre-training run. What is checked here needs neither torch nor data."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from .options import (
    Count,
    CountFromZero,
    Rate,
    Share,
    ascending,
    option,
    require,
    wanted,
    whole_number,
)
from .sources import ARITHMETIC
from .task import BUNDLED, Folder, MaxLength, TaskSettings, check_data, check_folder

MOST_PIECES = 10_000_000  # of a vocabulary
BYTE_PIECES = 258  # of a tokenizer of bytes: each byte, the end of a text, padding
TEXT_SIZES = {"hidden_size": 128, "layers": 2, "heads": 2, "intermediate_size": 512}
BUNDLED_SIZES = {"hidden_size": 64, "layers": 2, "heads": 4, "intermediate_size": 256}
TEXT_MASK, DIGITS_MASK = 0.15, 0.5

# The names of a model's sizes in the configurations of transformers.
SIZE_NAMES = {
    "hidden_size": ("hidden_size", "d_model", "dim", "n_embd"),
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
        "num_key_value_heads",
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
        "n_inner",
    ),
}

Checkpoints = Annotated[
    tuple[Annotated[int, Field(ge=0), wanted("whole numbers of steps")], ...],
    Field(min_length=1),
    wanted("whole numbers of steps"),
    ascending,
]
Pieces = Annotated[int, Field(ge=10, le=MOST_PIECES), wanted(f"10 to {MOST_PIECES:,} pieces")]
Decay = Annotated[float, Field(ge=0, allow_inf_nan=False), wanted("a finite number of at least 0")]
Seed = Annotated[int, Field(ge=0, lt=2**32), wanted("a number of 32 bits")]
Device = Annotated[Literal["auto", "cpu", "cuda"], wanted("auto, cpu, cuda")]


class Pretraining(TaskSettings):
    """Everything that a run depends on; `None` means a default that `complete` fills in."""

    out: Folder = option("Output", "Folder of step-0, step-50, ...; the same folder again resumes.")
    checkpoints: Checkpoints = option(
        "Output", "Optimizer steps after which to save.", (0, 50, 200, 800), metavar="N,..."
    )
    causal: bool = option(
        "Model",
        "Train a model that writes, on the next token, in place of masked words.",
        False,
    )
    architecture: str | None = option(
        "Model",
        "Of a new model, a type of transformers: bert, roberta, electra, ..., causal llama, ...  "
        "[default: bert, causal llama]",
        None,
    )
    hidden_size: whole_number(1, 65_536) | None = option(
        "Model", "Width; 128, digits and arithmetic 64.", None
    )
    layers: whole_number(1, 1_000) | None = option("Model", "Layers (of each stack); 2.", None)
    heads: whole_number(1, 1_000) | None = option(
        "Model", "Attention heads; 2, digits and arithmetic 4.", None
    )
    intermediate_size: whole_number(1, 262_144) | None = option(
        "Model", "Width of the feed-forward layers; 512, digits and arithmetic 256.", None
    )
    tokenizer: str | None = option(
        "Model", "A folder or hub name, for a new model.", None, metavar="NAME"
    )
    vocabulary: Pieces | None = option(
        "Model",
        "Or make a tokenizer of so many pieces of the training text's words, causal bytes.",
        None,
    )
    model: str | None = option(
        "Model", "Go on from a masked or causal LM's folder or hub name.", None, metavar="NAME"
    )
    mask: Share | None = option("Training", "Share that is masked; 0.15, of patches 0.5.", None)
    batch_size: Count = option("Training", "Rows of a step.", 32)
    max_length: MaxLength = option("Training", "Tokens of a text at most.", 64)
    learning_rate: Rate = option("Training", "Constant after the warm-up.", 1e-3)
    warmup: CountFromZero = option("Training", "Steps of warm-up.", 20)
    weight_decay: Decay = option("Training", "Of AdamW.", 0.01)
    seed: Seed = option("Training", "Of weights, order and masks.", 0)
    bf16: bool = option("Training", "Compute in bfloat16 (autocast).", False)
    device: Device = option("Training", "auto, cpu or cuda.", "auto")
    threads: whole_number(1, 1_000) = option("Training", "CPU threads.", 1)

    @model_validator(mode="after")
    def _some_tasks_bring_what_they_need(self) -> Self:
        if self.task == "digits":
            self._require_none("architecture", "tokenizer", "vocabulary", "model", why="for digits")
        elif self.task in BUNDLED:
            self._require_none("tokenizer", "vocabulary", "model", why=f"for {self.task}")
        return self

    @model_validator(mode="after")
    def _texts_alone_are_written(self) -> Self:
        if self.task in ARITHMETIC:
            text = "arithmetic, which its tasks are fine-tuned from"
            require(self.task == "arithmetic", "task", text, self.task)
            require(self.causal, "causal", "true for the task arithmetic", self.causal)
        if self.task == "digits":
            require(not self.causal, "causal", "false for the task digits", self.causal)
        if self.causal:
            self._require_none("mask", why="beside causal")
            enough = self.vocabulary is None or self.vocabulary >= BYTE_PIECES
            text = f"at least {BYTE_PIECES} pieces beside causal"
            require(enough, "vocabulary", text, self.vocabulary)
        return self

    @model_validator(mode="after")
    def _a_given_model_has_its_sizes(self) -> Self:
        if self.model:
            why = "beside model, which has its own"
            self._require_none("architecture", "vocabulary", *SIZE_NAMES, why=why)
        return self

    @model_validator(mode="after")
    def _a_new_text_model_has_one_tokenizer(self) -> Self:
        if self.task not in BUNDLED and not self.model:
            text = "a tokenizer's folder or hub name, or else a vocabulary, for a new model"
            one = bool(self.tokenizer) != (self.vocabulary is not None)
            require(one, "tokenizer", text, self.tokenizer)
        return self

    @model_validator(mode="after")
    def _the_heads_share_the_width(self) -> Self:
        if self.hidden_size and self.heads:
            fits = self.hidden_size % self.heads == 0
            require(fits, "hidden_size", f"a multiple of heads = {self.heads}", self.hidden_size)
        return self

    def _require_none(self, *names: str, why: str) -> None:
        for name in names:
            require(getattr(self, name) is None, name, f"nothing {why}", getattr(self, name))


def complete(pretraining: Pretraining) -> Pretraining:
    """Fills in the defaults of the task and of the kind of model, and looks for the folders named.

    Raises ValueError naming the argument, what was wanted and what was got.
    """
    defaults = _defaults(pretraining)
    unset = {name: v for name, v in defaults.items() if getattr(pretraining, name) is None}
    pretraining = pretraining.replaced(**unset)
    check_data(pretraining)
    check_folder(Path(pretraining.out))
    return pretraining


def _defaults(pretraining: Pretraining) -> dict:
    """What takes the place of None: sizes, an architecture and a share that is masked, each where
    the run has one."""
    digits, causal = pretraining.task == "digits", pretraining.causal
    mask = {} if causal else {"mask": DIGITS_MASK if digits else TEXT_MASK}
    if digits:
        return BUNDLED_SIZES | mask
    if pretraining.model:
        return mask
    sizes = BUNDLED_SIZES if pretraining.task in BUNDLED else TEXT_SIZES
    return sizes | mask | {"architecture": "llama" if causal else "bert"}
