"""What every loader returns: two tensors of inputs, two of labels, and the names of the classes."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from runner.data.files import ImageFiles
from runner.data.memory import fits
from runner.errors import Refused


@dataclass(frozen=True)
class Dataset:
    """Training and test rows as whole tensors, not augmented; images may also be files that stand in for one.

    Tables are (N, F) float32, images (N, C, H, W) uint8, speech (N, samples) float32 at 16 kHz, one second each.
    Labels are int64 indices into ``classes``. ``groups`` cuts the columns of a table into parts of different kind.
    """

    name: str
    train_x: Tensor | ImageFiles
    train_y: Tensor
    test_x: Tensor | ImageFiles
    test_y: Tensor
    classes: list[str]
    groups: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()  # what was done to the data that a user should know, a line each

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            x, y = getattr(self, f"{split}_x"), getattr(self, f"{split}_y")
            if len(x) == 0:
                raise Refused(f"{self.name}: the {split} split is empty")
            if len(x) != len(y):
                raise Refused(f"{self.name}: {len(x)} {split} inputs, but {len(y)} labels")
            if x.is_floating_point() and not torch.isfinite(x).all():
                raise Refused(f"{self.name}: the {split} split holds NaN or infinite values")
        if len(torch.unique(self.train_y)) < 2:
            raise Refused(f"{self.name}: the training rows are all of one class; a linear probe needs at least two")

    def to(self, device: torch.device | str) -> Dataset:
        """Move all tensors to where the network lives, if they have room there: then no loader stands between.

        What has no room goes there batch by batch.
        """
        device = torch.device(device)
        stays = isinstance(self.train_x, ImageFiles) or (
            device.type != "cpu" and not fits(self.train_x.nbytes + self.test_x.nbytes, device)
        )
        moved = ("train_y", "test_y") if stays else ("train_x", "train_y", "test_x", "test_y")
        return replace(self, **{name: getattr(self, name).to(device) for name in moved})


def take(x: Tensor | ImageFiles, rows: Tensor) -> Tensor:
    """Some rows, wherever these and their numbers live."""
    return x[rows.to(x.device)]


def keep_rows(data: Dataset, rows: Tensor, part: str = "train") -> Dataset:
    """Leave out all other rows, of files without reading any."""
    x = getattr(data, f"{part}_x")
    kept = x.subset(rows) if isinstance(x, ImageFiles) else take(x, rows)
    return replace(data, **{f"{part}_x": kept, f"{part}_y": take(getattr(data, f"{part}_y"), rows)})


def subsample(data: Dataset, data_fraction: float, class_fraction: float) -> Dataset:
    """Keep a share of the training rows of each class, and of the classes; always the same rows."""
    if data_fraction == class_fraction == 1:
        return data
    labels = data.train_y.cpu()
    kept = []
    for label in labels.unique()[: max(2, math.ceil(class_fraction * len(labels.unique())))]:
        rows = (labels == label).nonzero().flatten()
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        kept.append(rows[order[: max(1, round(data_fraction * len(rows)))]])
    return keep_rows(data, torch.cat(kept))


def draw_labels(y: Tensor, share: float, seed: int) -> Tensor:
    """Rows that keep their label: this share of every class, one row at least.

    What is drawn for a share is among what the same seed draws for a larger one.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for label in y.unique():
        of_class = (y == label).nonzero().flatten()
        kept = max(1, round(share * len(of_class)))
        rows.append(of_class[torch.randperm(len(of_class), generator=generator)[:kept].to(y.device)])
    return torch.cat(rows)


def thin(data: Dataset, most: int) -> Dataset:
    """Keep at most so many training rows and so many test rows, drawn at random; always the same rows."""
    for part in ("train", "test"):
        count = len(getattr(data, f"{part}_y"))
        if count > most:
            rows = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most]
            data = keep_rows(data, rows.sort().values, part)
    return data


def fingerprint(data: Dataset) -> str:
    """A hash of all values, or of the names and sizes of files: what changed under the same name are other data."""
    found = hashlib.sha256()
    for tensor in (data.train_x, data.train_y, data.test_x, data.test_y):
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.identity() if isinstance(tensor, ImageFiles) else tensor.contiguous().numpy().data)
    return found.hexdigest()[:16]
