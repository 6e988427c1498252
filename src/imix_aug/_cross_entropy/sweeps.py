"""The two sweeps over tiles of logits, by the way that serves the device."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from imix_aug._backend import with_kernels
from imix_aug._cross_entropy import blocked
from imix_aug._cross_entropy.columns import LeftOut
from imix_aug._cross_entropy.positives import add_key_grad


def sweep_keys(
    query: Tensor, key: Tensor, negatives: Tensor | None, left_out: LeftOut, wants_mean: bool, bounded: bool
) -> tuple[Tensor, Tensor | None]:
    """Return each row's log-sum-exp over all columns that it does not leave out, and its softmax-weighted mean key.

    ``bounded`` says that no logit passes ``blocked.SAFE_LOGIT``.
    """
    arguments = (query, key, negatives, left_out, wants_mean)
    return with_kernels(
        query.device, lambda: _kernels().sweep_keys(*arguments, bounded), lambda: blocked.sweep_keys(*arguments)
    )


def sweep_queries(
    query: Tensor, key: Tensor, left_out: LeftOut, level: Tensor, weight: Tensor, key_level: Tensor | None = None
) -> Tensor:
    """Return ``sum_i weight_i exp(s_ij - level_i) query_i`` for each key j, over the rows that do not leave it out.

    With ``key_level``, as many keys as queries have weights and levels too: the factor is
    ``weight_i exp(s_ij - level_i) + weight_j exp(s_ij - key_level_j)``.
    """
    arguments = (query, key, left_out, level, weight, key_level)
    return with_kernels(
        query.device, lambda: _kernels().sweep_queries(*arguments), lambda: blocked.sweep_queries(*arguments)
    )


def _kernels() -> Any:
    """Import the kernels where they are wanted: they need Triton."""
    from imix_aug._cross_entropy import triton

    return triton


def key_gradient(
    query: Tensor, key: Tensor, columns: Tensor, left_out: LeftOut, level: Tensor, excess: Tensor, weight: Tensor
) -> Tensor:
    """Return ``sum_i weight_i (softmax_ij - label_ij) query_i`` for each key j.

    Args:
        query: ``(N, D)``.
        key: ``(M, D)``.
        columns: ``(N, P)``, those of the positives.
        left_out: columns that a row leaves out.
        level: ``(N,)``, the log-sum-exp over all columns.
        excess: ``(N, P)``, softmax minus label in the positive columns.
        weight: ``(N,)``.
    """
    grad = sweep_queries(query, key, left_out.and_columns(columns), level, weight)
    return add_key_grad(grad, query, columns, excess * weight[:, None])
