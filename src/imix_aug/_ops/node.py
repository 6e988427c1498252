"""The plain loss of a batch on the CPU as a single node of the autograd graph, normalisation and gradients included.

Composed of many nodes, the loss spends as long on (N, D) tensors that autograd makes and keeps, mostly on fresh memory,
as on a small batch's logits. Here the forward pass leaves both gradients behind, in one tensor, and the soft labels are
taken off the softmax while a tile of it is in cache.
"""

import math
from typing import Any

import torch
from torch import Tensor

from imix_aug._labels import VirtualLabels
from imix_aug._ops import _OnceDifferentiable, blocked


def nce_loss(query: Tensor, key: Tensor, labels: VirtualLabels | None, scale: float, reduction: str) -> Tensor | None:
    """Return the loss of the logits ``scale * cos(query_i, key_j)``, or None where this way does not serve."""
    if (
        reduction == "none"
        or scale > blocked.SAFE_LOGIT
        or query.device.type != "cpu"
        or query.dtype not in (torch.float32, torch.float64)
        or not (torch.is_grad_enabled() and query.requires_grad and key.requires_grad)
        or (labels is not None and labels.lam.requires_grad)
        or torch.is_autocast_enabled("cpu")
    ):
        return None
    rows = torch.cat((query.detach(), key.detach()))
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    shortest, longest = torch.aminmax(lengths)
    if not (shortest.item() > 1e-12 and longest.item() < math.inf):  # zero, overflown, or no number
        return None
    lam, partner = (None, None) if labels is None else (labels.lam.to(rows.dtype), labels.partner)
    loss: Tensor = _NCE.apply(query, key, rows.div_(lengths), lengths, lam, partner, scale, reduction == "mean")
    return loss


class _NCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        rows: Tensor,
        lengths: Tensor,
        lam: Tensor | None,
        partner: Tensor | None,
        scale: float,
        mean: bool,
    ) -> Tensor:
        n = query.shape[0]
        total, bits, grads = _tiled(rows, n, lam, partner, scale)
        weight = 1 / n if mean else 1.0
        # What would change a row's length has no effect on the loss.
        grads.addcmul_(rows, (grads * rows).sum(dim=1, keepdim=True), value=-1)
        lengths[:n].mul_(total)
        grads.div_(lengths.mul_(1 / (scale * weight)))
        ctx.save_for_backward(query, key, grads)
        return bits.mul_(weight / blocked.LOG2_E)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, grads = ctx.saved_tensors
        query_grad, key_grad = (grads * grad).view(2, *query.shape).unbind()
        if torch.is_grad_enabled():
            query_grad, key_grad = (
                _OnceDifferentiable.apply(each.detach(), query, key, grad) for each in (query_grad, key_grad)
            )
        return (query_grad, key_grad, *(None,) * 6)


def _tiled(
    rows: Tensor, n: int, lam: Tensor | None, partner: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Sweep the logits of ``rows[:n]`` with ``rows[n:]``, whose powers need no peak, being at most ``scale``.

    Returns the softmax's denominators ``(n, 1)``, the rows' total loss in bits, and its gradients in both halves of
    ``rows``, divided by ``scale`` and the first half also multiplied by the denominators.
    """
    query, key = rows[:n], rows[n:]
    grads = torch.empty_like(rows)
    query_grad, key_grad = grads[:n], grads[n:]
    columns, shares = _sparse(n, rows, lam, partner)
    step = blocked.rows_per_tile(n, n)
    tile = rows.new_empty((step, n))
    totals = rows.new_empty((n, 1))
    bits = rows.new_zeros(())
    for start in range(0, n, step):
        part = slice(start, start + step)
        few, total, column, share = query[part], totals[part], columns[part], shares[part]
        powers = tile[: few.shape[0]]
        torch.addmm(powers, few, key.t(), beta=0, alpha=scale * blocked.LOG2_E, out=powers).exp2_()
        torch.sum(powers, 1, keepdim=True, out=total)
        softmax = powers.gather(1, column).div_(total)
        bits.sub_(torch.dot(softmax.log2_().view(-1), share.view(-1)))
        excess = powers.scatter_add_(1, column, (share * total).neg_())  # times the total
        torch.mm(excess, key, out=query_grad[part])
        torch.addmm(key_grad, excess.t(), few / total, beta=int(start > 0), out=key_grad)
    return totals, bits, grads


def _sparse(n: int, rows: Tensor, lam: Tensor | None, partner: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the columns that the soft labels are spread over and the shares of each, ``(n, 1)`` or ``(n, 2)``."""
    own = torch.arange(n)
    if lam is None or partner is None:
        return own[:, None], rows.new_ones((n, 1))
    return torch.stack((own, partner), 1), torch.stack((lam, 1 - lam), 1)
