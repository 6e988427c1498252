"""Where the two views of each batch come from: rows on their device, or files that are read ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from runner.data.dataset import take
from runner.data.files import ImageFiles, TwoViews, read_ahead
from runner.domain import Task
from runner.steps import Steps


def feed(task: Task, x: Tensor | ImageFiles, steps: Steps) -> Callable[[Tensor], Tensor]:
    """Return what makes both views of the next batch of ``steps``, one after the other, out of its row numbers."""
    if isinstance(x, ImageFiles):
        ahead = read_ahead(TwoViews(x, task.changed, steps.experiment.seed), _keys(steps), x.workers)

        def read(_: Tensor) -> Tensor:
            pixels = next(ahead).to(steps.device, non_blocking=True)  # (batch, 2, 3, size, size)
            return task.to_input(pixels.transpose(0, 1).flatten(0, 1))

        return read

    def augment(rows: Tensor) -> Tensor:
        some = take(x, rows).to(steps.device)
        return torch.cat([task.augmented(some) for _ in range(2)])

    return augment


def _keys(steps: Steps) -> Iterator[list[tuple[int, int]]]:
    for epoch, rows in steps.ahead():
        yield [(epoch, row) for row in rows.tolist()]
