"""The command `fastfood bound`, an upper bound on an adapter's error or token loss on new rows,
computed from that on the training rows and from the bits that it takes. Nothing heavy is imported
before the arguments have been read."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..files import whole
from ..refusal import one_line
from ..settings.measurement import Settings, complete, read_settings
from ..settings.options import read, require, with_options
from ..settings.task import TaskSettings, check_folder
from .options import Options

MESSAGE = ".message"  # suffix of the file that holds the bits
TASK = (
    *TaskSettings.model_fields,
    *("objective", "prompt_column", "completion_column", "messages_column", "chat"),
    *("weights", "dtype", "accumulation", "max_length", "batch_size", "device"),
)


@with_options("task_options", Settings, TASK)
@with_options("bound_options", Options)
def bound(
    adapter: Annotated[Path, typer.Argument(help="adapter.safetensors or its folder.")],
    task_options: dict,
    bound_options: dict,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write all numbers to FILE, as JSON, and the message beside it.",
            metavar="FILE",
            rich_help_panel="Bound",
        ),
    ] = None,
) -> None:
    """Bounds an adapter's error on new rows, with a confidence; of a model that writes, its loss in
    bits per token.

    θ and λ are rounded to a few levels and written as one message, whose bits are counted one by
    one. The model that is read back from it is scored on the training rows. Example:

    `fastfood bound d90-glue-sst2/adapters/NAME --task glue/sst2 --model ./minilm --data ./data
    --levels 2,4 --qat-steps 300 --out bound.json`

    With --objective sft or grpo the data are read as prompts and completions, whichever of both
    trained the adapter; --qat-steps are steps of SFT.

    The base model, the initial values of a new head and max_length have to be fixed before the
    rows are seen. If any was chosen by the rows, --choices has to count the alternatives.
    Exit codes: 0 done, 2 bad input.
    """
    with one_line("bound"):
        settings = complete(read_settings(task_options))
        options = read(Options, bound_options)
        if out is not None:
            _check_file(out)
        from .certify import certify

        certified = certify(settings, adapter, options)
    _print(certified)
    if out is not None:
        with one_line("bound"):
            _write(certified, out)


def _check_file(out: Path) -> None:
    """Raises ValueError unless `out`, and the message beside it, can be written as files."""
    fits = out.name and not out.is_dir() and out.suffix != MESSAGE
    require(bool(fits), "out", f"a file's name that does not end in {MESSAGE}", str(out))
    check_folder(out.parent)


def _write(certified: dict, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    message = out.with_suffix(MESSAGE)
    with whole(message) as partial:
        partial.write_bytes(bytes.fromhex(certified["message"]))
    with whole(out) as partial:
        partial.write_text(json.dumps(certified, indent=2) + "\n")
    print(f"wrote {out} and {message}")


def _print(certified: dict) -> None:
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False)
    of_tokens = "unit" in certified
    tables = [("Levels tried", _tried_rows(certified)), ("The message's bits", _ledger(certified))]
    if of_tokens:
        tables.append(("Loss on new rows, in bits per token", _loss_rows(certified)))
    else:
        tables.append(("Error on new rows", _error_rows(certified)))
    for heading, rows in tables:
        console.print(f"\n{heading}")
        console.print(_table(rows))
    if of_tokens:
        console.print(_what_a_loss_is(certified))
    console.print("\nThe bounds hold together with this confidence, if these were fixed before:")
    for text in certified["in_advance"]:
        console.print(f"- {text}")
    console.print(f"and if {certified['assumed']}.")
    for note in certified["contamination"]:
        console.print(f"Note: {note}", style="yellow")


def _tried_rows(certified: dict) -> list[list[str]]:
    rows = []
    for tried in certified["tried"]:
        mark = "chosen" if tried["levels"] == certified["levels"] else ""
        if "errors" in tried:
            found = f"{tried['errors'] / tried['rows']:.2%} of {tried['rows']} rows wrong"
        else:
            found = f"{tried['loss']:.4f} bits per token of {tried['rows']} rows"
            found += f", alpha = {tried['alpha']:.2g}"
        rows.append([str(tried["levels"]), f"{tried['bits']} bits", found, mark])
    return rows


def _ledger(certified: dict) -> list[list[str]]:
    rows = [[name, str(bits)] for name, bits in certified["ledger"].items()]
    return [*rows, ["in all", f"{certified['bits']}, KL = {certified['kl']:.1f} nats"]]


def _bound_rows(certified: dict) -> list[list[str]]:
    best, confidence = certified["best"], f"at {certified['best']['confidence']:.6g} confidence"
    rows = []
    for name, value in sorted(certified["bounds"].items(), key=lambda entry: -entry[1]):
        said = confidence + (", the best" if name == best["name"] else "")
        said += ", vacuous" if name in certified.get("vacuous", ()) else ""
        rows.append([name, f"at most {value:.4f}", said])
    return rows


def _error_rows(certified: dict) -> list[list[str]]:
    order = "order of magnitude alone: constant 1, no confidence"
    wrong = f"{certified['train_errors']} of m = {certified['m']} rows"
    majority = certified["majority_error"]
    return [
        ["Theorem 1's form", f"{certified['paper_order']:.4f}", order],
        *_bound_rows(certified),
        ["training error", f"{certified['train_error']:.4f}", wrong],
        ["test error", f"{certified['test_error']:.4f}", f"of {certified['test_rows']} rows"],
        ["majority class", f"{majority['train']:.4f}", "wrong on the m rows"],
        ["", f"{majority['test']:.4f}", "wrong on the test rows"],
    ]


def _loss_rows(certified: dict) -> list[list[str]]:
    of = {"train": f"of m = {certified['m']} rows", "test": f"of {certified['test_rows']} rows"}
    rows = _bound_rows(certified)
    for shown, name, part in (
        ("training loss", "loss", "train"),
        ("test loss", "loss", "test"),
        ("base model", "base_loss", "train"),
        ("", "base_loss", "test"),
    ):
        said = f"{of[part]}; {certified[f'unsmoothed_{name}'][part]:.4f} unsmoothed"
        rows.append([shown, f"{certified[name][part]:.4f}", said])
    guessing = f"log2 of V = {certified['vocabulary']} tokens"
    return [*rows, ["uniform guessing", f"{certified['uniform']:.4f}", guessing]]


def _what_a_loss_is(certified: dict) -> str:
    """The loss in a sentence, and another where no bound says anything."""
    text = (
        "A row's loss is the mean of -log2 p over its completion's tokens, however many they are. "
        f"p is smoothed: alpha = {certified['alpha']:.3g} of it is uniform over the vocabulary."
    )
    if certified["best"]["name"] in certified["vacuous"]:
        text += (
            "\nNo bound says anything here: uniform guessing, which needs no training, has "
            f"{certified['uniform']:.4f} bits per token."
        )
    return text


def _table(rows: list[list[str]]):
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table
