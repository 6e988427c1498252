"""What one run is: its configuration and its folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

# What may change from one call to the next without making it another experiment.
NOT_CONFIGURATION = {"mix", "seeds", "out", "resume", "checkpoint_every", "device", "data_root", "tensorboard"}


def configuration(args: argparse.Namespace, mix: str, seed: int) -> dict[str, Any]:
    """All that decides the outcome of one run, as plain values."""
    settled = {key: value for key, value in vars(args).items() if key not in NOT_CONFIGURATION}
    return {**settled, "mix": mix, "seed": seed}


def run_folder(args: argparse.Namespace, mix: str, seed: int) -> Path:
    """Where the checkpoint of one run lies."""
    return args.out / "runs" / f"{args.method}-{mix}-seed{seed}"


def run_title(args: argparse.Namespace, mix: str, seed: int) -> str:
    """What the run is called wherever it is shown."""
    return f"{args.method} {mix} seed {seed}"
