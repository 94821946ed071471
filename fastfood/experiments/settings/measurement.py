"""The settings of one measurement: a model on a task, trained in full and by one or more methods.
What is checked here needs neither torch nor data."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from typing_extensions import Self

from .language import GRPO_DEFAULTS, LanguageSettings
from .metrics import METRICS
from .options import (
    Count,
    CountFromZero,
    Counts,
    Rate,
    Rates,
    ascending,
    option,
    read,
    require,
    wanted,
    whole_number,
)
from .sources import SOURCES, default_metric
from .task import TASKS, Folder, MaxLength, check_data, check_folder

SUBSPACE_METHODS = ("did", "said")
SIZED_METHODS = ("lora", "vera", "tinylora")  # their d follows from a rank or a length
METHODS = (*SUBSPACE_METHODS, "unilora", *SIZED_METHODS)
NORMALIZATIONS = ("global", "tensor")
KINDS = ("d90", "table1", "figure1", "figure2", "figure3", "figure4", "figure5")  # of studies

# The best rate of theta falls as d^-1/2; these are the tried multiples of it, by normalization.
LR_FACTORS = {"global": (4.0, 10.0), "tensor": (0.4, 1.0)}
MOST_TRIALS = 100_000
DAY = 24 * 3600  # seconds
DIGITS_ONE_RATE_BELOW = 1000  # there the largest always won; trying it alone keeps the demo short

SMALL_VIT = "small ViT"  # the model that the digits bring

DIGITS_DEFAULTS = {
    "dims": (10, 30, 100, 300, 1000, 3000),
    "full_lrs": (1e-3,),
    "max_steps": 300,
    "batch_size": 48,
}
TEXT_DEFAULTS = {
    "dims": (100, 300, 1000, 3000, 10000),
    "full_lrs": (2e-5, 5e-5),
    "max_steps": 300,
    "batch_size": 32,
}
WRITTEN_DEFAULTS = {
    "sft": {"full_lrs": (1e-5, 3e-5), "lr_factors": (1.5, 5.0)},
    "grpo": {"full_lrs": (1e-6, 3e-6), "lr_factors": (0.5, 1.5)},  # a reward says less than a text
}
WRITTEN_DIMS = (1, 10, 100, 1000, 10000)

Methods = Annotated[
    tuple[Annotated[Literal[METHODS], wanted(f"some of {', '.join(METHODS)}")], ...],
    Field(min_length=1),
    wanted(f"at least one of {', '.join(METHODS)}"),
    AfterValidator(lambda methods: tuple(dict.fromkeys(methods))),
]
Ratio = Annotated[float, Field(gt=1, allow_inf_nan=False), wanted("a finite ratio above 1")]
WarmupShare = Annotated[float, Field(ge=0, lt=1), wanted("a share in [0, 1)")]
GpuShare = Annotated[float, Field(gt=0, le=1), wanted("a share in (0, 1]")]
Device = Annotated[
    str,
    StringConstraints(pattern=r"^(auto|cpu|cuda|cuda:[0-9]{1,4})$"),
    wanted("auto, cpu, cuda or cuda:N"),
]
Workers = whole_number(1, 1_000)
Heartbeat = Annotated[int, Field(ge=1, le=DAY), wanted("at least 1 second, at most a day")]
Storage = Annotated[
    str, StringConstraints(pattern=r"^[\w+]+://"), wanted("a database URL, scheme://...")
]


class Settings(LanguageSettings):
    """Everything that a measurement depends on; `None` means a default that `complete` fills in."""

    metric: Literal[tuple(METRICS)] | None = option(
        "Task",
        "accuracy, f1 or matthews of classes; pearson, spearman or pearson_spearman, which make "
        "the label of any data set a number; exact, tokens, loss or reward of models that write.  "
        "[default: GLUE's of its tasks, else accuracy; reward where one is given, else exact]",
        None,
    )
    methods: Methods = option(
        "Sweep", f"Some of {', '.join(METHODS)}.", SUBSPACE_METHODS, flag="--method"
    )
    search: Literal["grid", "bisect"] = option(
        "Sweep", "grid: every d of dims; bisect: bracket d90 and close in on it.", "grid"
    )
    dims: Annotated[Counts, ascending] | None = option(
        "Sweep",
        "Values of d, between commas; 10:10000:100 is 100 of them, evenly on a log scale.",
        None,
        metavar="D,...",
    )
    bracket: tuple[int, ...] = option(
        "Sweep", "The least and the largest d of a bisection.", (100, 4_000_000), metavar="D,D"
    )
    precision: Ratio = option(
        "Sweep", "A bisection ends when the bracket's ends have this ratio.", 1.25
    )
    sizes: Annotated[Counts, ascending] = option(
        "Sweep", "Ranks of lora and vera, lengths of tinylora.", (1, 4, 16), metavar="R,..."
    )
    lengths: Annotated[Counts, ascending] | None = option(
        "Sweep", "Lengths of tinylora, where they are not the sizes.", None, metavar="L,..."
    )
    head: Literal["inside", "outside"] = option(
        "Sweep",
        "Whether the head, which PEFT's methods train in full, counts in their d: inside, outside.",
        "inside",
    )
    lrs: Rates | None = option(
        "Sweep", "Learning rates of θ, the same for every d.", None, metavar="R,..."
    )
    lr_factors: Rates | None = option(
        "Sweep", "Without lrs: the rates of θ as multiples of 1/√d.", None, metavar="F,..."
    )
    full_lrs: Rates | None = option(
        "Sweep", "Learning rates of full fine-tuning.", None, metavar="R,..."
    )
    peft_lrs: Rates = option(
        "Sweep", "Learning rates of PEFT's methods.", (5e-3, 2e-2), metavar="R,..."
    )
    lambda_lr: Rate = option("Sweep", "Learning rate of SAID's λ.", 0.02)
    normalization: Literal[NORMALIZATIONS] = option(
        "Sweep", "Scale of the projection: global or tensor.", "global"
    )
    seeds: Count = option("Sweep", "Number of seeds.", 2)
    max_steps: Count | None = option("Training", "Optimizer steps of a trial.", None)
    batch_size: Count | None = option(
        "Training", "Rows of a step; of GRPO, the completions that it samples.", None
    )
    max_length: MaxLength = option(
        "Training",
        "Tokens of a text at most; longer pairs of prompt and completion are left out.",
        128,
    )
    warmup: WarmupShare = option("Training", "Share of the steps in which the rate rises.", 0.06)
    bf16: bool = option("Training", "Compute in bfloat16 (autocast).", False)
    eval_rows: Count | None = option(
        "Training", "Score so many rows of validation and test at most.", None
    )
    gap_rows: CountFromZero = option(
        "Training", "Score so many training rows too, for the generalization gap.", 0
    )
    prune: bool = option(
        "Training", "Stop a trial at half of its steps where another rate is far ahead.", False
    )
    device: Device = option("Machine", "auto, cpu, cuda or cuda:N.", "auto")
    workers: Workers | None = option(
        "Machine",
        "Trials at a time: by default 2 on a CPU (one thread each), 1 on a GPU, all of Ray's.",
        None,
    )
    gpu_share: GpuShare = option("Machine", "Share of a GPU that a trial takes under Ray.", 1.0)
    ray: str | None = option(
        "Machine", "Run trials as Ray tasks: auto, local or a cluster's ADDRESS.", None
    )
    storage: Storage | None = option(
        "Machine",
        "A database that several machines share, postgresql://...; otherwise OUT/trials.db.",
        None,
        metavar="URL",
    )
    name: str | None = option(
        "Machine", "The study's name in that database.  [default: the folder's]", None
    )
    heartbeat: Heartbeat = option(
        "Machine", "Seconds between a driver's signs of life in the database.", 60
    )
    save_adapters: bool = option(
        "Output", "Keep θ and λ of each trial run now in OUT/adapters.", False
    )
    out: Folder | None = option(
        "Output",
        "Folder of trials.db, the report and the figures; the same folder again resumes.  "
        "[default: d90-TASK]",
        None,
        metavar="DIR",
    )

    @model_validator(mode="after")
    def _a_text_task_has_a_model(self) -> Self:
        named = self.task == "digits" or bool(self.model)
        text = f"a model's folder or hub name for the task {self.task}"
        require(named, "model", text, self.model)
        return self

    @model_validator(mode="after")
    def _the_metric_is_of_labels_as_the_task_has_them(self) -> Self:
        if self.metric is None:
            return self
        if self.writes:
            kinds, place = {"texts"}, f"the objective {self.objective}"
        elif self.task in TASKS:
            kinds, place = {METRICS[default_metric(self.task)].of}, f"the task {self.task}"
        else:
            kinds, place = {"classes", "numbers"}, "the objective classify"
        names = [name for name, metric in METRICS.items() if metric.of in kinds]
        text = f"{', '.join(names[:-1])} or {names[-1]} for {place}"
        require(self.metric in names, "metric", text, self.metric)
        named = self.metric != "reward" or self.reward is not None
        require(named, "metric", "a reward beside the metric reward", self.metric)
        return self

    @model_validator(mode="after")
    def _the_rows_of_a_step_can_be_divided(self) -> Self:
        rows = self.batch_size
        if rows is None:
            return self
        text = f"a multiple of accumulation = {self.accumulation}"
        require(rows % self.accumulation == 0, "batch_size", text, rows)
        if self.objective == "grpo":
            count = self.generations or GRPO_DEFAULTS["generations"]
            text = f"a multiple of generations = {count} for GRPO"
            require(rows % count == 0, "batch_size", text, rows)
        return self

    @model_validator(mode="after")
    def _a_gap_is_of_classes(self) -> Self:
        text = f"0 for the objective {self.objective}"
        require(not (self.writes and self.gap_rows), "gap_rows", text, self.gap_rows)
        return self

    @model_validator(mode="after")
    def _the_bracket_has_two_ends(self) -> Self:
        ends = self.bracket
        ascend = len(ends) == 2 and 1 <= ends[0] < ends[1]
        require(ascend, "bracket", "two whole numbers, 1 <= least < largest", ends)
        return self

    @model_validator(mode="after")
    def _the_trials_can_be_counted(self) -> Self:
        """Looks at an upper bound on the trials of a grid, and at the fewest of a bisection."""
        rates = max(
            len(some or ()) for some in (self.lrs, self.lr_factors, self.full_lrs, self.peft_lrs)
        )
        sizes = max(len(self.sizes), len(self.lengths or ()))
        cells = max(len(self.dims or ()), sizes) if self.search == "grid" else 1
        count = self.seeds * rates * (1 + cells * len(self.methods))
        require(count <= MOST_TRIALS, "seeds", f"at most {MOST_TRIALS:,} trials in all", count)
        return self

    def sizes_of(self, method: str) -> tuple[int, ...]:
        """The tried ranks of lora and vera, and lengths of tinylora."""
        return self.lengths if method == "tinylora" and self.lengths else self.sizes

    @property
    def model_name(self) -> str:
        """What reports call the model: its name without the folder or owner before it, and its
        revision after it; a checkpoint NAME/step-N of a pre-training with its NAME."""
        if self.model is None:
            return SMALL_VIT
        parts = Path(self.model).parts or (self.model,)  # "." has none
        name = " ".join(parts[-2:] if re.fullmatch(r"step-\d+", parts[-1]) else parts[-1:])
        return name + (f"@{self.revision}" if self.revision else "")


def read_settings(values: Mapping[str, object]) -> Settings:
    """Settings from texts of a command line or values of a file, not yet complete; see `read`."""
    return read(Settings, values)


def complete(settings: Settings) -> Settings:
    """Fills in the defaults of the task, and looks for the folders that the settings name.

    Raises ValueError naming the argument, what was wanted and what was got.
    """
    digits = settings.task == "digits"
    out = "d90-" + re.sub("[/:]", "-", settings.task)
    defaults = {"metric": default_metric(settings.task), "out": out}
    if digits:  # the rates depend on d in a way of their own, so lr_factors stay None
        defaults |= DIGITS_DEFAULTS
    else:
        defaults |= TEXT_DEFAULTS | {"lr_factors": LR_FACTORS[settings.normalization]}
    if settings.writes:
        defaults |= _written_defaults(settings)
    unset = {name: v for name, v in defaults.items() if getattr(settings, name) is None}
    settings = settings.replaced(**unset)
    check_data(settings)
    check_folder(Path(settings.out))
    return settings


def _written_defaults(settings: Settings) -> dict:
    """The defaults of a model that writes, in place of those of a classifier of texts."""
    rates = WRITTEN_DEFAULTS[settings.objective]
    narrower = LR_FACTORS[settings.normalization][0] / LR_FACTORS["global"][0]
    return {
        "metric": "reward" if settings.reward else "exact",
        "answer": SOURCES[settings.task].answer if settings.task in SOURCES else None,
        "dims": WRITTEN_DIMS,
        "full_lrs": rates["full_lrs"],
        "lr_factors": tuple(narrower * factor for factor in rates["lr_factors"]),
        **(GRPO_DEFAULTS if settings.objective == "grpo" else {}),
    }


def check(settings: Settings) -> None:
    """Raises ValueError unless the settings are complete, as those of every study are."""
    for name in (*TEXT_DEFAULTS, "metric", "out"):
        require(getattr(settings, name) is not None, name, "a value", None)
