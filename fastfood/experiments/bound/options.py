"""What a bound depends on beside its adapter and the settings of its task."""

from typing import Annotated

from pydantic import Field

from fastfood.quantize import MAX_LEVELS

from ..settings.options import Count, CountFromZero, OptionsModel, Rate, Share, option, wanted

Levels = Annotated[
    tuple[
        Annotated[int, Field(ge=1, le=MAX_LEVELS), wanted(f"numbers in 1..{MAX_LEVELS}")],
        ...,
    ],
    Field(min_length=1),
    wanted("at least one number"),
]


class Options(OptionsModel):
    """What a bound depends on beside its adapter and the settings of its task."""

    levels: Levels = option(
        "Bound", "Numbers of levels to try, at most 256.", (2, 4, 8, 16), metavar="R,..."
    )
    delta: Share = option("Bound", "One minus the confidence.", 0.05)
    qat_steps: CountFromZero = option(
        "Bound", "Steps of fine-tuning on the levels; 0 rounds what there is.", 0
    )
    lr: Rate | None = option(
        "Bound", "Its learning rate of θ.  [default: 2/√d, 0.2/√d if by tensor]", None
    )
    lambda_lr: Rate = option("Bound", "Its learning rate of SAID's λ.", 0.002)
    train_rows: Count | None = option(
        "Bound", "m: so many of the training rows, chosen at random.  [default: all]", None
    )
    screen_rows: Count | None = option(
        "Bound", "Choose the levels by so many of the m rows.  [default: all]", None
    )
    choices: Count | None = option(
        "Bound",
        "Among how many trained candidates this one was chosen.  [default: as many as lie in its "
        "study's folder]",
        None,
    )
    head_seed: int | None = option(
        "Bound", "Seed of a new head's initial values.  [default: the adapter's]", None
    )
