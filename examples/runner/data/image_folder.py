"""Images that lie in a folder for each class, already divided or not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from runner.data.dataset import Dataset
from runner.data.files import ImageFiles
from runner.data.memory import fits
from runner.data.pixels import open_image, range_of_deep, read_all
from runner.data.split import split_rows
from runner.errors import Refused
from runner.ranks import world_size

WANTED = "wanted train/CLASS/IMAGE and test/CLASS/IMAGE, or CLASS/IMAGE"
TEST = ("test", "val", "valid", "validation")
LOOKED_AT = 1000  # of the images that are streamed, for their depth
NO_CLASS = {"__MACOSX", "@eaDir"}  # what other systems leave behind


def load_image_folder(
    folder: Path, size: int | None, *, stream: bool | None = None, workers: int | None = None
) -> Dataset:
    """Read a folder; where ``size`` is None, images get the shorter side of the first, 224 pixels at most.

    To ``stream`` is to leave the images in their files, and to have them read by as many ``workers`` when they are
    needed; by default where they would take more than half of the memory, and by one worker per processor.
    """
    notes: list[str] = []
    train, test, classes = _divided(folder, notes)
    paths = [path for path, _ in (*train, *test)]
    if size is None:
        size = min(*open_image(paths[0]).size, 224)
    if stream is None and not fits(len(paths) * 3 * size * size, torch.device("cpu")):
        stream = True
        notes.append("more than half of the free memory, so the images are streamed from their files")
    deep = range_of_deep(paths[:: -(-len(paths) // LOOKED_AT)] if stream else paths)
    if deep is not None:
        notes.append(f"images of more than 8 bits, scaled from {deep[0]:g} .. {deep[1]:g} to 0 .. 255")
    labels, n = torch.tensor([label for _, label in (*train, *test)]), len(train)
    if stream:
        workers = max((os.cpu_count() or 1) // world_size(), 1) if workers is None else workers
        images = ImageFiles.of(paths, size, deep=deep, workers=workers)
        train_x, test_x = images.subset(torch.arange(n)), images.subset(torch.arange(n, len(paths)))
    else:
        pixels = read_all(paths, size, deep)
        train_x, test_x = pixels[:n], pixels[n:]
    return Dataset(folder.resolve().name, train_x, labels[:n], test_x, labels[n:], classes, notes=tuple(notes))


Files = list[tuple[Path, int]]


def _divided(folder: Path, notes: list[str]) -> tuple[Files, Files, list[str]]:
    train = folder / "train"
    test = next((folder / name for name in TEST if (folder / name).is_dir()), None)
    if not train.is_dir():
        if test is not None:
            raise Refused(f"{folder}: {test.name}/ without train/; {WANTED}")
        train = folder
    classes = [entry.name for entry in _visible(train) if entry.is_dir()]
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "none"
        raise Refused(f"{train}: wanted a folder for each of two classes or more, found {found}; {WANTED}")
    files = _list(train, classes, may_be_empty=False)
    if test is None:
        missing = "no train/ and test/ in it" if train == folder else "no test/ in it"
        notes.append(f"{missing}: four fifths of the images of each class train, one fifth tests")
        rows = split_rows(folder.name, np.array([label for _, label in files]))
        return *([files[row] for row in part] for part in rows), classes
    if test.name != "test":
        notes.append(f"no test/ in it: {test.name}/ tests")
    if unknown := {entry.name for entry in _visible(test) if entry.is_dir()} - set(classes):
        raise Refused(f"{test / min(unknown)}: a class that train/ does not have")
    tested = _list(test, classes, may_be_empty=True)
    if not tested:
        raise Refused(f"{test}: no image in it")
    return files, tested, classes


def _list(folder: Path, classes: list[str], *, may_be_empty: bool) -> Files:
    files: Files = []
    for label, name in enumerate(classes):
        of_class = _images(folder / name)
        if not of_class and not may_be_empty:
            raise Refused(f"{folder / name}: no image in it")
        files += [(path, label) for path in of_class]
    return files


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found: list[Path] = []
    for entry in _visible(folder):
        if entry.is_dir():
            found += _images(entry)
        elif entry.suffix.lower() in IMG_EXTENSIONS:
            found.append(entry)
    return found


def _visible(folder: Path) -> list[Path]:
    return sorted(e for e in folder.iterdir() if not e.name.startswith(".") and e.name not in NO_CLASS)
