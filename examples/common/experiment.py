"""What one run is: its configuration and its folder."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

from common.dataset import Dataset

# What may change from one call to the next without making it another experiment.
NOT_CONFIGURATION = {"mix", "seeds", "out", "resume", "checkpoint_every", "device", "data_root", "tensorboard"}


def configuration(args: argparse.Namespace, mix: str, seed: int) -> dict[str, Any]:
    """All that decides the outcome of one run, as plain values."""
    settled = {key: value for key, value in vars(args).items() if key not in NOT_CONFIGURATION}
    return {**settled, "mix": mix, "seed": seed}


def fingerprint(data: Dataset) -> str:
    """A hash of all values: data that changed under the same name are other data."""
    found = hashlib.sha256()
    for tensor in (data.train_x, data.train_y, data.test_x, data.test_y):
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().numpy().data)
    return found.hexdigest()[:16]


def run_folder(args: argparse.Namespace, mix: str, seed: int) -> Path:
    """Where the checkpoint of one run lies."""
    return args.out / "runs" / f"{args.method}-{mix}-seed{seed}"


def run_title(args: argparse.Namespace, mix: str, seed: int) -> str:
    """What the run is called wherever it is shown."""
    return f"{args.method} {mix} seed {seed}"
