"""The plain loss of a batch on the CPU as a single node of the autograd graph, normalisation and gradients included.

Composed of many nodes, the loss spends as long on (N, D) tensors that autograd makes and keeps, mostly on fresh memory,
and on starting operations, as on a small batch's logits. Here the forward pass leaves both gradients behind, in one
tensor. Logits are small enough to do without logarithms: positives and rest are weighed as powers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imix_aug._cross_entropy import blocked
from imix_aug._cross_entropy.columns import Positives, row_numbers
from imix_aug._cross_entropy.once_differentiable import once_differentiable, refuse_batched
from imix_aug._cross_entropy.positives import excess_of_both
from imix_aug._cross_entropy.products import add_transposed_times, times_transposed
from imix_aug._values import readable

if TYPE_CHECKING:
    from imix_aug._labels import VirtualLabels

# From so many products on, the processor's units for bfloat16, where it has them, outweigh what converting costs.
MANY_PRODUCTS = 1 << 27

# Up to here starting an operation costs more than its pass over the logits, so the fewest operations win.
SMALL_BATCH = 256

EPS = 1e-12


def applies(query: Tensor, key: Tensor, labels: VirtualLabels | None, temperature: float, reduction: str) -> bool:
    """Tell whether ``nce_loss`` serves: both gradients of a reduced loss are wanted, and logits are small."""
    return (
        reduction != "none"
        and temperature * blocked.SAFE_LOGIT >= 1
        and query.requires_grad
        and key.requires_grad
        and (labels is None or not labels.lam.requires_grad)
        and torch.is_grad_enabled()
        and readable(query, key)
        and not _suits_half_precision(query)
    )


def nce_loss(query: Tensor, key: Tensor, labels: VirtualLabels | None, temperature: float, reduction: str) -> Tensor:
    """Return the loss of the logits ``cos(query_i, key_j) / temperature``."""
    sweep = functools.partial(_sweep, labels)
    return _Node.apply(query, key, sweep, 1 / temperature, 1 / len(query) if reduction == "mean" else 1.0)


def applies_to_both(query: Tensor, key: Tensor, labels: VirtualLabels | None, temperature: float, how: str) -> bool:
    """Tell whether ``both_losses`` serves: the same, for logits that fit one tile."""
    n = len(query)
    return blocked.rows_per_tile(n, n) == n and applies(query, key, labels, temperature, how)


def both_losses(query: Tensor, key: Tensor, labels: VirtualLabels | None, temperature: float, reduction: str) -> Tensor:
    """Return the mean of both directions' losses."""
    sweep = functools.partial(_sweep_both, labels)
    return _Node.apply(query, key, sweep, 1 / temperature, (1 / len(query) if reduction == "mean" else 1.0) / 2)


def _suits_half_precision(query: Tensor) -> bool:
    n, d = query.shape
    return blocked.product_dtype(query.dtype) == torch.bfloat16 and n * n * d >= MANY_PRODUCTS


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, sweep: Callable[..., Tensor], scale: float, weight: float
    ) -> Tensor:
        dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), torch.float32)
        pair = torch.stack((query.to(dtype), key.to(dtype)))
        lengths, is_short = _to_unit_length(pair)
        grads = torch.empty_like(pair)
        loss = sweep(pair, grads, scale)
        # What would change a row's length has no effect on the loss.
        along = (grads * pair).sum(dim=2, keepdim=True)
        grads.addcmul_(pair, along if is_short is None else along.masked_fill_(is_short, 0), value=-1)
        ctx.scale = scale * weight
        ctx.save_for_backward(query, key, grads, lengths)
        return loss.mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_batched(grad)
        query, key, grads, lengths = ctx.saved_tensors
        with torch.no_grad():
            query_grad, key_grad = (grads * (ctx.scale * grad / lengths)).unbind()
            gradients = query_grad.to(query.dtype), key_grad.to(key.dtype)
        return (*once_differentiable(gradients, query, key, grad), None, None, None)


