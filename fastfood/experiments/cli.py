"""The command line. `fastfood d90` and `fastfood study` run measurements, `fastfood report` shows
them; their options are the fields of `Settings`. Each other command is defined in its own module.
Nothing heavy is imported before the arguments have been read."""

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import adapters, recipes
from .bound import command
from .refusal import exit_on_signals, one_line
from .settings.measurement import Settings, complete, read_settings
from .settings.options import with_options
from .training import pretrain

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.add_typer(adapters.app, name="adapter")
app.command()(command.bound)
app.command()(pretrain.pretrain)


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a program may have put another one there
            stream.reconfigure(errors="backslashreplace")  # instead of failing at a character
    exit_on_signals()
    app(prog_name="fastfood")


def _print_version(wanted: bool) -> None:
    if wanted:
        from fastfood import __version__

        print(f"fastfood {__version__}")
        raise typer.Exit


@app.callback()
def fastfood(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Fine-tunes models in a few hundred numbers, and measures how few are enough."""


@app.command()
@with_options("options", Settings)
def d90(options: dict) -> None:
    """Measures d90: how many trained parameters reach 90 % of the full fine-tuning score.

    Examples:

    `fastfood d90`

    `fastfood d90 --model roberta-base --task glue/mrpc --dims 10:10000:100 --lr-factors 2,4,8,16`

    `fastfood d90 --model ./minilm --task glue/sst2 --data ./data --method said,lora
    --search bisect --seeds 3`

    `fastfood d90 --model ./minilm --task ./reviews --text-columns review --label-column stars
    --splits train,test --data ./reviews`

    `fastfood d90 --objective grpo --model Qwen/Qwen2.5-0.5B-Instruct --task gsm8k --chat
    --method did,said,tinylora --dims 10,100,1000`

    Stop it at any time: the same command goes on where it stopped. Exit codes: 0 done, 1 a trial
    failed, 2 bad input, 130 interrupted.
    """
    with one_line("d90"):
        planned = recipes.single(complete(read_settings(options)))
    raise typer.Exit(_conduct("d90", planned))


@app.command()
@with_options("options", Settings)
def study(
    recipe: Annotated[
        str, typer.Argument(help=f"A TOML file, or one of {', '.join(recipes.names())}.")
    ],
    options: dict,
    scale: Annotated[
        str, typer.Option(help="full: as published; small: what two CPU cores do in an hour.")
    ] = "full",
) -> None:
    """Runs a recipe: several measurements, with the models they need, and one report.

    The options replace the recipe's settings. Examples:

    `fastfood study figure1 --scale small --model ./minilm --data ./data`

    `fastfood study table1 --storage postgresql://user@host/studies --ray auto`

    Stop it at any time: the same command goes on where it stopped. With a shared database, start it
    on as many machines as you like. Exit codes are as for `fastfood d90`.
    """
    with one_line("study"):
        planned = recipes.read(recipe, scale, options)
    raise typer.Exit(_conduct("study", planned))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a study.", metavar="DIR")],
    watch: Annotated[
        bool, typer.Option("--watch", help="Rewrite it after each change, until all is done.")
    ] = False,
    every: Annotated[float, typer.Option(help="Seconds between two checks for changes.")] = 30.0,
    storage: Annotated[
        str | None,
        typer.Option(
            help="URL of the study's database, needed if it has a password, which is never saved."
        ),
    ] = None,
) -> None:
    """Writes report.md, report.html, results.json and the figures, also while the study runs."""
    from .report import writer

    with one_line("report"):
        try:
            if watch:
                writer.watch(folder, every, storage)
            written = writer.write_report(folder, storage=storage)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    for path in written:
        print(f"wrote {path}")


def _conduct(command: str, planned) -> int:
    from . import study as studies

    with one_line(command):
        return studies.conduct(planned)
