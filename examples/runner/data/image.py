"""Images: the embedded digits, CIFAR, ImageNet where it lies, and any folder with one folder per class."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torchvision
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from runner.data.cifar_folder import find_cifar, load_cifar_folder
from runner.data.dataset import Dataset, keep_rows
from runner.data.files import IMAGENETS
from runner.data.image_folder import load_image_folder
from runner.errors import Refused

HUNDRED = 100
NAMED = ("digits", "cifar10", "cifar100", *IMAGENETS)


def load_image(
    name_or_path: str,
    *,
    root: str | Path | None = None,
    size: int | None = None,
    stream: bool | None = None,
    workers: int | None = None,
) -> Dataset:
    """Load ``digits``, ``cifar10`` or ``cifar100`` by name, ImageNet as a folder of that name, or a folder by path.

    Images of a folder are cut to a centred square and scaled to ``size`` pixels: by default the shorter side of
    the first image, 224 at most. Where there are more than fit into memory, or with ``stream``, they stay in their
    files, which ``workers`` processes read.
    """
    root = Path(root or "data")
    if name_or_path == "digits":
        return _digits()
    if name_or_path in ("cifar10", "cifar100"):
        return _cifar(name_or_path, root)
    if name_or_path in IMAGENETS:
        return _imagenet(name_or_path, root, stream is not False, workers)
    folder = Path(name_or_path)
    if not folder.is_dir():
        raise Refused(f"--data {name_or_path}: no such folder; wanted {', '.join(NAMED)} or a folder's path")
    if cifar := find_cifar(folder):
        return load_cifar_folder(*cifar)
    return load_image_folder(folder, size, stream=stream, workers=workers)


def _imagenet(name: str, root: Path, stream: bool, workers: int | None) -> Dataset:
    """Load ImageNet, or the hundred of its classes that the authors' code draws."""
    if name == "imagenet100" and (root / name).is_dir():
        return load_image_folder(root / name, 224, stream=stream, workers=workers)
    folder = root / "imagenet"
    if not folder.is_dir():
        raise Refused(f"{name}: cannot be downloaded; wanted train/CLASS/IMAGE and val/CLASS/IMAGE in {folder}")
    whole = load_image_folder(folder, 224, stream=stream, workers=workers)
    if name == "imagenet":
        return whole
    kept = sorted(random.Random(-1).sample(whole.classes, min(HUNDRED, len(whole.classes))))
    number = torch.tensor([kept.index(one) if one in kept else -1 for one in whole.classes])
    for part in ("train", "test"):
        whole = keep_rows(whole, (number[getattr(whole, f"{part}_y")] >= 0).nonzero().flatten(), part)
    return replace(whole, name=name, train_y=number[whole.train_y], test_y=number[whole.test_y], classes=kept)


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
