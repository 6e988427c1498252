"""Divide rows into those to train on and those to test on, always in the same way."""

from __future__ import annotations

import numpy as np
from sklearn.model_selection import train_test_split

from runner.errors import Refused


def split_rows(name: str, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Four fifths train; every class is cut alike where it has the rows for it, and always trains."""
    if len(y) < 5:
        raise Refused(f"{name}: {len(y)} rows are too few to split into training and test rows")
    counts, test = np.bincount(y), max(len(y) // 5, 1)
    rows = np.arange(len(y))
    if counts.min() >= 2 and test >= len(counts):
        return tuple(train_test_split(rows, test_size=test, random_state=0, stratify=y))
    first = np.unique(y, return_index=True)[1]  # one row of each class trains: of a class of one row, all
    rest = np.setdiff1d(rows, first)
    if not len(rest):
        raise Refused(f"{name}: every row is of a class of its own; wanted classes")
    train, tested = train_test_split(rest, test_size=min(test, len(rest) - 1) or 1, random_state=0)
    return np.concatenate([first, train]), tested
