"""Numbers as a network of ordinary size can tell them apart: piecewise-linear encoding (Gorishniy et al., 2022)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor, nn

from runner.encoders import TabularMLP


class PiecewiseLinear(nn.Module):
    """Each number as how far it has come through each of ``bins`` bins, 0 before and 1 behind; other columns as is.

    The bins hold equally many of the ``rows``: a column of few values has fewer, and zeros for the rest, so that tables
    of the same columns have the same inputs. ``numbers`` are the places of the columns that hold numbers; all others
    are indicators of 0 or 1. What is mixed or corrupted before this module is encoded like any other number.
    """

    def __init__(self, rows: Tensor, numbers: Collection[int], bins: int) -> None:
        super().__init__()
        source, low, scale = [], [], []
        for column, values in enumerate(rows.cpu().numpy().T):
            if column in numbers:
                starts, scales = _bins(values.astype(np.float64), bins)
            else:
                starts, scales = np.zeros(1), np.ones(1)
            source.append(np.full(len(starts), column))
            low.append(starts)
            scale.append(scales)
        self.outputs = sum(map(len, source))
        self.register_buffer("source", torch.from_numpy(np.concatenate(source)))
        self.register_buffer("low", torch.from_numpy(np.concatenate(low).astype(np.float32)))
        self.register_buffer("scale", torch.from_numpy(np.concatenate(scale).astype(np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        return ((x[:, self.source] - self.low) * self.scale).clamp(0, 1)


def _bins(values: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))
    starts, scales = np.zeros(bins), np.zeros(bins)
    starts[: len(edges) - 1] = edges[:-1]
    scales[: len(edges) - 1] = 1 / np.diff(edges)
    return starts, scales


class EncodedMLP(TabularMLP):
    """The network over encoded columns, which it hands on beside its own features.

    What a linear classifier can read off the columns is then not lost on the way through the network.
    """

    def __init__(self, encode: PiecewiseLinear, width: int) -> None:
        super().__init__((encode.outputs,), width)
        self.encode = encode
        self.features += encode.outputs

    def forward(self, x: Tensor) -> Tensor:
        encoded = self.encode(x)
        return torch.cat([super().forward(encoded), encoded], dim=1)

    def learnt(self, x: Tensor) -> Tensor:
        """Its own features alone."""
        return super().forward(self.encode(x))
