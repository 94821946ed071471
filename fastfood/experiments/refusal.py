"""How commands end before their end: one line on stderr where something cannot be done, and an exit
code, also on signals."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def one_line(command: str, outcome: str = "error", code: int = 2) -> Iterator[None]:
    """Ends the program with one line and the exit code where its body refuses something."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        end(command, error, outcome, code)


def exit_on_signals() -> None:
    """Has SIGTERM and SIGHUP end the program as an exit would, with code 128 + their number."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has it ignored
            signal.signal(number, lambda number, frame: sys.exit(128 + number))


def end(command: str, error: object, outcome: str = "error", code: int = 2) -> None:
    """Prints what was wrong in one line, whatever characters are in it, and ends the program."""
    reason = " ".join(str(error).split())
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in reason)
    print(f"fastfood {command}: {outcome}: {shown}", file=sys.stderr)
    raise typer.Exit(code) from (error if isinstance(error, BaseException) else None)
