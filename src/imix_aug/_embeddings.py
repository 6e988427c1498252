"""Embeddings on their way into a loss: their dtypes, and unit length."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from imix_aug._values import readable


def product_dtype(autocast: torch.dtype | None, *embeddings: Tensor) -> torch.dtype:
    """Return the dtype of the matrix products: autocast's where it is on, else the widest of the embeddings'."""
    widest = embeddings[0].dtype
    for each in embeddings[1:]:
        widest = torch.promote_types(widest, each.dtype)
    if autocast is None or widest == torch.float64:  # which autocast leaves alone
        return widest
    return autocast


def prepared(embeddings: Tensor, normalize: bool) -> Tensor:
    """Return the embeddings in the dtype of all sums, and at unit length if wanted."""
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    return unit_rows(embeddings) if normalize else embeddings


def unit_rows(embeddings: Tensor, eps: float = 1e-12) -> Tensor:
    """Divide each row by its length, or by ``eps`` where that is greater; squares may overflow no row."""
    if readable(embeddings):  # where a look at a value costs nothing
        lengths = torch.linalg.vector_norm(embeddings, dim=-1, keepdim=True)
        if lengths.sum().item() < math.inf:
            return torch.div(embeddings, lengths.clamp_min(eps))
    largest = embeddings.detach().abs().amax(dim=-1, keepdim=True).clamp_min(1)
    shrunk = embeddings / largest
    return torch.div(shrunk, torch.linalg.vector_norm(shrunk, dim=-1, keepdim=True).clamp_min(eps / largest))
