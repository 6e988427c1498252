"""What a command decides, settled once: the command line, completed by the recipe of the data set."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from runner.data.dataset import Dataset, fingerprint, subsample
from runner.errors import Refused

FEWEST_BATCHES = 4  # that an epoch should have

COMMON_RECIPE: dict[str, Any] = {
    "alpha": 1.0,
    "temperature": 0.2,
    "batch_size": 256,
    "seeds": 3,
    "lr": 0.125,
    "weight_decay": 1e-4,
    "queue": 4096,
    "momentum": 0.999,
    "bn": "local",
    "projection_bn": "hidden",
    "prediction_bn": "hidden",
    "data_fraction": 1.0,
    "class_fraction": 1.0,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that decides how a command runs; a domain adds fields of its own."""

    domain: str
    data: str
    data_root: str | None
    fingerprint: str  # of the data
    method: str
    mix: tuple[str, ...]
    mix_at: str | None
    inputmix: int
    alpha: float
    lambda_per: str | None = None  # None leaves it to the mode of i-Mix
    augment: str
    epochs: int
    batch_size: int
    seeds: int
    temperature: float
    lr: float
    weight_decay: float
    milestones: tuple[int, ...] | None
    queue: int
    momentum: float
    width: int
    bn: str
    projection_bn: str
    prediction_bn: str
    data_fraction: float
    class_fraction: float
    pretrain_rows: int | None
    probe_rows: int | None
    probe: str
    amp: str | None
    compile: bool
    device: torch.device
    ranks: int
    out: Path
    resume: bool
    checkpoint_every: float
    tensorboard: bool
    controls: bool

    def configuration(self) -> dict[str, Any]:
        """What decides the outcome of a run, as the plain values of a JSON file."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in CIRCUMSTANCES}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


# What may change from one call to the next without making it another experiment.
CIRCUMSTANCES = {
    "mix",
    "seeds",
    "out",
    "resume",
    "checkpoint_every",
    "device",
    "data_root",
    "tensorboard",
    "controls",
    "stream",  # the fingerprint of the data tells files from pixels
    "workers",
}

AnySettings = TypeVar("AnySettings", bound=Settings)


def settle(
    kind: type[AnySettings],
    given: Mapping[str, Any],
    recipe: Mapping[str, Any],
    *,
    domain: str,
    data: Dataset,
    device: torch.device,
    ranks: int,
) -> AnySettings:
    """Fill what the command line left open (None) from the recipe, and refuse what does not go together.

    A recipe may say how many ``steps`` it wants instead of how many epochs: a few rows want more epochs than many.
    """
    rows = len(subsample(data, given["data_fraction"] or 1.0, given["class_fraction"] or 1.0).train_x)
    rows = min(rows, given["pretrain_rows"] or rows)
    filled = {**COMMON_RECIPE, **recipe}
    while filled["batch_size"] > max(2 * ranks, rows // FEWEST_BATCHES):
        filled["batch_size"] //= 2  # few rows: a batch as large as usual would be an epoch, or more than that
    values = {key: filled.get(key) if value is None else value for key, value in given.items()}
    if values["epochs"] is None:
        values["epochs"] = math.ceil(filled["steps"] / max(1, rows // values["batch_size"]))
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    if values["out"] is None:
        name = re.sub(r"[^\w.-]+", "_", data.name)
        values["out"] = Path("runs") / f"{domain}-{name}-{values['method']}"
    settled = {"domain": domain, "fingerprint": fingerprint(data), "device": device, "ranks": ranks}
    settings = kind(**{**values, **settled})
    _refuse_misfits(settings, rows, data.name)
    return settings


def _refuse_misfits(settings: Settings, rows: int, name: str) -> None:
    batch, ranks = settings.batch_size, settings.ranks
    if batch > rows:
        raise Refused(f"--batch-size {batch}: larger than the {rows} training rows of {name}")
    if batch % ranks or batch < 2 * ranks:
        raise Refused(f"--batch-size {batch}: wanted a multiple of the {ranks} processes, 2 rows each")
    if settings.inputmix >= batch // ranks:
        raise Refused(f"--inputmix {settings.inputmix}: wants fewer others than the batch has rows ({batch // ranks})")
    last = max(settings.milestones or (0,))
    if last >= settings.epochs:
        raise Refused(f"--milestones {last}: wanted epochs before the last of {settings.epochs}")
