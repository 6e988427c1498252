"""The one primitive under all contrastive losses: a soft cross-entropy over many keys that never stores the logits.

A row's label is spread over a few columns, its positives. All other columns meet the row in one sweep, which yields
their log-sum-exp and their softmax-weighted mean, as attention would; positives and sweep are then brought together on
(N, P) numbers (``positives.py``). A second sweep, over the queries, yields the gradient in the keys.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from imix_aug._backend import runs_triton
from imix_aug._cross_entropy import blocked
from imix_aug._cross_entropy.columns import NOTHING, LeftOut, Positives
from imix_aug._cross_entropy.node import Node, Opaque
from imix_aug._cross_entropy.once_differentiable import once_differentiable, refuse_batched, refuse_forward_mode
from imix_aug._cross_entropy.positives import settle
from imix_aug._cross_entropy.sweeps import key_gradient, sweep_keys


def soft_cross_entropy(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    positives: Positives,
    *,
    left_out: LeftOut = NOTHING,
    further: Tensor | None = None,
    dtype: torch.dtype,
    summed: bool = False,
    weight: Tensor | None = None,
    bounded: bool = False,
    ring: str = "",
) -> Tensor:
    """Return the cross-entropy of each row's soft label and the softmax of its logits ``<query_i, key_j>``.

    Args:
        query: ``(N, D)``, the temperature divided out already.
        key: ``(M, D)``.
        negatives: ``(K, D)``, more keys, which hold no positive.
        positives: the columns of ``key`` that the labels are spread over.
        left_out: columns that a row leaves out; its positives stay.
        further: ``(N,)``, the log-sum-exp of more columns of each row's own.
        dtype: what the matrix products take in; sums are kept in float32 or float64.
        summed: return the sum of the rows, whose gradient in the keys then comes out of the forward pass.
        weight: ``(N,)``, constant, what the rows count in that sum; default one.
        bounded: no logit passes ``blocked.SAFE_LOGIT``, as the caller knows.
        ring: the name of a process group, between whose ranks the keys of each are passed round.

    Returns:
        ``(N,)``, or a 0-d tensor when ``summed``; float64 for float64 input, else float32.
    """
    refuse_forward_mode(query, key, negatives, further)
    if query.device.type == "cpu":
        dtype = blocked.product_dtype(dtype)
    grad = torch.is_grad_enabled()
    wants_query_grad, wants_key_grad = grad and query.requires_grad, grad and key.requires_grad
    arguments = (
        *(query, key, negatives),
        *(positives.columns, positives.shares, *left_out, further, weight),
        *(dtype, summed, wants_query_grad, wants_key_grad, bounded, ring),
    )
    return _node(*arguments)


def without_autocast(rows: Tensor) -> AbstractContextManager[object]:
    """Keep autocast out of the products, whose dtype is chosen."""
    kind = rows.device.type
    return nullcontext() if autocast_dtype(kind) is None else torch.autocast(kind, enabled=False)


def autocast_dtype(device: str) -> torch.dtype | None:
    """Return what autocast computes matrix products in on this kind of device; None where it is off."""
    try:
        enabled = torch.is_autocast_enabled(device)
    except RuntimeError:  # a kind of device that knows no autocast, as MPS in torch 2.4
        return None
    return torch.get_autocast_dtype(device) if enabled else None


def _forward(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    columns: Tensor,
    shares: Tensor,
    left_out: Tensor | None,
    row_ids: Tensor | None,
    key_ids: Tensor | None,
    negative_ids: Tensor | None,
    further: Tensor | None,
    weight: Tensor | None,
    dtype: torch.dtype,
    summed: bool,
    wants_query_grad: bool,
    wants_key_grad: bool,
    bounded: bool,
    ring: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    with without_autocast(query):
        query, key = query.to(dtype), key.to(dtype)
        negatives = None if negatives is None else negatives.to(dtype)
        positives, without = Positives(columns, shares), LeftOut(left_out, row_ids, key_ids, negative_ids)
        key_grad_too = _comes_with_forward(summed, ring) and wants_key_grad
        if ring or runs_triton(query.device):
            rest, mean = _sweep_keys(
                query, key, negatives, without.and_columns(columns), wants_query_grad, bounded, ring
            )
            found = settle(query, key, positives, rest, mean, further)
            key_grad = None
            if key_grad_too:
                weights = torch.ones_like(found.level) if weight is None else weight
                key_grad = key_gradient(query, key, columns, without, found.level, found.excess, weights)
        else:
            found, key_grad = blocked.forward(
                query, key, negatives, positives, without, further, weight, wants_query_grad, key_grad_too
            )
        loss, query_grad = found.loss, found.query_grad
        if summed:
            if weight is not None:
                loss = loss * weight
                query_grad = None if query_grad is None else query_grad * weight[:, None]
            loss = loss.sum()
    query_grad, key_grad = (loss.new_empty(0) if each is None else each for each in (query_grad, key_grad))
    return loss, found.logits, found.level, found.excess, query_grad, key_grad


def _sweep_keys(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    left_out: LeftOut,
    wants_mean: bool,
    bounded: bool,
    ring: str,
) -> tuple[Tensor, Tensor | None]:
    if not ring:
        return sweep_keys(query, key, negatives, left_out, wants_mean, bounded)
    from imix_aug._cross_entropy.ring import sweep_keys as ring_sweep_keys

    return ring_sweep_keys(query, key, negatives, left_out, wants_mean, bounded, ring)


def _comes_with_forward(summed: bool, ring: str) -> bool:
    """Say whether the gradient in the keys comes out of the forward pass: the rows' weights are known, and the keys."""
    return summed and not ring


