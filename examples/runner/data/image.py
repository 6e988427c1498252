"""Images as whole uint8 tensors: the embedded digits, CIFAR, and any folder with one folder per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torchvision
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from runner.data.dataset import Dataset
from runner.data.image_folder import load_image_folder
from runner.errors import Refused

NAMED = ("digits", "cifar10", "cifar100")


def load_image(name_or_path: str, *, root: str | Path | None = None, size: int | None = None) -> Dataset:
    """Load ``digits``, ``cifar10`` or ``cifar100`` by name, or a folder by path.

    Images of a folder are cut to a centred square and scaled to ``size`` pixels: by default the shorter side of
    the first image, 224 at most.
    """
    if name_or_path == "digits":
        return _digits()
    if name_or_path in ("cifar10", "cifar100"):
        return _cifar(name_or_path, Path(root or "data"))
    folder = Path(name_or_path)
    if not folder.is_dir():
        raise Refused(f"--data {name_or_path}: no such folder; wanted digits, cifar10, cifar100 or a folder's path")
    return load_image_folder(folder, size, Path(root or "data"))


def _digits() -> Dataset:
    digits = load_digits()
    images = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8))[:, None]
    y = torch.from_numpy(digits.target)
    train, test = map(torch.from_numpy, train_test_split(np.arange(len(y)), test_size=0.2, random_state=0, stratify=y))
    return Dataset("digits", images[train], y[train], images[test], y[test], [str(d) for d in range(10)])


def _cifar(name: str, root: Path) -> Dataset:
    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    parts = []
    for train in (True, False):
        try:
            part = kind(str(root), train=train, download=True)
        except (OSError, RuntimeError, EOFError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise Refused(f"{name}: neither found in {root} nor downloaded there ({reason})") from error
        parts += [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)]
    return Dataset(name, *parts, part.classes)
