"""The options of a bound; it also depends on its adapter and the settings of its task."""

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
    """The options of a bound; it also depends on its adapter and the settings of its task."""

    levels: Levels = option(
        "Bound", "Numbers of levels to try, each at most 256.", (2, 4, 8, 16), metavar="R,..."
    )
    delta: Share = option("Bound", "One minus the confidence.", 0.05)
    qat_steps: CountFromZero = option(
        "Bound", "Steps of fine-tuning on the levels; 0 only rounds the adapter.", 0
    )
    lr: Rate | None = option(
        "Bound", "θ's learning rate in these steps.  [default: 2/√d, 0.2/√d if by tensor]", None
    )
    lambda_lr: Rate = option("Bound", "λ's learning rate in these steps (SAID).", 0.002)
    train_rows: Count | None = option(
        "Bound", "m, the number of training rows to use, chosen at random.  [default: all]", None
    )
    screen_rows: Count | None = option(
        "Bound", "How many of the m rows choose the levels.  [default: all]", None
    )
    choices: Count | None = option(
        "Bound",
        "How many trained adapters this one was chosen from.  [default: all in its study's folder]",
        None,
    )
    head_seed: int | None = option(
        "Bound", "Seed of a new head's initial values.  [default: the adapter's]", None
    )
