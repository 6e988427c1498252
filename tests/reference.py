"""The dense formula: short enough to be believed, and the oracle of every other implementation."""

import torch
from torch import Tensor


def row_logsumexp(
    query: Tensor, key: Tensor, negatives: Tensor | None = None, excluded: Tensor | None = None
) -> Tensor:
    """Log-sum-exp of each row of ``query @ cat([key, negatives]).T`` without its excluded columns, through autograd."""
    logits = query @ key.T
    if excluded is not None:
        logits = logits.scatter(1, excluded, float("-inf"))
    if negatives is not None:
        logits = torch.cat([logits, query @ negatives.T], dim=1)
    return logits.logsumexp(dim=1)
