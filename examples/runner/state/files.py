"""Files that neither a crash nor a full disk can break."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from runner.errors import Refused

SCRATCH = ".part"


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call ``write(file)`` on a new file and rename it: a reader finds the old file or the new, never a half."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}{SCRATCH}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with scratch.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        kept = "; the old one is as it was" if path.is_file() else ""
        raise Refused(f"{path}: cannot be written: {error.strerror or error}{kept}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8, whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def write_tensors(path: Path, state: dict[str, Any]) -> None:
    """Write with ``torch.save``, whole or not at all."""

    def write(file: IO[bytes]) -> None:
        careful = _Careful(file)
        torch.save(state, careful)
        if careful.error is not None:
            raise careful.error

    write_atomically(path, write)


class _Careful:
    """Keep what goes wrong for later: ``torch.save`` would hide the reason behind one of its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.error = file, None

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """What is left is written, and may fail, when the file is closed."""
