"""The command `fastfood bound`: an upper bound on an adapter's error on new rows, from its training
rows and from the bits that it takes. Nothing heavy is imported before the arguments have been
read."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from .config import Settings, check_out, complete, field_facts, read_settings


def _setting(name: str):
    told = field_facts(name)
    return typer.Option(help=told["help"], metavar=told["metavar"], rich_help_panel="Task")


def _option(text: str, metavar: str | None = None):
    return typer.Option(help=text, metavar=metavar, rich_help_panel="Bound")


def bound(
    adapter: Annotated[Path, typer.Argument(help="adapter.safetensors or its folder.")],
    task: Annotated[str, _setting("task")] = Settings.task,
    text_columns: Annotated[str | None, _setting("text_columns")] = None,
    label_column: Annotated[str | None, _setting("label_column")] = None,
    splits: Annotated[str | None, _setting("splits")] = None,
    model: Annotated[str | None, _setting("model")] = None,
    revision: Annotated[str | None, _setting("revision")] = None,
    data: Annotated[str | None, _setting("data")] = None,
    max_length: Annotated[int, _setting("max_length")] = Settings.max_length,
    head_seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of a new head's initial values.  [default: the adapter's]",
            rich_help_panel="Task",
        ),
    ] = None,
    device: Annotated[str, _setting("device")] = Settings.device,
    levels: Annotated[
        str, _option("Numbers of levels to try, between commas; at most 256.", "R,...")
    ] = "2,4,8,16",
    qat_steps: Annotated[
        int, _option("Steps of fine-tuning on the levels; 0 rounds what there is.")
    ] = 0,
    lr: Annotated[
        float | None, _option("Its learning rate of θ.  [default: 2/√d, 0.2/√d if by tensor]")
    ] = None,
    lambda_lr: Annotated[float, _option("Its learning rate of SAID's λ.")] = 0.002,
    batch_size: Annotated[int | None, _option("Its rows of a step.")] = None,
    delta: Annotated[float, _option("One minus the confidence.")] = 0.05,
    train_rows: Annotated[
        int | None, _option("m: so many of the training rows.  [default: all]")
    ] = None,
    screen_rows: Annotated[
        int | None, _option("Choose the levels by so many of the m rows.  [default: all]")
    ] = None,
    choices: Annotated[
        int | None,
        _option(
            "Among how many trained candidates this one was chosen.  [default: as many as lie in "
            "its study's folder]"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        _option("Write all numbers to FILE, as JSON, and the message beside it.", "FILE"),
    ] = None,
) -> None:
    """Bounds an adapter's error on new rows, with a confidence.

    θ and λ are put on a few levels and written as one message, whose bits are counted one by one.
    What is read back from it is scored on the training rows. Example:

    `fastfood bound d90-glue-sst2/adapters/NAME --task glue/sst2 --model ./minilm --data ./data
    --levels 2,4 --qat-steps 300 --out bound.json`

    The base model, the initial values of a new head and max_length have to be fixed before the
    rows are seen: what was chosen by them, and is not in the message, counts in --choices.
    Exit codes: 0 done, 2 bad input.
    """
    given = {"task": task, "text_columns": text_columns, "label_column": label_column}
    given |= {"splits": splits, "model": model, "revision": revision, "data": data}
    given |= {"max_length": max_length, "batch_size": batch_size, "device": device}
    try:
        settings = complete(read_settings({k: v for k, v in given.items() if v is not None}))
        counts = _whole_numbers("levels", levels)
        if out is not None:
            check_out(out.parent)
        from .compress import Options, certify

        options = Options(
            adapter=adapter,
            levels=counts,
            delta=delta,
            qat_steps=qat_steps,
            lr=lr,
            lambda_lr=lambda_lr,
            train_rows=train_rows,
            screen_rows=screen_rows,
            choices=choices,
            head_seed=head_seed,
        )
        found = certify(settings, options)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        print(f"fastfood bound: error: {reason}", file=sys.stderr)
        raise typer.Exit(2) from error
    _print(found)
    if out is not None:
        _write(found, out)


def _whole_numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{name}: wanted whole numbers between commas, got {text!r}") from None


def _write(found: dict, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    message = out.with_suffix(".message")
    message.write_bytes(bytes.fromhex(found["message"]))
    out.write_text(json.dumps(found, indent=2) + "\n")
    print(f"wrote {out} and {message}")


def _print(found: dict) -> None:
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False)
    for heading, rows in (
        ("Levels tried", _tried_rows(found)),
        ("The message's bits", _ledger_rows(found)),
        ("Error on new rows", _bound_rows(found)),
    ):
        console.print(f"\n{heading}")
        console.print(_table(rows))
    console.print("\nThe bounds hold together with this confidence, if these were fixed before:")
    for text in found["in_advance"]:
        console.print(f"- {text}")
    console.print(f"and if {found['assumed']}.")
    for note in found["contamination"]:
        console.print(f"Note: {note}", style="yellow")


def _tried_rows(found: dict) -> list[list[str]]:
    rows = []
    for tried in found["tried"]:
        mark = "chosen" if tried["levels"] == found["levels"] else ""
        error = f"{tried['errors'] / tried['rows']:.2%} of {tried['rows']} rows wrong"
        rows.append([str(tried["levels"]), f"{tried['bits']} bits", error, mark])
    return rows


def _ledger_rows(found: dict) -> list[list[str]]:
    rows = [[name, str(bits)] for name, bits in found["ledger"].items()]
    return [*rows, ["in all", f"{found['bits']}, KL = {found['kl']:.1f} nats"]]


def _bound_rows(found: dict) -> list[list[str]]:
    best, confidence = found["best"], f"at {found['best']['confidence']:.6g} confidence"
    rows = [
        [name, f"at most {value:.4f}", confidence + (", the best" if name == best["name"] else "")]
        for name, value in sorted(found["bounds"].items(), key=lambda entry: -entry[1])
    ]
    order = "order of magnitude alone: constant 1, no confidence"
    wrong = f"{found['train_errors']} of m = {found['m']} rows"
    majority = found["majority_error"]
    return [
        ["Theorem 1's form", f"{found['paper_order']:.4f}", order],
        *rows,
        ["training error", f"{found['train_error']:.4f}", wrong],
        ["test error", f"{found['test_error']:.4f}", f"of {found['test_rows']} rows"],
        ["majority class", f"{majority['train']:.4f}", "wrong on the m rows"],
        ["", f"{majority['test']:.4f}", "wrong on the test rows"],
    ]


def _table(rows: list[list[str]]):
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table
