"""One way to refuse: an exception whose message is one line, and the place at the top that prints it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


class Refused(Exception):
    """The input is at fault and not the program: one line that names the file, the column or the option."""

    def __init__(self, line: str) -> None:
        super().__init__(line.replace("\n", " "))


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End with one clear line, not a traceback, where the input is at fault and not the program."""
    try:
        yield
    except Refused as error:
        # Under torchrun all processes meet the same error, and one of them says it.
        sys.exit(f"error: {error}" if int(os.environ.get("RANK", "0")) == 0 else 1)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues from the last checkpoint")
