"""Writes files so that a reader finds either the old or the new content, never a part, however many
processes write; and makes every error of writing an OSError."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`. The file written there replaces `path` at the end, or
    is removed after an error. Any number of processes may write the same `path` at once."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def as_os_errors() -> Iterator[None]:
    """Turns the errors that safetensors and torch raise for a failed write into OSError."""
    try:
        yield
    except Exception as error:
        failed = type(error).__name__ == "SafetensorError" or "PytorchStreamWriter" in str(error)
        if failed and not isinstance(error, OSError):
            raise OSError(str(error)) from error
        raise
