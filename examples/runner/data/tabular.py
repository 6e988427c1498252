"""Tables: the embedded digits, UCI's Covertype and HIGGS, and any CSV or Parquet file with a label column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import fetch_covtype, fetch_openml, load_digits

from runner.data.columns import encode_columns
from runner.data.dataset import Dataset
from runner.data.naming import naming
from runner.data.split import split_rows
from runner.data.table_file import open_text, read_table
from runner.errors import Refused

NAMED = ("digits", "covtype", "higgs")
COVTYPE_COLUMNS, HIGGS_COLUMNS = 55, 29
COVTYPE_CLASSES = [
    "Spruce/Fir",
    "Lodgepole Pine",
    "Ponderosa Pine",
    "Cottonwood/Willow",
    "Aspen",
    "Douglas-fir",
    "Krummholz",
]


@dataclass(frozen=True)
class Table(Dataset):
    """Rows of numbers, and where they come from."""

    rows: np.ndarray | None = None  # the place of each row in the file, those to train on first; None: in order
    parts: tuple[int, ...] = ()  # how many columns each column of the file has become; empty: one
    numbers: tuple[int, ...] = ()  # the columns that hold numbers; all others are indicators of 0 or 1
    raw: pd.DataFrame | None = None  # the columns as they are in the file, less the label, in its order

    def places(self) -> np.ndarray:
        """The place of each row in the file, those to train on first."""
        return np.arange(len(self.train_y) + len(self.test_y)) if self.rows is None else self.rows


def load_tabular(
    name_or_path: str,
    *,
    label: str | None = None,
    drop: Sequence[str] = (),
    root: str | Path | None = None,
    standardize_by: str = "train",
    train_rows: int | None = None,
) -> Table:
    """Load ``digits``, ``covtype`` or ``higgs`` by name, or a file of theirs or of your own by path.

    Of a file of your own, ``label`` names the class, and the columns ``drop`` are left out. Columns are standardised by
    the statistics of the training rows; Covertype's and HIGGS's, with ``standardize_by="all"``, by those of all rows.
    Of HIGGS, ``train_rows`` are drawn to train on.
    """
    table = _load(name_or_path, label, drop, root, standardize_by, train_rows)
    if standardize_by != "train" and table.name not in ("covtype", "higgs"):
        raise Refused(f"--standardize-by {standardize_by}: only for covtype and higgs, got {table.name}; wanted train")
    if train_rows is not None and table.name != "higgs":
        raise Refused(f"--train-rows {train_rows}: only for higgs, got {table.name}; wanted --data-fraction")
    return table


def _load(
    name_or_path: str,
    label: str | None,
    drop: Sequence[str],
    root: str | Path | None,
    by: str,
    train_rows: int | None,
) -> Table:
    if name_or_path == "digits":
        return _digits()
    if name_or_path == "covtype":
        table = fetch_covtype(data_home=root)
        return _covtype(table.data, table.target, by)
    if name_or_path == "higgs":
        table = fetch_openml("higgs", version=2, as_frame=False, parser="auto", data_home=root)
        complete = ~np.isnan(table.data).any(axis=1)
        return _higgs(table.data[complete], table.target[complete].astype(int), by, train_rows)

    path = Path(name_or_path)
    if not path.is_file():
        known = "digits, covtype, higgs or the path of a .csv, .csv.gz, .data.gz or .parquet file"
        raise Refused(f"--data {name_or_path}: no such file; wanted {known}")
    if label is not None:
        return _own_table(path, label, drop)
    if path.suffix != ".parquet":
        numbers = _columns_without_header(path)
        if numbers == COVTYPE_COLUMNS:
            table = _read_numbers(path)
            return _covtype(table[:, :-1], table[:, -1], by)
        if numbers == HIGGS_COLUMNS:
            table = _read_numbers(path)
            return _higgs(table[:, 1:], table[:, 0], by, train_rows)
    raise Refused(
        f"{path}: neither UCI's Covertype (55 numbers per row) nor HIGGS (29); name its class with --label COLUMN"
    )


def _digits() -> Table:
    digits = load_digits()
    return _stratified("digits", digits.data, digits.target, [str(d) for d in range(10)])


def _covtype(x: np.ndarray, y: np.ndarray, by: str) -> Table:
    """Split as in the paper; a file that was cut short is split as its rows allow."""
    if len(x) >= 100_000:
        train, test = 15_120, len(x)
    elif len(x) >= 15_120:
        train, test = 11_340, 15_120  # UCI's official training and validation rows, balanced over the classes
    else:
        train, test = len(x) * 3 // 4, len(x)
    classes = y.astype(np.int64) - 1
    if classes.min() < 0 or classes.max() > 6:
        raise Refused(f"covtype: labels run from {y.min():g} to {y.max():g}; wanted 1 to 7 in the last column")
    x = x[:test].astype(np.float32)
    x[:, :10] = _standardize(x[:, :10], test if by == "all" else train)
    data = _split("covtype", x, classes[:test], train, COVTYPE_CLASSES, groups=(10, 4, 40), numbers=range(10))
    return replace(data, parts=(*[1] * 10, 4, 40))


def _higgs(x: np.ndarray, y: np.ndarray, by: str, train_rows: int | None) -> Table:
    """Test on the last 500,000 rows, as UCI asks, of a smaller file on the last fifth; train on the others.

    Of these, ``train_rows`` are drawn as in the authors' code: numpy's generator seeded with 1, none taken twice.
    """
    if not np.isin(y, (0, 1)).all():
        raise Refused("higgs: the first column holds the class and must be 0 or 1")
    train = len(x) - 500_000 if len(x) >= 1_500_000 else len(x) * 4 // 5
    if train_rows is not None and train_rows > train:
        raise Refused(f"--train-rows {train_rows}: higgs has {train} here; the paper's come from UCI's HIGGS.csv.gz")
    taken = (
        np.arange(train) if train_rows is None else np.random.RandomState(1).choice(train, train_rows, replace=False)
    )
    rows = np.concatenate([taken, np.arange(train, len(x))])
    known = x if by == "all" else x[taken]
    mean, std = known.mean(0, dtype=np.float64), known.std(0, dtype=np.float64)
    x = (x[rows] - mean.astype(np.float32)) / np.where(std > 0, std, 1.0).astype(np.float32)
    data = _split("higgs", x, y[rows].astype(np.int64), len(taken), ["background", "signal"])
    return replace(data, rows=rows)


def _own_table(path: Path, label: str, drop: Sequence[str]) -> Table:
    frame, notes = read_table(path)
    for name in (label, *drop):
        if name not in frame.columns:
            some = ", ".join(frame.columns[:8]) + (", ..." if len(frame.columns) > 8 else "")
            raise Refused(f"{path}: no column {name!r} for {'--label' if name == label else '--drop'}; it has {some}")
    target, frame = frame[label], frame.drop(columns=[label, *drop])
    if frame.shape[1] == 0:
        raise Refused(f"{path}: no column beside the label {label!r}")
    if target.isna().any():
        raise Refused(f"{path}: row {_first(target.isna())} has no value in the label column {label!r}")
    classes, y = np.unique(target.astype(str), return_inverse=True)
    if len(classes) > max(2, len(target) // 2):
        raise Refused(f"{path}: label column {label!r} has {len(classes)} values in {len(target)} rows; wanted classes")
    train, test = split_rows(path.stem, y)
    encoded = encode_columns(frame, train, path)
    rows, x = np.concatenate([train, test]), np.column_stack(encoded.columns)
    names = [str(c) for c in classes]
    data = _split(
        path.stem, x[rows], y[rows], len(train), names, numbers=encoded.numbers, notes=[*notes, *encoded.notes()]
    )
    return replace(data, rows=rows, raw=frame, parts=tuple(encoded.parts))


def _stratified(name: str, x: np.ndarray, y: np.ndarray, classes: list[str]) -> Table:
    train, test = split_rows(name, y)
    rows = np.concatenate([train, test])
    data = _split(name, _standardize(x[rows], len(train)), y[rows], len(train), classes)
    return replace(data, rows=rows, raw=pd.DataFrame(x).rename(columns=lambda i: f"x{i}"))


def _standardize(x: np.ndarray, rows: int) -> np.ndarray:
    """Zero mean and unit variance over the first ``rows``; a constant column becomes zeros."""
    x = x.astype(np.float64)
    mean, std = x[:rows].mean(0), x[:rows].std(0)
    return (x - mean) / np.where(std > 0, std, 1.0)


def _split(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    train: int,
    classes: list[str],
    *,
    groups: tuple[int, ...] = (),
    numbers: Sequence[int] | None = None,
    notes: Sequence[str] = (),
) -> Table:
    inputs, labels = torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.int64))
    return Table(
        name,
        inputs[:train],
        labels[:train],
        inputs[train:],
        labels[train:],
        classes,
        groups=groups or (x.shape[1],),
        numbers=tuple(range(x.shape[1]) if numbers is None else numbers),
        notes=tuple(notes),
    )


def _columns_without_header(path: Path) -> int | None:
    """How many numbers the first line holds, or None where it holds anything else (a header)."""
    with naming(path), open_text(path, encoding="latin-1") as lines:
        first = lines.readline()
    if not first.strip():
        raise Refused(f"{path}: the file is empty")
    try:
        return len([float(cell) for cell in first.split(",")])
    except ValueError:
        return None


def _read_numbers(path: Path) -> np.ndarray:
    with naming(path):
        frame = pd.read_csv(path, header=None, dtype=np.float32)
    table = frame.to_numpy()
    if not np.isfinite(table).all():
        row, column = np.argwhere(~np.isfinite(table))[0] + 1
        raise Refused(f"{path}: row {row}, column {column} is empty, NaN or infinite")
    return table


def _first(mask: pd.Series) -> int:
    return int(np.flatnonzero(np.asarray(mask))[0]) + 1
