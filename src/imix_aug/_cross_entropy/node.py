"""The plain loss of a batch on the CPU as a single node of the autograd graph, normalisation and gradients included.

Composed of many nodes, the loss spends as long on (N, D) tensors that autograd makes and keeps, mostly on fresh memory,
and on starting operations, as on a small batch's logits. Here the forward pass leaves both gradients behind, in one
tensor, and the soft labels are taken off the softmax while it is in cache.
"""

import math
from typing import Any

import torch
from torch import Tensor

from imix_aug._labels import VirtualLabels
from imix_aug._cross_entropy import blocked
from imix_aug._cross_entropy.operator import _OnceDifferentiable
from imix_aug._cross_entropy.products import add_transposed_times, times_transposed

# From so many products on, the processor's units for bfloat16, where it has them, outweigh what converting costs.
MANY_PRODUCTS = 1 << 27

# Up to here starting an operation costs more than its passes over the logits, so the fewest operations win.
SMALL_BATCH = 256


def nce_loss(query: Tensor, key: Tensor, labels: VirtualLabels | None, scale: float, reduction: str) -> Tensor | None:
    """Return the loss of the logits ``scale * cos(query_i, key_j)``, or None where this way does not serve."""
    if (
        reduction == "none"
        or scale > blocked.SAFE_LOGIT
        or query.device.type != "cpu"
        or _suits_half_precision(query)
        or not (torch.is_grad_enabled() and query.requires_grad and key.requires_grad)
        or (labels is not None and labels.lam.requires_grad)
        or torch.is_autocast_enabled("cpu")
    ):
        return None
    lam, partner = (None, None) if labels is None else (labels.lam, labels.partner)
    loss: Tensor = _NCE.apply(query, key, lam, partner, scale, reduction == "mean")
    return None if math.isnan(loss.item()) else loss


def _suits_half_precision(query: Tensor) -> bool:
    n, d = query.shape
    return blocked.product_dtype(query.dtype) == torch.bfloat16 and n * n * d >= MANY_PRODUCTS


class _NCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, lam: Tensor | None, partner: Tensor | None, scale: float, mean: bool
    ) -> Tensor:
        rows = torch.stack((query, key)).to(torch.promote_types(query.dtype, torch.float32))
        lengths = torch.linalg.vector_norm(rows, dim=2, keepdim=True)
        shortest, longest = torch.aminmax(lengths)
        if not (shortest.item() > 1e-12 and longest.item() < math.inf):  # zero, overflown, or no number
            return rows.new_full((), math.nan)
        rows.div_(lengths)
        grads = torch.empty_like(rows)
        n = query.shape[0]
        sweep = _at_once if n <= SMALL_BATCH else _tiled
        loss = sweep(rows, grads, *_sparse(n, rows, lam, partner), scale)
        # What would change a row's length has no effect on the loss.
        grads.addcmul_(rows, (grads * rows).sum(dim=2, keepdim=True), value=-1)
        ctx.weight = 1 / n if mean else 1.0
        ctx.scale = scale * ctx.weight
        ctx.save_for_backward(query, key, grads, lengths)
        return loss.mul_(ctx.weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, grads, lengths = ctx.saved_tensors
        query_grad, key_grad = (grads * (ctx.scale * grad / lengths)).to(query.dtype).unbind()
        if torch.is_grad_enabled():
            query_grad, key_grad = (
                _OnceDifferentiable.apply(each.detach(), query, key, grad) for each in (query_grad, key_grad)
            )
        return query_grad, key_grad, None, None, None, None


def _at_once(rows: Tensor, grads: Tensor, columns: Tensor, shares: Tensor, scale: float) -> Tensor:
    """Return the total loss of unit queries and keys, and leave its gradients in ``grads``, divided by ``scale``."""
    query, key = rows.unbind()
    query_grad, key_grad = grads.unbind()
    softmax = times_transposed(query, key, scale).softmax(dim=1)
    loss = (softmax.gather(1, columns).log_() * shares).sum()
    excess = softmax.scatter_add_(1, columns, shares)
    torch.mm(excess, key, out=query_grad)
    torch.mm(excess.t(), query, out=key_grad)
    return loss


def _tiled(rows: Tensor, grads: Tensor, columns: Tensor, shares: Tensor, scale: float) -> Tensor:
    """Do the same tile by tile, with powers of two that need no peak taken off, logits being at most ``scale``."""
    query, key = rows.unbind()
    query_grad, key_grad = grads.unbind()
    bits = query.new_zeros(())
    step = blocked.rows_per_tile(len(query), len(key))
    summed_key_grad = blocked.zeros_by_columns(key) if step < len(query) else key_grad.zero_()
    tiles = (torch.split(each, step) for each in (query, columns, shares, query_grad))
    for few, column, share, few_grad in zip(*tiles, strict=True):
        powers = times_transposed(few, key, scale * blocked.LOG2_E).exp2_()
        total = powers.sum(dim=1, keepdim=True)
        bits.add_((powers.gather(1, column).div_(total).log2_() * share).sum())
        excess = powers.scatter_add_(1, column, share * total)  # times the total
        torch.div(times_transposed(excess, key.t()), total, out=few_grad)
        add_transposed_times(summed_key_grad, excess, few / total)
    if summed_key_grad is not key_grad:
        key_grad.copy_(summed_key_grad)
    return bits.div_(blocked.LOG2_E)


def _sparse(n: int, rows: Tensor, lam: Tensor | None, partner: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the two columns that each soft label is spread over, and its shares of them, negative: both ``(n, 2)``.

    Without labels the second share is zero, so that a lambda of one gives the same sums, in the same order.
    """
    own = torch.arange(n)
    if lam is None or partner is None:
        return torch.stack((own, own), 1), rows.new_tensor((-1.0, 0.0)).repeat(n, 1)
    lam = lam.to(rows.dtype)
    return torch.stack((own, partner), 1), torch.stack((-lam, lam - 1), 1)
