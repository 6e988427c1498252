"""Read a table as people save them: CSV with any separator and encoding, or Parquet."""

from __future__ import annotations

import csv
import gzip
import re
from collections import Counter
from pathlib import Path

import pandas as pd

from runner.data.naming import naming
from runner.errors import Refused

SEPARATORS = (",", ";", "\t", "|")
MISSING = ["?"]  # UCI's, beside those that pandas knows
BINARY = {b"PK\x03\x04": "a workbook or an archive", b"\x1f\x8b": "compressed", b"\xd0\xcf\x11\xe0": "an old workbook"}


def read_table(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows, labelled by the file's index where it has one, and what a user should know of the reading."""
    with naming(path):
        frame, notes = (pd.read_parquet(path), []) if path.suffix == ".parquet" else _read_text(path)
    if frame.columns.nlevels > 1:
        raise Refused(f"{path}: its columns have names of {frame.columns.nlevels} levels; wanted one name for each")
    frame.columns = frame.columns.map(str)
    if twice := [name for name, times in Counter(frame.columns).items() if times > 1]:
        raise Refused(f"{path}: {_twice(twice[0])}")
    return frame, notes


def open_text(path: Path, **options):
    """Open a text file, compressed or not."""
    return (gzip.open if path.suffix == ".gz" else open)(path, "rt", **options)


def _read_text(path: Path) -> tuple[pd.DataFrame, list[str]]:
    encoding, notes = _encoding(path)
    with open_text(path, encoding=encoding, newline="") as file:
        first = [line for line, _ in zip(file, range(20), strict=False)]
    if not "".join(first).strip():
        raise Refused(f"{path}: the file is empty")
    separator = max(SEPARATORS, key=lambda one: len(next(csv.reader(first[:1], delimiter=one), [])))
    names = [name.strip() for name in next(csv.reader(first[:1], delimiter=separator))]
    named = [name for name in names if name]
    if twice := [name for name, times in Counter(named).items() if times > 1]:
        raise Refused(f"{path}: {_twice(twice[0])}")
    # Where a semicolon separates, a comma is often the decimal point.
    comma = separator == ";" and any(re.search(r"(^|;)\s*-?\d+,\d+\s*(;|$)", line) for line in first[1:])
    options = {"sep": separator, "decimal": "," if comma else ".", "encoding": encoding, "na_values": MISSING}
    unnamed = not names[0] and len(names) > 1
    frame = pd.read_csv(path, index_col=0 if unnamed else None, low_memory=False, **options)
    frame.columns = frame.columns.map(lambda name: str(name).strip())
    if unnamed:
        frame.index.name = None
    if unnamed or not isinstance(frame.index, pd.RangeIndex):  # or the header has a name less than the rows values
        notes.append("the first column has no name, and is taken for an index")
    if comma:
        notes.append("decimal commas")
    return frame, notes


def _encoding(path: Path) -> tuple[str, list[str]]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        start = file.read(4096)
    for magic, kind in BINARY.items():
        if start.startswith(magic):
            raise Refused(f"{path}: {kind}; wanted a table as .csv, .csv.gz or .parquet")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16", []
    if b"\0" in start:
        raise Refused(f"{path}: no text; wanted a table as .csv, .csv.gz or .parquet")
    try:
        with open_text(path, encoding="utf-8") as file:
            while file.read(1 << 20):
                pass
    except UnicodeDecodeError:
        return "latin-1", ["not UTF-8, read as Latin-1"]
    return "utf-8-sig", []


def _twice(name: str) -> str:
    return f"two columns are called {name!r}; wanted one line of names, each of them once"
