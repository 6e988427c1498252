"""Keys sent round a ring of ranks, block after block, where a rank could not hold those of all."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.distributed_c10d import _resolve_process_group  # type: ignore[attr-defined]

from imix_aug._cross_entropy import operator as _ops
from imix_aug._keys.class_sums import class_sums, mean, with_ones


@dataclass(frozen=True)
class RingKeys:
    """Keys that stay where they are: every rank sees those of the others pass by, block after block."""

    rows: Tensor
    group_name: str

    def row_logsumexp(
        self,
        query: Tensor,
        negatives: Tensor | None,
        *,
        excluded: Tensor | None = None,
        dtype: torch.dtype,
        summed: bool,
    ) -> Tensor:
        """Return each query's log-sum-exp over the keys and negatives; ``excluded`` holds own keys by number."""
        lse: Tensor = _RingRowLogSumExp.apply(query, self.rows, negatives, excluded, dtype, self.group_name)
        return lse.sum() if summed else lse

    def class_means(self, classes: Tensor) -> Tensor:
        """Return for each of this rank's classes the mean of its keys."""
        sums: Tensor = _RingClassSums.apply(with_ones(self.rows), classes, self.group_name)
        return mean(sums)


@dataclass
class _UnderWay:
    """Tensors that come in; those that go out must live as long."""

    received: tuple[Tensor, ...]
    sent: tuple[Tensor, ...]
    works: list[dist.Work]

    def wait(self) -> tuple[Tensor, ...]:
        for work in self.works:
            work.wait()
        return self.received


class _Ring:
    """Tensors on their way from each rank to the next, while this rank computes with those it has."""

    def __init__(self, group_name: str) -> None:
        self.group = _resolve_process_group(group_name)  # type: ignore[arg-type]
        rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.next = dist.get_global_rank(self.group, (rank + 1) % self.size)
        self.previous = dist.get_global_rank(self.group, (rank - 1) % self.size)

    def send(self, *tensors: Tensor, tag: int = 0) -> _UnderWay:
        """Start to send contiguous tensors on, and to receive their like."""
        received = tuple(torch.empty_like(each) for each in tensors)
        sends = [dist.P2POp(dist.isend, each, self.next, self.group, tag) for each in tensors]
        receives = [dist.P2POp(dist.irecv, each, self.previous, self.group, tag) for each in received]
        return _UnderWay(received, tensors, dist.batch_isend_irecv(sends + receives))

    def pass_round(self, *own: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield the tensors of this rank, then those of the rank before it, and so on, the next ones under way."""
        here = tuple(each.contiguous() for each in own)
        for _ in range(self.size - 1):
            under_way = self.send(*here)
            yield here
            here = under_way.wait()
        yield here


class _RingRowLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        negatives: Tensor | None,
        excluded: Tensor | None,
        dtype: torch.dtype,
        group_name: str,
    ) -> Tensor:
        needs_query_grad, ctx.needs_key_grad = ctx.needs_input_grad[:2]
        rows = query.detach().to(dtype), key.detach().to(dtype)
        constants = None if negatives is None else negatives.detach().to(dtype)
        lse, query_grad = _ring_forward_op(*rows, constants, excluded, needs_query_grad, group_name)
        ctx.save_for_backward(
            query,
            key,
            query_grad if needs_query_grad else None,
            *((*rows, excluded, lse) if ctx.needs_key_grad else (None,) * 4),
        )
        ctx.group_name = group_name
        rows_lse: Tensor = lse
        return rows_lse

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, query_grad, *rows, lse = ctx.saved_tensors
        key_grad = None
        second_derivative_wanted = torch.is_grad_enabled()
        with torch.no_grad():
            if query_grad is not None:
                query_grad = query_grad * grad[:, None]
            if ctx.needs_key_grad:
                key_grad = _ring_key_grad_op(*rows, lse, grad.contiguous(), ctx.group_name)
        if second_derivative_wanted:
            query_grad, key_grad = (
                None if each is None else _ops._OnceDifferentiable.apply(each, query, key, grad)
                for each in (query_grad, key_grad)
            )
        return query_grad, key_grad, None, None, None, None


@torch.library.custom_op("imix_aug::ring_row_logsumexp", mutates_args=())
def _ring_forward_op(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    excluded: Tensor | None,
    want_query_grad: bool,
    group_name: str,
) -> tuple[Tensor, Tensor]:
    blocks = _Ring(group_name).pass_round(key)
    (own,) = next(blocks)
    total, query_grad, _ = _ops._forward_op(query, own, negatives, excluded, want_query_grad, False)
    for (block,) in blocks:
        lse, grad, _ = _ops._forward_op(query, block, None, None, want_query_grad, False)
        merged = torch.logaddexp(total, lse)
        if want_query_grad:
            query_grad *= (total - merged).exp_()[:, None]
            query_grad += grad.mul_((lse - merged).exp_()[:, None])
        total = merged
    return total, query_grad


@_ring_forward_op.register_fake
def _(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    excluded: Tensor | None,
    want_query_grad: bool,
    group_name: str,
) -> tuple[Tensor, Tensor]:
    lse = query.new_empty(query.shape[0], dtype=_ops.accumulator_dtype(query.dtype))
    return lse, lse.new_empty(query.shape if want_query_grad else (0,))


@torch.library.custom_op("imix_aug::ring_row_logsumexp_key_grad", mutates_args=())
def _ring_key_grad_op(
    query: Tensor, key: Tensor, excluded: Tensor | None, lse: Tensor, weight: Tensor, group_name: str
) -> Tensor:
    ring = _Ring(group_name)
    blocks = ring.pass_round(key)
    (own,) = next(blocks)
    under_way = ring.send(_ops._key_grad_op(query, own, excluded, lse, weight), tag=1)
    for (block,) in blocks:
        grad = _ops._key_grad_op(query, block, None, lse, weight)
        (so_far,) = under_way.wait()  # What other ranks added arrived while this one computed its own share.
        under_way = ring.send(grad.add_(so_far), tag=1)
    (complete,) = under_way.wait()
    return complete


@_ring_key_grad_op.register_fake
def _(query: Tensor, key: Tensor, excluded: Tensor | None, lse: Tensor, weight: Tensor, group_name: str) -> Tensor:
    return key.new_empty(key.shape, dtype=lse.dtype)


class _RingClassSums(torch.autograd.Function):
    """Sum the rows of each row's class. Sharing a class is symmetric between rows, so the gradient is the same sum."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, classes: Tensor, group_name: str) -> Tensor:
        ctx.save_for_backward(classes)
        ctx.group_name = group_name
        sums: Tensor = _ring_class_sums_op(rows, classes, group_name)
        return sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (classes,) = ctx.saved_tensors
        return _ring_class_sums_op(grad.contiguous(), classes, ctx.group_name), None, None


@torch.library.custom_op("imix_aug::ring_class_sums", mutates_args=())
def _ring_class_sums_op(rows: Tensor, classes: Tensor, group_name: str) -> Tensor:
    total = torch.zeros_like(rows)
    for block, of_block in _Ring(group_name).pass_round(rows, classes):
        total += class_sums(block, of_block, classes)
    return total


@_ring_class_sums_op.register_fake
def _(rows: Tensor, classes: Tensor, group_name: str) -> Tensor:
    return torch.empty_like(rows)
