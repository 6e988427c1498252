"""Images that stay in their files and are read when they are needed, ahead of time and by processes of their own."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Rows

from runner.data.pixels import open_rgb
from runner.errors import Refused
from runner.state.place import let_go

IMAGENETS = ("imagenet", "imagenet100")
Change = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Stands in for a tensor (N, 3, size, size) of bytes: rows of it are read from their files.

    ``change`` brings an image to the size; without one, the middle is cut out, as usual for ImageNet. What it draws at
    random follows from ``seed`` and the number of the row.
    """

    paths: np.ndarray  # of bytes: a million objects would be copied into each worker
    size: int
    deep: tuple[float, float] | None = None
    workers: int = 0
    change: Change | None = None
    seed: int = 0

    device = torch.device("cpu")
    dtype = torch.uint8

    @classmethod
    def of(cls, paths: Sequence[Path], size: int, **options) -> ImageFiles:
        """Take these files."""
        return cls(np.array([os.fsencode(path) for path in paths]), size, **options)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> torch.Size:
        """As of the tensor."""
        return torch.Size([len(self), 3, self.size, self.size])

    def is_floating_point(self) -> bool:
        """As of the tensor."""
        return False

    def __getitem__(self, rows: Tensor) -> Tensor:
        if self.change is not None:  # threads share the generator that it draws from
            return torch.stack([self.read(row) for row in rows.tolist()])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return torch.stack(list(pool.map(self.read, rows.tolist())))

    def split(self, batch_size: int) -> Iterator[Tensor]:
        """Yield all images, some at a time."""
        batches = (rows.tolist() for rows in torch.arange(len(self)).split(batch_size))
        return read_ahead(self.read, batches, self.workers)

    def subset(self, rows: Tensor) -> ImageFiles:
        """Keep some rows."""
        return replace(self, paths=self.paths[rows.numpy()])

    def identity(self) -> bytes:
        """What tells these files from others: their names and sizes. To read them all would take too long."""
        names = [Path(os.fsdecode(path)) for path in self.paths]
        return repr([(*path.parts[-2:], path.stat().st_size) for path in names]).encode(errors="surrogateescape")

    def open(self, row: int) -> Image.Image:
        """Open one image, in colour."""
        return open_rgb(Path(os.fsdecode(self.paths[row])), self.deep)

    def read(self, row: int) -> Tensor:
        """Read one image, (3, size, size)."""
        if self.change is None:
            return to_pixels(middle(self.size)(self.open(row)))
        with drawing_from(self.seed, row):
            return to_pixels(self.change(self.open(row)))


@dataclass(frozen=True)
class TwoViews:
    """Reads two views (2, 3, size, size) of an image; what is drawn follows from seed, epoch and row alone.

    So it does not matter which worker reads it, or whether the run was killed in between.
    """

    files: ImageFiles
    change: Change
    seed: int

    def __call__(self, key: tuple[int, int]) -> Tensor:
        epoch, row = key
        image = self.files.open(row)
        with drawing_from(self.seed, epoch, row):
            return torch.stack([to_pixels(self.change(image)) for _ in range(2)])


def middle(size: int) -> Change:
    """Cut out the middle, seven eighths of the shorter side, and scale it to ``size``."""
    from torchvision.transforms import v2

    return v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)])


def simclr_views(size: int, *, colours: bool = True) -> Change:
    """MoCo v2's augmentation, the paper's for ImageNet: SimCLR's with weaker colours. Small images are not blurred.

    Without ``colours`` an image is cropped and mirrored, no more.
    """
    from torchvision.transforms import v2

    crop, mirror = v2.RandomResizedCrop(size, scale=(0.2, 1.0)), v2.RandomHorizontalFlip()
    if not colours:
        return v2.Compose([crop, mirror])
    blur = [v2.RandomApply([v2.GaussianBlur(kernel_size=23, sigma=(0.1, 2.0))], p=0.5)] if size > 64 else []
    return v2.Compose(
        [
            crop,
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            *blur,
            mirror,
        ]
    )


def crop_and_mirror(size: int) -> Change:
    """What the images are that ImageNet's linear probe is trained on."""
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()])


def to_pixels(image: Image.Image) -> Tensor:
    """An image as bytes (3, height, width)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


@contextlib.contextmanager
def drawing_from(*seeds: int) -> Iterator[None]:
    """Let torch draw on the CPU from a seed of its own while this lasts."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
        yield


def read_ahead(read: Callable[[Hashable], Tensor], batches: Iterable[list], workers: int) -> Iterator[Tensor]:
    """Yield what ``read`` makes of each batch of keys, stacked; ``workers`` processes are a few batches ahead."""
    loader = DataLoader(
        _Reading(read),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_stack,
        worker_init_fn=_step_aside,
        # A fork starts at once, and ends when the main process is killed; those of a fork server do neither.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or it would draw from the one of the run
    )
    for batch in loader:
        if isinstance(batch, str):
            raise Refused(batch)
        yield batch


def _step_aside(_worker: int) -> None:
    """Leave the group that a terminal or ``timeout`` signals: the main process hears it and ends the workers."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    let_go()


class _Reading(Rows):
    def __init__(self, read: Callable[[Hashable], Tensor]) -> None:
        self.read = read

    def __getitem__(self, key: Hashable) -> Tensor | str:
        try:
            return self.read(key)
        except Refused as refusal:  # as an exception it would bring along the traceback of the worker
            return str(refusal)


def _stack(rows: list[Tensor | str]) -> Tensor | str:
    return next((row for row in rows if isinstance(row, str)), None) or torch.stack(rows)
