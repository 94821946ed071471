"""The commands `fastfood adapter ...`: what a task vector's file holds, whether it fits a model,
the model with it merged in, and how two files differ. Nothing heavy is imported before the
arguments have been read."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from .files import as_os_errors
from .refusal import one_line

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")

File = Annotated[Path, typer.Argument(help="adapter.safetensors or its folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Model = Annotated[
    str, typer.Option(help="The base model: a checkpoint's folder or hub name.", metavar="NAME")
]
TaskClass = Annotated[
    str | None,
    typer.Option(
        help="Class of transformers that loads the model, with its head; by default the first of "
        "its configuration's architectures.",
        metavar="CLASS",
    ),
]
Labels = Annotated[int | None, typer.Option(help="Number of labels of a new head.")]
Seed = Annotated[int, typer.Option(help="Seed of a new head, as in the training.")]
DTYPES = ("float32", "float16", "bfloat16", "float64")
Dtype = Annotated[
    str, typer.Option(help="Type of the weights in the training.", metavar="|".join(DTYPES))
]


@app.callback()
def adapter() -> None:
    """Reads, checks, merges and compares task vectors.

    Exit codes: 0 done, 2 bad input; `verify` ends with 1 if it refuses the file, `diff` with 1 if
    the files differ.
    """


@app.command()
def inspect(file: File, as_json: Json = False) -> None:
    """Shows what a file holds, and how many bits each of its tensors takes."""
    with one_line("adapter inspect"):
        facts = _facts(file)
    if as_json:
        _print_json(facts)
    else:
        _print_table([[name, *_cells(value)] for name, value in facts.items()])


@app.command()
def verify(
    file: File,
    model: Model,
    task_class: TaskClass = None,
    labels: Labels = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
) -> None:
    """Says whether a file is whole and was trained on this model, and if not, why.

    For a file of `fastfood d90 --save-adapters`, name the model, labels and seed of that study:

    `fastfood adapter verify FILE --model roberta-base --labels 2 --seed 0 --task-class
    AutoModelForSequenceClassification`
    """
    with one_line("adapter verify"):
        if not file.exists():
            raise FileNotFoundError(f"{file}: no such file or folder")
        base = _base(model, task_class, labels, seed, dtype)
    from fastfood import SubspaceModel

    with one_line("adapter verify", "refused", code=1):
        SubspaceModel.from_pretrained(base, file)
    print(f"OK: {file} was trained on {model}")


@app.command()
def merge(
    file: File,
    model: Model,
    out: Annotated[Path, typer.Option(help="A new or empty folder.", metavar="DIR")],
    task_class: TaskClass = None,
    labels: Labels = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
) -> None:
    """Writes the model with the file merged in, and its tokenizer, as a checkpoint like any other.

    The merged model computes the same as the model with the adapter, bit for bit.
    """
    with one_line("adapter merge"):
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise ValueError(f"out: wanted a new or empty folder, got {out}")
        base = _base(model, task_class, labels, seed, dtype)
        from fastfood import SubspaceModel

        merged = SubspaceModel.from_pretrained(base, file).merge_and_unload()
        _write_checkpoint(merged, model, out)
    print(f"wrote {out}")


@app.command()
def diff(first: File, second: File, as_json: Json = False) -> None:
    """Shows in which settings two files differ and, if in none, how far apart their vectors are.

    Exit codes: 0 same settings, base and numbers, 1 different, 2 bad input.
    """
    with one_line("adapter diff"):
        comparison = _compare(first, second)
    if as_json:
        _print_json(comparison)
    elif comparison["same"]:
        print("the same settings, base and numbers")
    else:
        rows = [[name, *map(str, pair)] for name, pair in comparison["settings"].items()]
        for name in ("theta", "lambda_"):
            rows += [[f"{name} {key}", *_cells(value)] for key, value in comparison[name].items()]
        _print_table(rows)
    raise typer.Exit(0 if comparison["same"] else 1)


def _facts(file: Path) -> dict:
    """The header and the sizes of a file, and a few statistics of theta and lambda_."""
    from fastfood.adapter import read

    path, header, tensors, bits = read(file)
    facts = {"file": str(path), "bytes": path.stat().st_size, **header}
    facts |= {"m": len(tensors.get("lambda_", ())), "bits": sum(bits.values())}
    for name, tensor in tensors.items():
        values = tensor.double()
        stored = "code" if "levels" in header else str(tensor.dtype).removeprefix("torch.")
        facts[name] = {
            "shape": list(tensor.shape),
            "stored": stored,
            "bits": bits[name],
            "distinct": len(values.unique()),
            "norm": values.norm().item(),
            "least": values.min().item(),
            "greatest": values.max().item(),
        }
    return facts


def _compare(first: Path, second: Path) -> dict:
    """The settings in which two files differ, as pairs; if there are none, so that both files have
    the same P and groups, the distances between their vectors."""
    from fastfood.adapter import SETTINGS, read

    a, b = read(first), read(second)
    names = (*SETTINGS, "D", "base")
    pairs = {name: [a.header[name], b.header[name]] for name in names}
    settings = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    comparison = {"same": False, "settings": settings, "theta": {}, "lambda_": {}}
    shapes = [{name: t.shape for name, t in held.tensors.items()} for held in (a, b)]
    if settings or shapes[0] != shapes[1]:
        return comparison
    x, y = ({name: t.double() for name, t in held.tensors.items()} for held in (a, b))
    comparison["same"] = all(x[name].equal(y[name]) for name in x)
    norms = x["theta"].norm() * y["theta"].norm()
    comparison["theta"] = {
        "distance": (x["theta"] - y["theta"]).norm().item(),
        "cosine": (x["theta"] @ y["theta"] / norms).item() if norms else None,
    }
    if "lambda_" in x:
        comparison["lambda_"] = {"difference": (y["lambda_"] - x["lambda_"]).tolist()}
    return comparison


def _base(model: str, task_class: str | None, labels: int | None, seed: int, dtype: str):
    """The base model as the training built it; the seed fixes the initial values of a new head.

    Raises ValueError naming the argument.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: wanted one of {', '.join(DTYPES)}, got {dtype!r}")
    import torch
    import transformers

    from .training.models import SAFELY

    transformers.utils.logging.set_verbosity_error()  # it would warn about each new head
    transformers.utils.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(model, trust_remote_code=False)
        name = task_class or (config.architectures or [None])[0]
        if name is None:
            raise ValueError("its configuration names no architectures: give --task-class")
        cls = getattr(transformers, name, None)
        if cls is None or not hasattr(cls, "from_pretrained"):
            raise ValueError(f"transformers has no model class {name!r}: give another --task-class")
        options = {} if labels is None else {"num_labels": labels}
        transformers.set_seed(seed)
        return cls.from_pretrained(
            model, dtype=getattr(torch, dtype), ignore_mismatched_sizes=True, **SAFELY, **options
        )
    except Exception as error:  # the loaders raise many unrelated types
        wanted = "a checkpoint that transformers can load"
        raise ValueError(f"model: wanted {wanted}, got {model!r} ({error})") from error


def _write_checkpoint(merged, model: str, out: Path) -> None:
    """Writes the folder `out` whole or not at all."""
    out = out.absolute()
    temporary = out.parent / f".{out.name}.{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
        tokenizer = _tokenizer(model)
        with as_os_errors():
            merged.save_pretrained(temporary)
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary)
        if tokenizer is None:
            print(f"{model} has no tokenizer: none is written", file=sys.stderr)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _tokenizer(model: str):
    """The model's tokenizer, or None if it has none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError):
        return None
    # Some classes return a tokenizer without words where its files are missing.
    return tokenizer if len(tokenizer) > len(tokenizer.all_special_ids) else None


def _cells(value) -> list[str]:
    """The cells of a table that show a fact; a mapping or a list goes into one cell."""
    if isinstance(value, dict):
        return [", ".join(f"{name} {_cells(part)[0]}" for name, part in value.items())]
    if isinstance(value, list):
        return [", ".join(_cells(part)[0] for part in value)]
    return [f"{value:.6g}" if isinstance(value, float) else str(value)]


def _print_table(rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False, emoji=False).print(table)


def _print_json(facts: dict) -> None:
    print(json.dumps(facts, indent=2))