def _shapes(query: Tensor, key: Tensor, _negatives: Tensor | None, columns: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *_, dtype, summed, wants_query_grad, wants_key_grad, _bounded, ring = rest
    per_row = query.new_empty(query.shape[0], dtype=torch.promote_types(dtype, torch.float32))
    return (
        per_row.new_empty(()) if summed else per_row,
        *(per_row.new_empty(columns.shape), torch.empty_like(per_row), per_row.new_empty(columns.shape)),
        per_row.new_empty(query.shape if wants_query_grad else (0,)),
        per_row.new_empty(key.shape if _comes_with_forward(summed, ring) and wants_key_grad else (0,)),
    )


def _key_grad(
    query: Tensor,
    key: Tensor,
    columns: Tensor,
    left_out: Tensor | None,
    row_ids: Tensor | None,
    key_ids: Tensor | None,
    level: Tensor,
    excess: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    ring: str,
) -> Tensor:
    with without_autocast(query):
        without = LeftOut(left_out, row_ids, key_ids)
        arguments = (query.to(dtype), key.to(dtype), columns, without, level, excess, weight)
        if not ring:
            return key_gradient(*arguments)
        from imix_aug._cross_entropy.ring import key_gradient as ring_key_gradient

        return ring_key_gradient(*arguments, ring)


def _shape_of_key_grad(_query: Tensor, key: Tensor, *rest: Any) -> Tensor:
    *_, level, _excess, _weight, _dtype, _ring = rest
    return level.new_empty(key.shape)


_key_gradient = Opaque("imix_aug::soft_cross_entropy_key_grad", _key_grad, shapes=_shape_of_key_grad)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, negatives, columns, _, *left_out, further, weight, dtype, summed, _, _, _, ring = inputs
    _, logits, level, excess, query_grad, key_grad = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(
        *(query, key, negatives if ctx.needs_input_grad[2] else None, logits if ctx.needs_input_grad[4] else None),
        *(columns, *left_out, further, weight, level, excess, query_grad, key_grad),
    )
    ctx.dtype, ctx.summed, ctx.ring = dtype, summed, ring


def _gradients(ctx: Any, grad: Tensor | None, *_none: object) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 17
    refuse_batched(grad)
    query, key, negatives, logits, columns, *saved = ctx.saved_tensors
    left_out, row_ids, key_ids, negative_ids, further, weight, level, excess, query_grad, key_grad = saved
    needs_query, needs_key, needs_negatives, _, needs_shares, *_, needs_further = ctx.needs_input_grad[:10]
    to_query = to_key = to_negatives = to_shares = to_further = None
    with torch.no_grad():
        by_row = grad.expand_as(level)
        if ctx.summed and weight is not None:
            by_row = by_row * weight
        by_row = by_row.contiguous()
        if needs_query:
            to_query = query_grad * (grad if ctx.summed else grad[:, None])
        if needs_key and _comes_with_forward(ctx.summed, ctx.ring):
            to_key = key_grad * grad
        elif needs_key:
            to_key = _key_gradient(
                *(query, key, columns, left_out, row_ids, key_ids, level, excess, by_row, ctx.dtype, ctx.ring)
            )
        if needs_negatives:
            no_columns, no_excess = columns[:, :0], excess[:, :0]
            to_negatives = _key_gradient(
                *(query, negatives, no_columns, None, row_ids, negative_ids, level, no_excess, by_row, ctx.dtype, "")
            )
        if needs_shares:
            to_shares = -logits * by_row[:, None]
        if needs_further:
            to_further = torch.exp(further - level) * by_row
    gradients = once_differentiable((to_query, to_key, to_negatives, to_shares, to_further), query, key, grad)
    return (*gradients[:3], None, gradients[3], *(None,) * 4, gradients[4], *(None,) * 7)


_node = Node("imix_aug::soft_cross_entropy", _forward, shapes=_shapes, keep=_keep, gradients=_gradients)
