"""How commands end early: with one line on stderr that says what cannot be done, and with an exit
code, also after a signal."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def one_line(command: str, outcome: str = "error", code: int = 2) -> Iterator[None]:
    """Ends the program with one line and exit code `code` if its body refuses something."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        end(command, error, outcome, code)


def exit_on_signals() -> None:
    """Makes SIGTERM and SIGHUP raise SystemExit, so that cleanup runs, with code 128 + signal."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has set it to be ignored
            signal.signal(number, lambda number, frame: sys.exit(128 + number))


def end(command: str, error: object, outcome: str = "error", code: int = 2) -> None:
    """Prints the error in one line, with unprintable characters escaped, and ends the program."""
    reason = " ".join(str(error).split())
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in reason)
    print(f"fastfood {command}: {outcome}: {shown}", file=sys.stderr)
    raise typer.Exit(code) from (error if isinstance(error, BaseException) else None)
