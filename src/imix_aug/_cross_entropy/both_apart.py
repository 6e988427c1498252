"""Both directions, each by itself: two sweeps for the sums and two for the gradients, six matrix products in all."""

from __future__ import annotations

import torch
from torch import Tensor

from imix_aug._cross_entropy.columns import LeftOut, Positives
from imix_aug._cross_entropy.positives import Balance, add_key_grad, add_query_grad, balance, dots, excess_of_both
from imix_aug._cross_entropy.sweeps import sweep_keys, sweep_queries


def forward(
    query: Tensor,
    key: Tensor,
    positives: Positives,
    ids: Tensor | None,
    weight: Tensor | None,
    wants: tuple[bool, bool],
    bounded: bool = False,
) -> tuple[Balance, Tensor, tuple[Tensor | None, Tensor | None]]:
    """Do as ``both_at_once.forward`` does, whatever the logits."""
    by_row, by_column = _left_out(positives.columns, ids)
    rest = [
        sweep_keys(rows, columns, None, left_out, False, bounded)[0]
        for rows, columns, left_out in ((query, key, by_row), (key, query, by_column))
    ]
    logits = dots(query, key, positives.columns[: len(query)])
    logits = torch.cat([logits, logits.gather(0, positives.columns[len(query) :])])
    found = balance(torch.cat(rest), logits, positives)
    if not any(wants):
        return found, logits, (None, None)
    weight = torch.ones_like(found.level[: len(query)]) if weight is None else weight
    return found, logits, gradients(query, key, positives.columns, ids, found.level, found.excess, weight, wants)


def gradients(
    query: Tensor,
    key: Tensor,
    columns: Tensor,
    ids: Tensor | None,
    level: Tensor,
    excess: Tensor,
    weight: Tensor,
    wants: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Do as ``both_at_once.gradients`` does, whatever the levels."""
    n, half = len(query), weight / 2
    by_row, by_column = _left_out(columns, ids)
    down, up = level.chunk(2)
    at_positives = excess_of_both(columns[:n], excess * half.repeat(2)[:, None])
    query_grad = key_grad = None
    if wants[0]:
        query_grad = sweep_queries(key, query, by_column, up, half, down)
        add_query_grad(query_grad, key, columns[:n], at_positives)
    if wants[1]:
        key_grad = sweep_queries(query, key, by_row, down, half, up)
        add_key_grad(key_grad, query, columns[:n], at_positives)
    return query_grad, key_grad


def _left_out(columns: Tensor, ids: Tensor | None) -> tuple[LeftOut, LeftOut]:
    """Return what the sweeps pass by, in rows and in columns: positives, and what has the same id."""
    by_row, by_column = (LeftOut(each, ids, ids) for each in columns.chunk(2))
    return by_row, by_column
