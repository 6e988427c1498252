"""The soft cross-entropy in both directions of the same logits: each query over all keys, each key over all queries.

What stands here twice, for queries and for keys, stands in one tensor of 2N rows, the queries' first. Both directions
have their labels in the same entries of the logits, and so one sweep over these serves both.
"""

from typing import Any

import torch
from torch import Tensor

from imix_aug._cross_entropy import both_apart, both_at_once
from imix_aug._cross_entropy.blocked import product_dtype
from imix_aug._cross_entropy.columns import Positives
from imix_aug._cross_entropy.node import Node, Opaque
from imix_aug._cross_entropy.once_differentiable import once_differentiable, refuse_batched, refuse_forward_mode
from imix_aug._cross_entropy.operator import without_autocast


def cross_entropy_of_both(
    query: Tensor,
    key: Tensor,
    positives: Positives,
    *,
    ids: Tensor | None = None,
    dtype: torch.dtype,
    summed: bool = False,
    weight: Tensor | None = None,
    bounded: bool = False,
) -> Tensor:
    """Return for each i the mean of query i's cross-entropy over all keys and key i's over all queries.

    Args:
        query: ``(N, D)``, the temperature divided out already.
        key: ``(N, D)``.
        positives: of 2N rows: the keys that the labels of the queries are spread over, and the queries that those of
            the keys are, as ``Positives.of`` and ``Positives.of_keys`` give them.
        ids: ``(N,)`` integers: what has the same and is no positive is left out.
        dtype: what the matrix products take in; sums are kept in float32 or float64.
        summed: return the sum, whose gradients then come out of the forward pass.
        weight: ``(N,)``, constant, what query i and key i count in that sum; default one.
        bounded: no logit passes ``blocked.SAFE_LOGIT``, as the caller knows.

    Returns:
        ``(N,)``, or a 0-d tensor when ``summed``; float64 for float64 input, else float32.
    """
    refuse_forward_mode(query, key)
    if query.device.type == "cpu":
        dtype = product_dtype(dtype)
    grad = torch.is_grad_enabled()
    wants = grad and query.requires_grad, grad and key.requires_grad
    return _node(query, key, *positives, ids, weight, dtype, summed, *wants, bounded)


def _forward(
    query: Tensor,
    key: Tensor,
    columns: Tensor,
    shares: Tensor,
    ids: Tensor | None,
    weight: Tensor | None,
    dtype: torch.dtype,
    summed: bool,
    wants_query_grad: bool,
    wants_key_grad: bool,
    bounded: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    with without_autocast(query):
        weight = None if weight is None else weight.to(torch.promote_types(dtype, torch.float32))
        wants = summed and wants_query_grad, summed and wants_key_grad
        arguments = query.to(dtype), key.to(dtype), Positives(columns, shares), ids, weight, wants
        found = both_at_once.forward(*arguments) if query.device.type == "cpu" else None
        (losses, level, excess), logits, grads = found or both_apart.forward(*arguments, bounded)
        loss = losses.view(2, -1).mean(0)
        if summed:
            loss = loss.sum() if weight is None else torch.dot(loss, weight)
    query_grad, key_grad = (loss.new_empty(0) if each is None else each for each in grads)
    return loss, logits, level, excess, query_grad, key_grad


def _shapes(query: Tensor, key: Tensor, columns: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *_, dtype, summed, wants_query_grad, wants_key_grad, _bounded = rest
    per_row = query.new_empty(query.shape[0], dtype=torch.promote_types(dtype, torch.float32))
    return (
        per_row.new_empty(()) if summed else per_row,
        *(per_row.new_empty(shape) for shape in (columns.shape, columns.shape[:1], columns.shape)),
        per_row.new_empty(query.shape if summed and wants_query_grad else (0,)),
        per_row.new_empty(key.shape if summed and wants_key_grad else (0,)),
    )


def _sweep_again(
    query: Tensor,
    key: Tensor,
    columns: Tensor,
    ids: Tensor | None,
    level: Tensor,
    excess: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    wants_query_grad: bool,
    wants_key_grad: bool,
) -> tuple[Tensor, Tensor]:
    with without_autocast(query):
        arguments = (
            *(query.to(dtype), key.to(dtype), columns, ids, level, excess, weight),
            (wants_query_grad, wants_key_grad),
        )
        grads = both_at_once.gradients(*arguments) if query.device.type == "cpu" else None
        query_grad, key_grad = grads or both_apart.gradients(*arguments)
    return tuple(level.new_empty(0) if each is None else each for each in (query_grad, key_grad))  # type: ignore[return-value]


def _shapes_of_gradients(
    query: Tensor, key: Tensor, _columns: Tensor, _ids: Tensor | None, level: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    *_, wants_query_grad, wants_key_grad = rest
    return (
        level.new_empty(query.shape if wants_query_grad else (0,)),
        level.new_empty(key.shape if wants_key_grad else (0,)),
    )


_gradients_of_both = Opaque("imix_aug::gradients_of_both", _sweep_again, shapes=_shapes_of_gradients)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, columns, _, ids, weight, dtype, summed, *_wants = inputs
    _, logits, level, excess, query_grad, key_grad = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(
        *(query, key, columns, ids, weight, logits if ctx.needs_input_grad[3] else None),
        *(level, excess, query_grad, key_grad),
    )
    ctx.dtype, ctx.summed = dtype, summed


def _gradients(ctx: Any, grad: Tensor | None, *_none: object) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 11
    refuse_batched(grad)
    query, key, columns, ids, weight, logits, level, excess, query_grad, key_grad = ctx.saved_tensors
    needs_query, needs_key, _, needs_shares = ctx.needs_input_grad[:4]
    to_shares = None
    with torch.no_grad():
        by_row = grad.expand(len(query))
        if ctx.summed:
            to_query, to_key = query_grad * grad, key_grad * grad
            by_row = by_row if weight is None else by_row * weight
        else:
            to_query, to_key = _gradients_of_both(
                *(query, key, columns, ids, level, excess, by_row.contiguous(), ctx.dtype, needs_query, needs_key)
            )
        if needs_shares:
            to_shares = logits * (by_row / -2).repeat(2)[:, None]
    gradients = once_differentiable(
        (to_query if needs_query else None, to_key if needs_key else None, to_shares), query, key, grad
    )
    return (*gradients[:2], None, gradients[2], *(None,) * 7)


_node = Node("imix_aug::cross_entropy_of_both", _forward, shapes=_shapes, keep=_keep, gradients=_gradients)
