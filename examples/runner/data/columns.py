"""Turn the columns of a table into numbers, and refuse what would be none by its nature."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from runner.errors import Refused

DATE = re.compile(
    r"\s*(\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ].*)?"  # 2020-01-31, 31.1.2020 12:00
    r"|\d{1,2}:\d{2}(:\d{2})?( ?[AaPp][Mm])?"  # 12:30
    r"|.*\b(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\b.*\d.*)\s*",  # 31 January 2020
    re.IGNORECASE,
)
IDENTIFIER = re.compile(r"(.*[_\W])?(id|uid|uuid|guid|key|index)", re.IGNORECASE)
FEW = 20  # so many categories are never taken for identifiers
MOST = 1000  # more would make a table of almost nothing but zeros


@dataclass
class Encoded:
    """Columns of numbers, what they are called, and what a user should know."""

    columns: list[np.ndarray] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)  # how many of them each column of the table has become
    numbers: list[int] = field(default_factory=list)  # the places of those that are no indicators
    one_hot: dict[str, int] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)

    def add(self, name: str, values: np.ndarray) -> None:
        """Append one column."""
        self.names.append(name)
        self.columns.append(np.asarray(values, dtype=np.float64))

    def notes(self) -> list[str]:
        """One line for each thing that was done to the table."""
        notes = []
        if self.one_hot:
            count = sum(self.one_hot.values())
            notes.append(f"text one-hot encoded into {count} columns: {_some(self.one_hot)}")
        if self.filled:
            count = sum(self.filled.values())
            notes.append(f"{count} missing values filled, each column with an indicator: {_some(self.filled)}")
        if self.empty:
            notes.append(f"empty columns left out: {_some(self.empty)}")
        return notes


def encode_columns(frame: pd.DataFrame, train: np.ndarray, path: Path) -> Encoded:
    """Standardise numbers, one-hot encode text, fill what is missing; all by the rows ``train`` alone."""
    encoded = Encoded()
    for name in frame.columns:
        column = frame[name]
        missing, before = column.isna().to_numpy(), len(encoded.columns)
        if missing.all():
            encoded.empty.append(name)
            continue
        _refuse_dates(column, path)
        numbers = pd.to_numeric(column, errors="coerce")
        if (numbers.isna() & ~missing).any():
            _add_categories(encoded, column, train, path)
        else:
            _refuse_counted(column, numbers, path)
            _add_numbers(encoded, name, numbers.to_numpy(np.float64, na_value=np.nan), missing, train, path)
        if missing.any():
            encoded.filled[name] = int(missing.sum())
            encoded.add(f"{name} is missing", missing)
        encoded.parts.append(len(encoded.columns) - before)
    if not encoded.columns:
        raise Refused(f"{path}: no column that holds anything beside the label")
    return encoded


def _add_numbers(
    encoded: Encoded, name: str, values: np.ndarray, missing: np.ndarray, train: np.ndarray, path: Path
) -> None:
    if (infinite := np.isinf(values)).any():
        raise Refused(f"{path}: column {name!r} is infinite in row {_first(infinite)}")
    known = values[train][~missing[train]]
    mean, std = (known.mean(), known.std()) if len(known) else (0.0, 1.0)
    encoded.numbers.append(len(encoded.columns))
    encoded.add(name, np.where(missing, 0.0, (values - mean) / (std if std > 0 else 1.0)))


def _add_categories(encoded: Encoded, column: pd.Series, train: np.ndarray, path: Path) -> None:
    name, texts = column.name, column.astype(str).where(column.notna())
    known = texts.dropna()
    numbers = pd.to_numeric(known, errors="coerce").notna()
    if numbers.mean() > 0.5:
        row = _first((column.notna() & pd.to_numeric(column, errors="coerce").isna()).to_numpy())
        raise Refused(
            f"{path}: column {name!r} holds {column.iloc[row - 1]!r} in row {row}, and numbers elsewhere; "
            f"wanted one or the other (or --drop {name})"
        )
    distinct = known.nunique()
    if distinct > max(FEW, len(known) / 2) or distinct > MOST:
        raise Refused(
            f"{path}: column {name!r} holds {distinct} different texts in {len(known)} rows, as an identifier or "
            f"free text does, such as {known.iloc[0][:40]!r}; leave it out with --drop {name}"
        )
    categories = sorted(texts.iloc[train].dropna().unique())
    encoded.one_hot[name] = len(categories)
    for category in categories:
        encoded.add(f"{name} is {category}", (texts == category).to_numpy())


def _refuse_dates(column: pd.Series, path: Path) -> None:
    typed = pd.api.types.is_datetime64_any_dtype(column) or isinstance(column.dtype, pd.PeriodDtype)
    typed = typed or pd.api.types.is_timedelta64_dtype(column)
    if not typed:
        if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
            return
        some = column.dropna().iloc[:200].astype(str)
        typed = some.map(lambda text: DATE.fullmatch(text) is not None).mean() > 0.9
    if typed:
        example = str(column.dropna().iloc[0])
        raise Refused(
            f"{path}: column {column.name!r} holds dates or times, such as {example!r}; turn them into numbers "
            f"(an age, a weekday), or leave them out with --drop {column.name}"
        )


def _refuse_counted(column: pd.Series, numbers: pd.Series, path: Path) -> None:
    """Whole numbers that never repeat, in a column that says it identifies."""
    known = numbers.dropna()
    if IDENTIFIER.fullmatch(str(column.name)) and known.is_unique and (known % 1 == 0).all() and len(known) > FEW:
        raise Refused(
            f"{path}: column {column.name!r} never repeats a number, as an identifier does; "
            f"leave it out with --drop {column.name}"
        )


def _first(mask: np.ndarray) -> int:
    return int(np.flatnonzero(mask)[0]) + 1


def _some(names) -> str:
    names = list(names)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
