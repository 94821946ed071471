"""Runs commands in this process, and compares what they leave in a folder."""

from typer.testing import CliRunner

from fastfood.experiments import cli

# `pretrain` with it takes a second.
TINY = ["--checkpoints", "0,4", "--hidden-size", "16", "--heads", "2", "--layers", "1"]
TINY += ["--intermediate-size", "16", "--batch-size", "4"]


def contents(folder):
    """All files and folders within a folder: {path: bytes, or None for a folder}."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def invoke(*arguments):
    """The result of `fastfood ARGUMENTS`, run in this process; any error but an exit is raised."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if not isinstance(result.exception, SystemExit | None):
        raise result.exception
    return result
