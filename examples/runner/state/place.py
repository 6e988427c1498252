"""The folder that a command writes to: looked at before the training, and held until its end."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from runner.errors import Refused
from runner.ranks import gather, is_main
from runner.state.files import SCRATCH

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


_held: list[int] = []  # handles of the folders that this process holds


def let_go(but: int = 0) -> None:
    """Hold no folder any longer, or the first ones alone; a fork would hold those of its parent beyond its death."""
    while len(_held) > but:
        os.close(_held.pop())


@contextlib.contextmanager
def hold(out: Path) -> Iterator[None]:
    """Hold ``--out`` against other processes; refuse a file, a folder that is held, read-only, or on a full disk."""
    before, refusal = len(_held), None
    try:
        if is_main():
            try:
                _open(out)
            except Refused as why:
                refusal = str(why)
        refusal = gather(refusal)[0]  # all ranks stop where the first cannot write
        if refusal:
            raise Refused(refusal)
        yield
    finally:
        let_go(but=before)


def refuse_without_room(path: Path, size: int) -> None:
    """Refuse before the training where no file of ``size`` bytes fits beside what is there."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}{SCRATCH}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with scratch.open("wb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        wanted = f"no file of {size / 1e6:.1f} MB can be written there"
        raise Refused(f"{path.parent}: {wanted}: {error.strerror}") from error


def refuse_unwritable(*files: Path | None) -> None:
    """Refuse before the work a file that could not be written after it."""
    for path in files:
        if path is not None and path.is_dir():
            raise Refused(f"{path}: wanted a file, and it is a folder")
        if path is not None:
            refuse_without_room(path, 1 << 16)


def _open(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if out.exists() else error.strerror
        raise Refused(f"--out {out}: wanted a folder, and {reason}") from error
    if fcntl is not None:
        # The folder itself is locked: no file is left behind, and the lock ends with the process however that ends.
        _held.append(os.open(out, os.O_RDONLY))
        try:
            fcntl.flock(_held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise Refused(f"--out {out}: another process is writing there; wait for it or give another") from error
    refuse_without_room(out / "results.json", 1 << 16)
    for left in (*out.glob(f".*{SCRATCH}"), *out.glob(f"runs/*/.*{SCRATCH}")):  # by a process that was killed
        left.unlink(missing_ok=True)
