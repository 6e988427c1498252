"""The primitive as a dense formula in float64, through autograd: short enough to be believed."""

import torch
from torch.nn import functional as F


def logits_of(query, key, negatives=None, left_out=None):
    """All logits of each row, minus infinity in the columns that it leaves out."""
    columns, row_ids, key_ids, negative_ids = (None,) * 4 if left_out is None else left_out
    logits = query @ key.T
    if row_ids is not None and key_ids is not None:
        logits = logits.masked_fill(row_ids[:, None] == key_ids, -torch.inf)
    if columns is not None:
        logits = logits.scatter(1, columns, -torch.inf)
    if negatives is not None:
        more = query @ negatives.T
        if row_ids is not None and negative_ids is not None:
            more = more.masked_fill(row_ids[:, None] == negative_ids, -torch.inf)
        logits = torch.cat([logits, more], dim=1)
    return logits


def row_logsumexp(query, key, negatives=None, left_out=None):
    return logits_of(query, key, negatives, left_out).logsumexp(dim=1)


def soft_cross_entropy(query, key, negatives, positives, left_out=None, further=None):
    """Minus the label's mean of the log softmax; a row's positives are there even if it leaves their columns out."""
    columns, shares = positives
    logits = logits_of(query, key, negatives, left_out)
    is_positive = torch.zeros(logits.shape, dtype=torch.bool).scatter(1, columns, True)
    logits = torch.where(is_positive, F.pad(query @ key.T, (0, logits.shape[1] - len(key))), logits)
    if further is not None:
        logits = torch.cat([logits, further[:, None]], dim=1)
    return -(shares * logits.log_softmax(dim=1).gather(1, columns)).sum(1)
