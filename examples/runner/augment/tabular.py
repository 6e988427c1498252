"""Augmentations for tables: input dropout, the paper's only one, and SCARF's corruption."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def input_dropout(rate: float, columns: int | None = None) -> Callable[..., Tensor]:
    """Set each value of a row, or of its first ``columns``, to zero with probability ``rate``.

    In Covertype the paper spares the 44 indicators.
    """

    def augment(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        keep = torch.rand(x.shape, device=x.device, generator=generator) >= rate
        if columns is not None:
            keep[:, columns:] = True
        return x * keep

    return augment


def scarf_corruption(share: float, parts: Sequence[int]) -> Callable[..., Tensor]:
    """Give each row, in a random share of its columns, the values that other rows of the batch have there.

    ``parts`` are the widths of the table's columns as the network sees them: what encodes one column (a category, a
    number and whether it is missing) is replaced as one. SCARF (Bahri et al., ICLR 2022) draws from all training rows
    and corrupts one view; here both views are corrupted.
    """
    count = max(1, int(share * len(parts)))
    part_of = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor(parts))

    def augment(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        shape, column = (len(x), len(parts)), part_of.to(x.device)
        order = torch.rand(shape, device=x.device, generator=generator).argsort(1).argsort(1)
        donor = torch.randint(len(x), shape, device=x.device, generator=generator)
        return torch.where(order[:, column] < count, x.gather(0, donor[:, column]), x)

    return augment
