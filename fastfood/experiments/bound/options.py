"""What a bound depends on beside its adapter and the settings of its task."""

import math
from dataclasses import dataclass

from fastfood.quantize import MAX_LEVELS

from ..settings.options import option


@dataclass(frozen=True)
class Options:
    """What a bound depends on beside its adapter and the settings of its task."""

    levels: tuple[int, ...] = option(
        "Bound", "Numbers of levels to try, at most 256.", (2, 4, 8, 16), metavar="R,..."
    )
    delta: float = option("Bound", "One minus the confidence.", 0.05)
    qat_steps: int = option(
        "Bound", "Steps of fine-tuning on the levels; 0 rounds what there is.", 0
    )
    lr: float | None = option(
        "Bound", "Its learning rate of θ.  [default: 2/√d, 0.2/√d if by tensor]", None
    )
    lambda_lr: float = option("Bound", "Its learning rate of SAID's λ.", 0.002)
    train_rows: int | None = option(
        "Bound", "m: so many of the training rows, chosen at random.  [default: all]", None
    )
    screen_rows: int | None = option(
        "Bound", "Choose the levels by so many of the m rows.  [default: all]", None
    )
    choices: int | None = option(
        "Bound",
        "Among how many trained candidates this one was chosen.  [default: as many as lie in its "
        "study's folder]",
        None,
    )
    head_seed: int | None = option(
        "Bound", "Seed of a new head's initial values.  [default: the adapter's]", None
    )

    def check(self) -> None:
        """Raises ValueError naming the argument, what was wanted and what was got."""
        wanted = {
            "delta": (0 < self.delta < 1, "a share in (0, 1)"),
            "levels": (bool(self.levels), "at least one number"),
            "qat_steps": (self.qat_steps >= 0, "at least 0"),
            "lr": (self.lr is None or 0 < self.lr < math.inf, "a finite rate above 0"),
            "lambda_lr": (0 < self.lambda_lr < math.inf, "a finite rate above 0"),
        }
        for name in ("train_rows", "screen_rows", "choices"):
            value = getattr(self, name)
            wanted[name] = (value is None or value >= 1, "at least 1")
        for levels in self.levels:
            if not 1 <= levels <= MAX_LEVELS:
                raise ValueError(f"levels: wanted numbers in 1..{MAX_LEVELS}, got {levels}")
        for name, (fits, text) in wanted.items():
            if not fits:
                raise ValueError(f"{name}: wanted {text}, got {getattr(self, name)!r}")
