"""The other primitive: a row's sum of ``log(1 + exp(logit))`` over many keys, for losses that ask of each pair alone.

Sums over columns are all that it keeps: the logits are made tile by tile, in plain torch on every device, and made
again on the way back. ``LeftOut`` says which columns a row does not count, its positives among them: those are few, and
are weighed apart, where nothing cancels.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from imix_aug._cross_entropy import blocked
from imix_aug._cross_entropy.columns import LeftOut
from imix_aug._cross_entropy.node import Node, Opaque
from imix_aug._cross_entropy.once_differentiable import once_differentiable, refuse_batched, refuse_forward_mode
from imix_aug._cross_entropy.operator import without_autocast
from imix_aug._cross_entropy.products import add_transposed_times, times_transposed


def softplus(logits: Tensor) -> Tensor:
    """Return ``log(1 + exp(logits))`` to the last digit of float64."""
    return F.softplus(logits, threshold=40)


def softplus_sums(query: Tensor, key: Tensor, bias: Tensor, left_out: LeftOut, dtype: torch.dtype) -> Tensor:
    """Return each row's sum of ``log(1 + exp(<query_i, key_j> + bias))`` over the keys that it does not leave out.

    Args:
        query: ``(N, D)``, the temperature divided out already.
        key: ``(M, D)``.
        bias: a 0-d tensor in the dtype of sums.
        left_out: columns that a row leaves out.
        dtype: what the matrix products take in; sums are kept in float32 or float64.

    Returns:
        ``(N,)``, float64 for float64 input, else float32.
    """
    refuse_forward_mode(query, key, bias)
    if query.device.type == "cpu":
        dtype = blocked.product_dtype(dtype)
    if dtype == torch.float16:  # where the logistic function of a usual bias, -10, has lost its digits
        dtype = torch.float32
    return _node(query, key, bias, left_out.columns, left_out.row_ids, left_out.key_ids, dtype)


def _forward(
    query: Tensor,
    key: Tensor,
    bias: Tensor,
    columns: Tensor | None,
    row_ids: Tensor | None,
    key_ids: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    with without_autocast(query):
        tiles = blocked.Tiles(query.to(dtype), key.to(dtype), None, LeftOut(columns, row_ids, key_ids))
        return torch.cat([softplus(_logits(tiles, part, bias)).sum(dim=1) for part in tiles.parts()])


def _gradients(
    query: Tensor,
    key: Tensor,
    bias: Tensor,
    columns: Tensor | None,
    row_ids: Tensor | None,
    key_ids: Tensor | None,
    grad: Tensor,
    dtype: torch.dtype,
    wants_query_grad: bool,
    wants_key_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    with without_autocast(query):
        tiles = blocked.Tiles(query.to(dtype), key.to(dtype), None, LeftOut(columns, row_ids, key_ids))
        bias_grad = torch.zeros_like(bias)
        query_grad = query.new_empty(query.shape if wants_query_grad else (0,), dtype=tiles.sums)
        key_grad = blocked.zeros_by_columns(tiles.key if wants_key_grad else tiles.key[:0])
        for part in tiles.parts():
            slopes = _logits(tiles, part, bias).sigmoid_().mul_(grad[part, None])
            bias_grad += slopes.sum()
            slopes = slopes.to(dtype)
            if wants_query_grad:
                query_grad[part] = times_transposed(slopes, tiles.key.t())
            if wants_key_grad:
                add_transposed_times(key_grad, slopes, tiles.query[part])
        return query_grad, key_grad.contiguous(), bias_grad


def _logits(tiles: blocked.Tiles, part: slice, bias: Tensor) -> Tensor:
    """Return a tile of logits, minus infinity where a column is left out."""
    return tiles.without(tiles.logits(part, tiles.key, scale=1.0).add_(bias), part, -torch.inf)


def _shape(query: Tensor, *rest: Any) -> Tensor:
    *_, dtype = rest
    return query.new_empty(query.shape[0], dtype=torch.promote_types(dtype, torch.float32))


def _shapes_of_gradients(query: Tensor, key: Tensor, bias: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, dtype, wants_query_grad, wants_key_grad = rest
    kind = torch.promote_types(dtype, torch.float32)
    return (
        query.new_empty(query.shape if wants_query_grad else (0,), dtype=kind),
        key.new_empty(key.shape if wants_key_grad else (0, key.shape[1]), dtype=kind),
        torch.empty_like(bias),
    )


_gradients_of_sums = Opaque("imix_aug::softplus_sums_gradients", _gradients, shapes=_shapes_of_gradients)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, dtype = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.dtype = dtype


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    refuse_batched(grad)
    tensors: tuple[Any, ...] = ctx.saved_tensors
    query, key = tensors[:2]
    needs_query, needs_key, needs_bias = ctx.needs_input_grad[:3]
    with torch.no_grad():
        found = _gradients_of_sums(*tensors, grad.contiguous(), ctx.dtype, needs_query, needs_key)
    needed = zip(found, (needs_query, needs_key, needs_bias), strict=True)
    wanted = tuple(each if is_needed else None for each, is_needed in needed)
    return (*once_differentiable(wanted, query, key, grad), None, None, None, None)


_node = Node("imix_aug::softplus_sums", _forward, shapes=_shape, keep=_keep, gradients=_backward)
