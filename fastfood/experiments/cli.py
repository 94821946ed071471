"""The command line: `fastfood d90` runs a study and reports it; the commands `fastfood adapter ...`
are of `adapters`. Nothing heavy is imported before the arguments have been read."""

import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from . import adapters
from .config import Settings, complete, trial_list

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.add_typer(adapters.app, name="adapter")


def main() -> None:
    """Entry point of the console script."""
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


def _option(panel: str, text: str, *names: str, metavar: str | None = None):
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel=panel)


@app.command()
def d90(
    task: Annotated[
        str, _option("Task", "digits, glue/mrpc, glue/sst2, glue/qqp, glue/mnli or yelp_polarity.")
    ] = "digits",
    model: Annotated[
        str | None, _option("Task", "A checkpoint's folder or hub name (text tasks).")
    ] = None,
    data: Annotated[
        str | None,
        _option(
            "Task",
            "A folder of JSON lines, DIR/train.jsonl or DIR/glue/sst2/train.jsonl; "
            "without it the hub is used.",
            metavar="DIR",
        ),
    ] = None,
    method: Annotated[str, _option("Sweep", "did, said or both.")] = "did,said",
    dims: Annotated[
        str | None, _option("Sweep", "Values of d, between commas.", metavar="D,...")
    ] = None,
    lrs: Annotated[
        str | None,
        _option("Sweep", "Learning rates of θ; by default two multiples of 1/√d.", metavar="R,..."),
    ] = None,
    full_lrs: Annotated[
        str | None, _option("Sweep", "Learning rates of full fine-tuning.", metavar="R,...")
    ] = None,
    lambda_lr: Annotated[
        float, _option("Sweep", "Learning rate of SAID's λ.")
    ] = Settings.lambda_lr,
    normalization: Annotated[
        str, _option("Sweep", "Scale of the projection: global or tensor.")
    ] = Settings.normalization,
    seeds: Annotated[int, _option("Sweep", "Number of seeds.")] = Settings.seeds,
    max_steps: Annotated[int | None, _option("Training", "Optimizer steps of a trial.")] = None,
    batch_size: Annotated[int | None, _option("Training", "Rows of a step.")] = None,
    max_length: Annotated[
        int, _option("Training", "Tokens of a text at most.")
    ] = Settings.max_length,
    bf16: Annotated[bool, _option("Training", "Compute in bfloat16 (autocast).", "--bf16")] = False,
    device: Annotated[str, _option("Training", "auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[
        int | None,
        _option(
            "Training", "Trials at a time: by default 2 on a CPU (one thread each), 1 on a GPU."
        ),
    ] = None,
    save_adapters: Annotated[
        bool,
        _option("Output", "Keep θ and λ of each trial run now in OUT/adapters.", "--save-adapters"),
    ] = False,
    out: Annotated[
        str | None,
        _option(
            "Output",
            "Folder of trials.db, results.json and figure1.png; the same folder again "
            "resumes.  [default: d90-TASK]",
            metavar="DIR",
        ),
    ] = None,
) -> None:
    """Measures d90: how many trained parameters reach 90 % of the full fine-tuning accuracy.

    Examples:

    `fastfood d90`

    `fastfood d90 --model roberta-base --task glue/mrpc --dims 200,500,1000,2000`

    `fastfood d90 --model ./minilm --task glue/sst2 --data ./data --method did,said
    --dims 200,1000 --lrs 0.4,0.8 --seeds 2 --max-steps 217`

    Stop it at any time: the same command goes on where it stopped. Exit codes: 0 done, 1 a trial
    failed, 2 bad input, 130 interrupted.
    """
    try:
        settings = complete(
            Settings(
                task=task,
                model=model,
                data=data,
                methods=_names(method),
                dims=_numbers("dims", dims, int),
                lrs=_numbers("lrs", lrs, float),
                full_lrs=_numbers("full_lrs", full_lrs, float),
                lambda_lr=lambda_lr,
                normalization=normalization,
                seeds=seeds,
                max_steps=max_steps,
                batch_size=batch_size,
                max_length=max_length,
                bf16=bf16,
                device=device,
                workers=workers,
                save_adapters=save_adapters,
                out=out,
            )
        )
    except ValueError as error:
        _fail(error)
    raise typer.Exit(_run_study(settings))


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip().lower() for part in text.split(",") if part.strip())


def _numbers(name: str, text: str | None, kind: type) -> tuple | None:
    """Reads "200,1000" as a tuple of `kind`; raises ValueError naming the argument."""
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        wanted = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"{name}: wanted {wanted} between commas, got {text!r}") from None


def _fail(error: Exception) -> None:
    print(f"fastfood d90: error: {error}", file=sys.stderr)
    raise typer.Exit(2)


def _run_study(settings: Settings) -> int:
    """Checks, runs and reports the study; returns the exit code."""
    from rich.console import Console

    console = Console()
    out = Path(settings.out)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with ExitStack() as stack:
            try:
                with console.status("loading the data and the model ..."):
                    from . import search

                    facts = search.inspect(settings)
                stack.enter_context(search.locked_folder(out))
                study = search.open_study(out)
            except ValueError as error:
                _fail(error)
            trials = trial_list(settings, facts)
            failed = _run_with_progress(console, settings, facts, trials, study)
            _report(console, settings, facts, trials, search.finished(study))
    except KeyboardInterrupt:
        console.print("\nstopped; the same command goes on from here", style="yellow")
        return 130
    if failed:
        console.print(f"{failed} trials failed; the same command tries them again", style="red")
    return 1 if failed else 0


def _run_with_progress(console, settings: Settings, facts: dict, trials: list, study) -> int:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from . import search
    from .config import trial_key
    from .train import train_trial

    known = search.finished(study)
    done = sum(trial_key(trial) in known for trial in trials)
    if done:
        console.print(f"{done} of {len(trials)} trials are already in {settings.out}/trials.db")
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=24 * 3600,
    )
    with progress:
        bar = progress.add_task("training", total=len(trials), completed=done)
        progress.advance(bar, 0)  # the time left is judged from here on

        def on_done(trial: dict, result: dict | None, error: str | None) -> None:
            name = "{method} d = {d} rate {learning_rate:g} seed {seed}".format(**trial)
            if error is not None:
                console.print(f"failed: {name}: {error}", style="red", markup=False)
                return
            progress.advance(bar)
            if not console.is_terminal:  # a log file shows no bar
                count = f"{progress.tasks[bar].completed:.0f}/{len(trials)}"
                print(f"{count} {name}: {result['test']:.1%}", flush=True)

        return search.run_trials(settings, trials, study, facts["device"], train_trial, on_done)


def _report(console, settings: Settings, facts: dict, trials: list, known: dict) -> None:
    from . import report
    from .config import trial_key
    from .curves import curve_points, summarise
    from .search import environment

    scores = [known.get(trial_key(trial)) for trial in trials]
    points = curve_points(trials, scores)
    summary = summarise(points, facts["majority"])
    written = [
        report.write_results(settings, facts, trials, scores, points, summary, environment()),
        report.draw_figure(settings, facts, points, summary),
    ]
    report.print_report(console, points, summary)
    for path in written:
        console.print(f"wrote {path}", markup=False, highlight=False)
