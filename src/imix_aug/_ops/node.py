"""The plain loss of a batch on the CPU as a single node of the autograd graph, normalisation and gradients included.

Composed of many nodes, the loss spends as long on (N, D) tensors that autograd makes and keeps, mostly on fresh memory,
as on a small batch's logits. Here the forward pass leaves both gradients behind, in as few tensors as they need.
"""

import math
from typing import Any

import torch
from torch import Tensor

from imix_aug._labels import VirtualLabels
from imix_aug._ops import _OnceDifferentiable, blocked

# Up to 512 rows the dense logits take fewer operations; beyond, the blocked version's cheaper ones win.
DENSE_LOGITS = 1 << 18


def nce_loss(query: Tensor, key: Tensor, labels: VirtualLabels | None, scale: float, reduction: str) -> Tensor | None:
    """Return the loss of the logits ``scale * cos(query_i, key_j)``, or None where this way does not serve."""
    if (
        reduction == "none"
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
        core = _dense if n * n <= DENSE_LOGITS else _blocked
        units = rows[:n], rows[n:]
        total, grads = core(*units, lam, partner, scale)
        factor = scale / n if mean else scale
        # What would change a row's length has no effect on the loss.
        for grad, unit, length in zip(grads, units, (lengths[:n], lengths[n:]), strict=True):
            grad.addcmul_(unit, (grad * unit).sum(dim=1, keepdim=True), value=-1).div_(length.div_(factor))
        ctx.save_for_backward(query, key, *grads)
        return total.div_(n) if mean else total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, *grads = ctx.saved_tensors
        grads = [each * grad for each in grads]
        if torch.is_grad_enabled():
            grads = [_OnceDifferentiable.apply(each.detach(), query, key, grad) for each in grads]
        return (*grads, *(None,) * 6)


def _dense(
    query: Tensor, key: Tensor, lam: Tensor | None, partner: Tensor | None, scale: float
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the rows' total loss and, divided by ``scale``, its gradients in queries and keys."""
    n = query.shape[0]
    logits = query.new_empty((n, n))
    logits.addmm_(query, key.t(), beta=0, alpha=scale)
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
    return gains.sum().neg_(), (torch.mm(excess, key), torch.mm(excess.t(), query))


def _blocked(
    query: Tensor, key: Tensor, lam: Tensor | None, partner: Tensor | None, scale: float
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The same, without the logits."""
    lse, query_grad, key_grad = blocked.forward(query * scale, key, None, None, True, True)
    assert query_grad is not None
    assert key_grad is not None
    key_grad.div_(scale)
    if lam is None or partner is None:
        expected = key
        key_grad.sub_(query)
    else:
        own_share = lam[:, None]
        expected = key.index_select(0, partner).lerp_(key, own_share)
        own = query * own_share
        key_grad.sub_(own).index_add_(0, partner, own.sub_(query))
    query_grad.sub_(expected)
    return lse.sum().sub_(torch.dot(query.view(-1), expected.view(-1)), alpha=scale), (query_grad, key_grad)