def _to_unit_length(rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Scale the rows in place; return what divided them, and which were so short that ``EPS`` did, if any."""
    lengths = torch.linalg.vector_norm(rows, dim=2, keepdim=True)
    shortest, longest = torch.aminmax(lengths)
    if shortest.item() > EPS and longest.item() < torch.inf:
        rows.div_(lengths)
        return lengths, None
    largest = rows.abs().amax(dim=2, keepdim=True).clamp_min(1)  # squares of what is left cannot overflow
    rows.div_(largest)
    lengths = torch.linalg.vector_norm(rows, dim=2, keepdim=True)
    is_short = lengths * largest <= EPS
    rows.div_(lengths.clamp_min(EPS / largest))
    return (lengths * largest).clamp_min(EPS), is_short


def _sweep(labels: VirtualLabels | None, rows: Tensor, grads: Tensor, scale: float) -> Tensor:
    """Return the total loss of unit queries and keys, and leave its gradients in ``grads``, divided by ``scale``."""
    query, key = rows.unbind()
    query_grad, key_grad = grads.unbind()
    n = len(query)
    positives = None
    if labels is not None:
        if _is_small_and_mixed(labels):
            return _at_once(query, key, query_grad, key_grad, labels, scale)
        positives = Positives.of(labels, query.dtype)
    loss = query.new_zeros(())
    step = blocked.rows_per_tile(n, n)
    summed_key_grad = blocked.zeros_by_columns(key) if step < n else None
    for start in range(0, n, step):
        part = slice(start, min(start + step, n))
        tile = query[part]
        powers = times_transposed(tile, key, scale * blocked.LOG2_E).exp2_()
        if positives is None:
            total = _weigh_own(powers[:, part].diagonal(), powers, loss)
        else:
            total = _weigh(powers, positives.columns[part], positives.shares[part], loss)
        # The powers are now softmax minus label, times the total.
        torch.div(times_transposed(powers, key.t()), total, out=query_grad[part])
        if summed_key_grad is None:
            torch.mm(powers.t(), tile / total, out=key_grad)
        else:
            add_transposed_times(summed_key_grad, powers, tile / total)
    if summed_key_grad is not None:
        key_grad.copy_(summed_key_grad)
    return loss


def _sweep_both(labels: VirtualLabels | None, rows: Tensor, grads: Tensor, scale: float) -> Tensor:
    """Do the same for both directions of one tile."""
    query, key = rows.unbind()
    if labels is not None and _is_small_and_mixed(labels):
        return _both_at_once(query, key, grads[0], grads[1], labels, scale)
    n = len(query)
    columns, shares = Positives.cat(Positives.of_both(labels, query))
    if columns.shape[1] == 1:  # as a pair whose second column stands for none
        columns, shares = columns.expand(-1, 2), torch.nn.functional.pad(shares, (0, 1))
    own, back = columns.chunk(2)
    powers = times_transposed(query, key, scale * blocked.LOG2_E).exp2_()
    power = powers.gather(1, own)
    powers.scatter_(1, own, 0)
    rest = torch.cat((powers.sum(dim=1), powers.sum(dim=0)))[:, None]
    loss, excess, total = _weigh_positives(torch.cat((power, power.gather(0, back))), rest, columns, shares)
    part = total.reciprocal_()
    powers.mul_(part[:n] + part[n:].t())
    powers.scatter_add_(1, own, excess_of_both(own, excess.mul_(part)))
    torch.mm(powers, key, out=grads[0])
    torch.mm(powers.t(), query, out=grads[1])
    return loss


def _is_small_and_mixed(labels: VirtualLabels) -> bool:
    """Tell a small batch whose labels keep the softmax away from one, where digits are lost."""
    lam, partner = labels
    return len(lam) <= SMALL_BATCH and 0 < lam.min().item() < 1 and not torch.equal(partner, row_numbers(partner))


def _entries(labels: VirtualLabels, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the columns of each row's label, ``(N, 2)``, and its shares of them; a row may be its own partner."""
    lam, partner = labels.lam.to(dtype), labels.partner
    return torch.stack((row_numbers(partner), partner), 1), torch.stack((lam, 1 - lam), 1)


def _at_once(
    query: Tensor, key: Tensor, query_grad: Tensor, key_grad: Tensor, labels: VirtualLabels, scale: float
) -> Tensor:
    """Do what ``_sweep`` does, for a batch that is small and mixed."""
    columns, shares = _entries(labels, query.dtype)
    softmax = times_transposed(query, key, scale).softmax(dim=1)
    loss = torch.dot(softmax.gather(1, columns).log_().view(-1), shares.view(-1)).neg_()
    excess = softmax.scatter_add_(1, columns, shares.neg_())
    torch.mm(excess, key, out=query_grad)
    torch.mm(excess.t(), query, out=key_grad)
    return loss


def _both_at_once(
    query: Tensor, key: Tensor, query_grad: Tensor, key_grad: Tensor, labels: VirtualLabels, scale: float
) -> Tensor:
    """Do the same for both directions; a key's label is spread in proportion to what the rows' labels give it."""
    columns, shares = _entries(labels, query.dtype)
    held = shares[:, 0].index_add(0, labels.partner, shares[:, 1])
    of_keys = shares / held[columns]
    powers = times_transposed(query, key, scale * blocked.LOG2_E).exp2_()
    by_row, by_column = powers.sum(dim=1, keepdim=True), powers.sum(dim=0)
    power = powers.gather(1, columns)
    loss = (power / by_row).log_().mul_(shares).addcmul_((power / by_column[columns]).log_(), of_keys).sum().neg_()
    excess = powers.mul_(by_row.reciprocal_() + by_column.reciprocal_())
    excess.scatter_add_(1, columns, shares.add_(of_keys).neg_())
    torch.mm(excess, key, out=query_grad)
    torch.mm(excess.t(), query, out=key_grad)
    return loss


def _weigh_own(own: Tensor, powers: Tensor, loss: Tensor) -> Tensor:
    """Add the rows' losses, take their labels off, and return the rows' totals; ``own`` is a view of the diagonal."""
    power = own.clone()
    own.zero_()
    rest = powers.sum(dim=1)
    # Beside zeros, as a pair whose second column stands for none: to the last bit what a lambda of one gives.
    loss.add_(torch.nn.functional.pad((rest / power)[:, None], (0, 1)).log1p_().sum())
    torch.neg(rest, out=own)
    return power.add_(rest)[:, None]


def _weigh(powers: Tensor, columns: Tensor, shares: Tensor, loss: Tensor) -> Tensor:
    """Do the same for labels that are spread over two columns."""
    power = powers.gather(1, columns)
    powers.scatter_(1, columns, 0)
    share_of_loss, excess, total = _weigh_positives(power, powers.sum(dim=1, keepdim=True), columns, shares)
    loss.add_(share_of_loss)
    powers.scatter_add_(1, columns, excess)
    return total


def _weigh_positives(power: Tensor, rest: Tensor, columns: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of rows with two positives, these' softmax minus label, times the total, and the total."""
    present = power.clone()
    present[:, 1].masked_fill_(columns[:, 1] == columns[:, 0], 0)
    but_one = present.flip(1).add_(rest)
    loss = (but_one / power).log1p_().mul_(shares).sum()
    excess = (1 - shares).mul_(present).addcmul_(shares, but_one, value=-1)
    return loss, excess, rest.add_(present.sum(dim=1, keepdim=True))
