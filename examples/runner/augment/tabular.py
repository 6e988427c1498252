"""The paper's only augmentation for tables: input dropout."""

from __future__ import annotations

from collections.abc import Callable

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
