"""Images as whole uint8 tensors: the embedded digits, CIFAR, and any folder with one folder a class."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from runner.data.dataset import Dataset
from runner.errors import Refused

NAMED = ("digits", "cifar10", "cifar100")


def load_image(name_or_path: str, *, root: str | Path | None = None, size: int | None = None) -> Dataset:
    """Load ``digits``, ``cifar10`` or ``cifar100`` by name, or a folder with ``train/`` and ``test/`` by path.

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
    return _folder(folder, size)


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


def _folder(folder: Path, size: int | None) -> Dataset:
    splits: dict[str, list[tuple[Path, int]]] = {}
    for split in ("train", "test"):
        if not (folder / split).is_dir():
            raise Refused(f"{folder}: no folder {split}/ in it; wanted train/CLASS/IMAGE and test/CLASS/IMAGE")
    classes = sorted(entry.name for entry in (folder / "train").iterdir() if entry.is_dir())
    if not classes:
        raise Refused(f"{folder / 'train'}: no folder in it; wanted one folder a class")
    unknown = {entry.name for entry in (folder / "test").iterdir() if entry.is_dir()} - set(classes)
    if unknown:
        raise Refused(f"{folder / 'test' / min(unknown)}: a class that train/ does not have")
    for split in ("train", "test"):
        splits[split] = []
        for label, name in enumerate(classes):
            paths = sorted(p for p in (folder / split / name).rglob("*") if p.suffix.lower() in IMG_EXTENSIONS)
            if not paths and split == "train":
                raise Refused(f"{folder / split / name}: no image in it")
            splits[split] += [(path, label) for path in paths]
        if not splits[split]:
            raise Refused(f"{folder / split}: no image in it")
    if size is None:
        size = min(*_read(splits["train"][0][0]).size, 224)
    tensors = [tensor for split in splits.values() for tensor in _stack(split, size)]
    return Dataset(folder.resolve().name, *tensors, classes)


def _stack(files: list[tuple[Path, int]], size: int) -> tuple[Tensor, Tensor]:
    def load(file: tuple[Path, int]) -> Tensor:
        image = ImageOps.fit(_read(file[0]), (size, size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        images = torch.stack(list(pool.map(load, files)))
    return images, torch.tensor([label for _, label in files])


def _read(path: Path) -> Image.Image:
    try:
        return Image.open(path).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise Refused(f"{path}: not an image that can be read ({error})".replace("\n", " ")) from error
