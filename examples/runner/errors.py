"""One way to refuse: an exception whose message is one line, and the place at the top that prints it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator


class Refused(Exception):
    """The input or the machine is at fault and not the program: one line that names the file, column or option."""

    def __init__(self, line: str) -> None:
        super().__init__(" ".join(line.split("\n")))


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM: stop, but leave the files in order."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End with one clear line, not a traceback, where the input or the machine is at fault and not the program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a character that the terminal lacks ends no run
            stream.reconfigure(errors="backslashreplace")
    with catch_signals(_interrupt):
        try:
            yield
        except Refused as error:
            _end(str(error))
        except OSError as error:
            _end(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            _end(f"{str(error).splitlines()[0]}; the same command continues from the last checkpoint")
        except KeyboardInterrupt as error:
            print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
            sys.exit(128 + getattr(error, "number", signal.SIGINT))


@contextlib.contextmanager
def catch_signals(handler) -> Iterator[None]:
    """Let SIGINT and SIGTERM call this handler, where this thread may say so."""
    before = {}
    with contextlib.suppress(ValueError):  # only the main thread has signals
        before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _interrupt(number: int, _frame: object) -> None:
    raise Interrupted(number)


def _end(line: str) -> None:
    # Under torchrun all processes meet the same error, and one of them says it.
    sys.exit(f"error: {line}" if int(os.environ.get("RANK", "0")) == 0 else 1)
