"""The one primitive under all contrastive losses: a row log-sum-exp that never stores the N x M logits.

For a query row q_i the loss of a soft label v_i is ``logsumexp_j <q_i, k_j> - <q_i, sum_j v_ij k_j>``. The second term
is ordinary autograd on (N, D) tensors; the first, and only the first, meets all N x M logits. ``row_logsumexp``
computes it with its gradients: the softmax-weighted keys for each query, which the forward sweep yields as attention
would, and the softmax-weighted queries for each key.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from imix_aug._cross_entropy import blocked
from imix_aug._backend import runs_triton


def _implementation(device: torch.device) -> ModuleType:
    if not runs_triton(device):
        return blocked
    from imix_aug._cross_entropy import triton

    return triton


def row_logsumexp(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    excluded: Tensor | None = None,
    dtype: torch.dtype | None = None,
    summed: bool = False,
) -> Tensor:
    """Return ``logsumexp_j <query_i, k_j>`` over the rows k_j of ``key`` and ``negatives``.

    Args:
        query: ``(N, D)``, the temperature divided out already.
        key: ``(M, D)``.
        negatives: ``(K, D)``, more keys, constant.
        excluded: ``(N, E)`` int64, columns of ``key`` that row i leaves out; a column may come twice.
        dtype: what the matrix products take in, default the dtype of ``query``; sums are kept in float32 or float64.
        summed: return the sum of the rows. Their weights in the gradient being known to be equal, the key gradient
            comes out of the forward pass too, and where a block of logits is at hand without computing it again.

    Returns:
        ``(N,)``, or a 0-d tensor when ``summed``; float64 for float64 input, else float32.
    """
    rows: Tensor = _RowLogSumExp.apply(query, key, negatives, excluded, dtype or query.dtype, summed)
    return rows


@torch.library.custom_op("imix_aug::row_logsumexp", mutates_args=())
def _forward_op(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    excluded: Tensor | None,
    want_query_grad: bool,
    want_key_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    results = _implementation(query.device).forward(query, key, negatives, excluded, want_query_grad, want_key_grad)
    lse, query_grad, key_grad = results
    return lse, _or_empty(query_grad, lse), _or_empty(key_grad, lse)


def _or_empty(gradient: Tensor | None, like: Tensor) -> Tensor:
    """Stand in for an absent gradient: an operator's results cannot be optional."""
    return like.new_empty(0) if gradient is None else gradient


@_forward_op.register_fake
def _(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    excluded: Tensor | None,
    want_query_grad: bool,
    want_key_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulator_dtype(query.dtype)
    lse = query.new_empty(query.shape[0], dtype=dtype)
    query_grad = query.new_empty(query.shape, dtype=dtype) if want_query_grad else lse.new_empty(0)
    return lse, query_grad, key.new_empty(key.shape, dtype=dtype) if want_key_grad else lse.new_empty(0)


@torch.library.custom_op("imix_aug::row_logsumexp_key_grad", mutates_args=())
def _key_grad_op(query: Tensor, key: Tensor, excluded: Tensor | None, lse: Tensor, weight: Tensor) -> Tensor:
    grad: Tensor = _implementation(query.device).key_grad(query, key, excluded, lse, weight)
    return grad


@_key_grad_op.register_fake
def _(query: Tensor, key: Tensor, excluded: Tensor | None, lse: Tensor, weight: Tensor) -> Tensor:
    return key.new_empty(key.shape, dtype=lse.dtype)


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which sums over rows of the given dtype are kept."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _needs_operator(rows: Tensor) -> bool:
    """Say whether the work is to be one opaque operator: plain torch in eager mode does without, and saves its cost."""
    return torch.compiler.is_compiling() or rows.device.type != "cpu"


class _RowLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        negatives: Tensor | None,
        excluded: Tensor | None,
        dtype: torch.dtype,
        summed: bool,
    ) -> Tensor:
        needs_query_grad, needs_key_grad = ctx.needs_input_grad[:2]
        one_sweep = summed and needs_key_grad
        dtype = blocked.product_dtype(dtype) if query.device.type == "cpu" else dtype
        rows = query.detach().to(dtype), key.detach().to(dtype)
        constants = None if negatives is None else negatives.detach().to(dtype)
        forward = _forward_op if _needs_operator(query) else blocked.forward
        lse, query_grad, key_grad = forward(*rows, constants, excluded, needs_query_grad, one_sweep)
        two_sweeps = needs_key_grad and not one_sweep
        ctx.save_for_backward(
            query,
            key,
            query_grad if needs_query_grad else None,
            key_grad if one_sweep else None,
            *((*rows, excluded, lse) if two_sweeps else (None,) * 4),
        )
        ctx.needs = needs_query_grad, one_sweep, two_sweeps
        return lse.sum() if summed else lse

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, query_grad, key_grad, *sweep = ctx.saved_tensors
        needs_query_grad, one_sweep, two_sweeps = ctx.needs
        second_derivative_wanted = torch.is_grad_enabled()
        with torch.no_grad():
            if needs_query_grad:
                query_grad = query_grad * (grad if grad.dim() == 0 else grad[:, None])
            if one_sweep:
                key_grad = key_grad * grad
            elif two_sweeps:
                query_rows, key_rows, excluded, lse = sweep
                key_sweep = _key_grad_op if _needs_operator(query) else blocked.key_grad
                key_grad = key_sweep(query_rows, key_rows, excluded, lse, grad.expand_as(lse).contiguous())
        if second_derivative_wanted:
            query_grad, key_grad = (
                None if each is None else _OnceDifferentiable.apply(each, query, key, grad)
                for each in (query_grad, key_grad)
            )
        return query_grad, key_grad, None, None, None, None


class _OnceDifferentiable(torch.autograd.Function):
    """Pass a gradient on as a function of what it was computed from, and refuse to differentiate it again."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *computed_from: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        raise RuntimeError("imix_aug's contrastive losses have no second derivative: their logits are never stored")
