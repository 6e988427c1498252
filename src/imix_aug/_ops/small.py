"""The loss of a small batch as a single node of the autograd graph, for the CPU.

A few hundred rows take less time than the many operations that a loss is made of. Here the dense logits, small as they
are, give loss and gradients in a fraction of the operations that autograd would record and run.
"""

import math
from typing import Any

import torch
from torch import Tensor

from imix_aug._labels import VirtualLabels
from imix_aug._ops import _OnceDifferentiable

# Up to 512 rows; from 1024 on the blocked version is ahead, whose operations are more but cheaper for each logit.
MAX_LOGITS = 1 << 18


def nce_loss(query: Tensor, key: Tensor, labels: VirtualLabels | None, scale: float, reduction: str) -> Tensor | None:
    """Return the loss of the logits ``scale * cos(query_i, key_j)``, or None where this way does not serve."""
    if (
        query.shape[0] ** 2 > MAX_LOGITS
        or reduction == "none"
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
    loss: Tensor = _SmallNCE.apply(query, key, rows.div_(lengths), lengths, lam, partner, scale, reduction == "mean")
    return loss


class _SmallNCE(torch.autograd.Function):
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
        query_rows, key_rows = rows.split(n)
        logits = torch.empty((n, n), dtype=rows.dtype)
        logits.addmm_(query_rows, key_rows.t(), beta=0, alpha=scale)
        log_softmax = torch.log_softmax(logits, 1)
        excess = torch.softmax(logits, 1)  # over the soft label: the loss's gradient in the logits
        gains = log_softmax.diagonal()
        if lam is None or partner is None:
            excess.diagonal().sub_(1)
        else:
            others = partner[:, None]
            gains = torch.lerp(log_softmax.gather(1, others)[:, 0], gains, lam)
            excess.diagonal().sub_(lam)
            excess.scatter_add_(1, others, (lam - 1)[:, None])
        grads = torch.empty_like(rows)
        query_grad, key_grad = grads.split(n)
        torch.mm(excess, key_rows, out=query_grad)
        torch.mm(excess.t(), query_rows, out=key_grad)
        # What would change a row's length has no effect on the loss.
        grads.addcmul_(rows, (grads * rows).sum(dim=1, keepdim=True), value=-1)
        grads.div_(lengths.mul_(n / scale if mean else 1 / scale))
        ctx.save_for_backward(query, key, grads)
        return (gains.mean() if mean else gains.sum()).neg_()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, grads = ctx.saved_tensors
        both = (grads * grad).split(query.shape[0])
        if torch.is_grad_enabled():
            both = tuple(_OnceDifferentiable.apply(each.detach(), query, key, grad) for each in both)
        return (*both, *(None,) * 6)
