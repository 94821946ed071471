"""Files that a reader finds whole or as they were before, whoever else writes them, and one kind of
error for all that cannot be written."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to be written, which takes its place at the end; after an error
    nothing is left of it. Any number of processes may do so at once."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def as_os_errors() -> Iterator[None]:
    """Has safetensors and torch raise OSError, as everything else, for what cannot be written."""
    try:
        yield
    except Exception as error:
        own = type(error).__name__ == "SafetensorError" or "PytorchStreamWriter" in str(error)
        if own and not isinstance(error, OSError):
            raise OSError(str(error)) from error
        raise
