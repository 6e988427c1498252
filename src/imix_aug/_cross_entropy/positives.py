"""A row's few positive columns: kept out of the sweep over all others, and brought together with it exactly.

For row i with logits s_ij and a soft label that gives share v_p to column p, the loss is

    sum_p v_p log(1 + exp(o_p - s_p)),    o_p = log of the sum of exp(s_j) over all columns j but p,

and its gradient in a logit is softmax minus label. Both are differences of nearly equal numbers once a sample is told
apart from the others. Here they are written so that nothing cancels: the loss is a sum of terms that are never
negative, and a positive column's gradient is ``(1 - v) p - v (1 - p)`` with ``1 - p`` from the other columns' sum.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from imix_aug._cross_entropy.columns import Positives


class Balance(NamedTuple):
    """What a row's positives and all its other columns come to together.

    Attributes:
        loss: ``(N,)``, never negative.
        level: ``(N,)``, the log-sum-exp over all columns.
        excess: ``(N, P)``, softmax minus label in the positive columns; zero where a column stands for none.
    """

    loss: Tensor
    level: Tensor
    excess: Tensor


class Found(NamedTuple):
    """What a forward pass leaves behind.

    Attributes:
        loss: ``(N,)``, the cross-entropies.
        logits: ``(N, P)``, those of the positive columns.
        level: ``(N,)``, the log-sum-exp over all columns.
        excess: ``(N, P)``, softmax minus label in the positive columns.
        query_grad: ``(N, D)``, the loss's gradient in each query row, or None.
    """

    loss: Tensor
    logits: Tensor
    level: Tensor
    excess: Tensor
    query_grad: Tensor | None


def balance(rest: Tensor, logits: Tensor, positives: Positives) -> Balance:
    """Weigh positives against the rest.

    Args:
        rest: ``(N,)``, the log-sum-exp over all columns that are not positive; minus infinity without any.
        logits: ``(N, P)``, those of the positive columns.
        positives: which they are.
    """
    columns, shares = positives
    if columns.shape[1] == 1:
        # As a pair whose second column stands for none: a lambda of one is then no mixing to the last bit, for the
        # same functions run over tensors of the same shape.
        pair = Positives(columns.expand(-1, 2), F.pad(shares, (0, 1)))
        loss, level, excess = balance(rest, logits.expand(-1, 2), pair)
        return Balance(loss, level, excess[:, :1].clone())
    present = columns != columns[:, :1]
    present[:, 0] = True
    known = torch.where(present, logits, -torch.inf).unbind(1)
    sums = []
    for left_out in range(len(known)):
        total = rest
        for place, each in enumerate(known):
            if place != left_out:
                total = torch.logaddexp(total, each)
        sums.append(total)
    but_one = torch.stack(sums, 1)
    zero = logits.new_zeros(())
    losses = torch.logaddexp(but_one - logits, zero)
    level = logits[:, 0] + losses[:, 0]
    softmax = torch.exp(logits - level[:, None])
    remainder = torch.exp(but_one - level[:, None])
    excess = torch.where(present, (1 - shares) * softmax - shares * remainder, zero)
    return Balance(torch.where(shares == 0, zero, shares * losses).sum(1), level, excess)


def settle(
    query: Tensor, key: Tensor, positives: Positives, rest: Tensor, mean: Tensor | None, further: Tensor | None
) -> Found:
    """Bring a sweep over all other columns together with the positives.

    Args:
        query: ``(N, D)``.
        key: ``(M, D)``, those that the positives are among.
        positives: the columns of ``key`` that the labels are spread over.
        rest: ``(N,)``, the other columns' log-sum-exp.
        mean: ``(N, D)``, the other columns' softmax-weighted mean, or None.
        further: ``(N,)``, the log-sum-exp of still more columns, or None.
    """
    logits = dots(query, key, positives.columns)
    loss, level, excess = balance(rest if further is None else torch.logaddexp(rest, further), logits, positives)
    if mean is not None:
        mean = add_query_grad(mean * torch.exp(rest - level)[:, None], key, positives.columns, excess)
    return Found(loss, logits, level, excess, mean)


def dots(query: Tensor, key: Tensor, columns: Tensor) -> Tensor:
    """Return ``<query_i, key_column(i, p)>``, ``(N, P)``, summed in float32 at least whatever the rows' dtype."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    query = query.to(dtype)
    return torch.stack([(query * key[column].to(dtype)).sum(1) for column in columns.unbind(1)], 1)


def add_query_grad(grad: Tensor, key: Tensor, columns: Tensor, excess: Tensor) -> Tensor:
    """Add ``sum_p excess_ip key_column(i, p)`` to row i, in place."""
    for column, weight in zip(columns.unbind(1), excess.unbind(1), strict=True):
        grad.addcmul_(key[column].to(grad.dtype), weight[:, None])
    return grad


def add_key_grad(grad: Tensor, query: Tensor, columns: Tensor, excess: Tensor) -> Tensor:
    """Add ``excess_ip query_i`` to row ``column(i, p)``, for each i and p, in place."""
    for column, weight in zip(columns.unbind(1), excess.unbind(1), strict=True):
        grad.index_add_(0, column, query.to(grad.dtype) * weight[:, None])
    return grad


def excess_of_both(columns: Tensor, excess: Tensor) -> Tensor:
    """Add up what rows and columns have in the entries of the logits that hold the labels of both.

    Args:
        columns: ``(N, P)``, those of the rows' labels.
        excess: ``(2N, P)``, the rows', and the columns' in the same entries, as ``Positives.of_keys`` orders them.

    Returns:
        ``(N, P)``, as the rows order them.
    """
    by_row, by_column = excess.chunk(2)
    by_column = by_column.gather(0, columns)
    by_column[:, 1:].masked_fill_(columns[:, 1:] == columns[:, :1], 0)  # a column that stands for none
    return by_row + by_column
