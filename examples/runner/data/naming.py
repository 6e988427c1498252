"""Whatever a broken file raises becomes one line that names it."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from pathlib import Path

from runner.errors import Refused


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file that could not be read."""
    try:
        yield
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise Refused(f"{path}: cannot be read: {error}") from error
