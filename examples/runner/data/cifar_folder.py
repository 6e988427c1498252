"""CIFAR as its authors publish it, from a folder that is already there."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runner.data.dataset import Dataset
from runner.errors import Refused

# name: its folder, the files of training and test rows, the key of the labels, the file and the key of the class names
LAYOUTS = {
    "cifar10": (
        "cifar-10-batches-py",
        [f"data_batch_{i}" for i in range(1, 6)],
        ["test_batch"],
        "labels",
        ("batches.meta", "label_names"),
    ),
    "cifar100": ("cifar-100-python", ["train"], ["test"], "fine_labels", ("meta", "fine_label_names")),
}
# All that arrays, lists and strings in a pickle need; a file from elsewhere cannot run code.
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def find_cifar(folder: Path) -> tuple[str, Path] | None:
    """Which CIFAR lies in this folder, or is this folder, and where."""
    for name, (own, train, *_) in LAYOUTS.items():
        for place in (folder, folder / own):
            if (place / train[0]).is_file():
                return name, place
    return None


def load_cifar_folder(name: str, place: Path) -> Dataset:
    """Read the published files, whatever their checksum."""
    _, *splits, key, (names_file, names_key) = LAYOUTS[name]
    parts: list[torch.Tensor] = []
    for files in splits:
        batches = [_read(place / file) for file in files]
        try:
            pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
            parts += [torch.from_numpy(pixels), torch.tensor([label for batch in batches for label in batch[key]])]
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(f"{place / files[0]}: not a batch of {name} ({error})") from error
    return Dataset(name, *parts, list(_read(place / names_file)[names_key]))


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it wants {module}.{name}")
        return super().find_class(module, name)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return _Plain(file, encoding="latin1").load()
    except Exception as error:  # what unpickling raises depends on the bytes that it stumbles over
        raise Refused(f"{path}: not a readable file of CIFAR ({error})") from error
