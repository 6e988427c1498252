"""Keys sent round a ring of ranks, block after block, where a rank could not hold those of all."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.distributed_c10d import _resolve_process_group  # type: ignore[attr-defined]

from imix_aug._cross_entropy import sweeps
from imix_aug._cross_entropy.columns import LeftOut, Positives
from imix_aug._cross_entropy.operator import soft_cross_entropy
from imix_aug._keys.class_sums import class_sums, with_ones


@dataclass(frozen=True)
class RingKeys:
    """Keys that stay where they are: every rank sees those of the others pass by, block after block."""

    rows: Tensor
    group_name: str

    def soft_cross_entropy(
        self, query: Tensor, negatives: Tensor | None, positives: Positives, *, left_out: LeftOut, **how: Any
    ) -> Tensor:
        """Contrast the queries with the keys of all ranks and the negatives of this one."""
        return soft_cross_entropy(
            query, self.rows, negatives, positives, left_out=left_out, ring=self.group_name, **how
        )

    def class_sums(self, classes: Tensor) -> Tensor:
        """Sum the keys of each row's class, whichever rank holds them, and count them."""
        sums: Tensor = _RingClassSums.apply(with_ones(self.rows), classes, self.group_name)
        return sums


def sweep_keys(
    query: Tensor, key: Tensor, negatives: Tensor | None, left_out: LeftOut, wants_mean: bool, group_name: str
) -> tuple[Tensor, Tensor | None]:
    """Do as ``sweeps.sweep_keys`` does, over the keys of all ranks; what is left out by number is this rank's."""
    blocks = _Ring(group_name).pass_round(key, left_out.key_ids)
    own, _ = next(blocks)
    total, mean_key = sweeps.sweep_keys(query, own, negatives, left_out, wants_mean)
    for block, ids in blocks:
        passing = LeftOut(row_ids=left_out.row_ids, key_ids=ids)
        lse, mean_of_block = sweeps.sweep_keys(query, block, None, passing, wants_mean)
        merged = torch.logaddexp(total, lse)
        if mean_key is not None and mean_of_block is not None:
            anchor = torch.where(merged.isinf(), 0, merged)
            mean_key *= (total - anchor).exp_()[:, None]
            mean_key += mean_of_block.mul_((lse - anchor).exp_()[:, None])
        total = merged
    return total, mean_key


def key_gradient(
    query: Tensor,
    key: Tensor,
    columns: Tensor,
    left_out: LeftOut,
    level: Tensor,
    excess: Tensor,
    weight: Tensor,
    group_name: str,
) -> Tensor:
    """Do as ``sweeps.key_gradient`` does, for this rank's keys and the queries of all ranks."""
    ring = _Ring(group_name)
    blocks = ring.pass_round(key, left_out.key_ids)
    own, _ = next(blocks)
    of_own = sweeps.key_gradient(query, own, columns, left_out, level, excess, weight)
    under_way = ring.send(of_own, tag=1)
    for block, ids in blocks:
        passing = LeftOut(row_ids=left_out.row_ids, key_ids=ids)
        grad = sweeps.sweep_queries(query, block, passing, level, weight)
        (so_far,) = under_way.wait()  # What other ranks added arrived while this one computed its own share.
        under_way = ring.send(grad.add_(so_far), tag=1)
    (complete,) = under_way.wait()
    return complete


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

    def pass_round(self, own: Tensor, beside: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the tensors of this rank, then those of the rank before it, and so on, the next ones under way."""
        here = tuple(each.contiguous() for each in (own, beside) if each is not None)
        for place in range(self.size):
            under_way = self.send(*here) if place < self.size - 1 else None
            yield here[0], None if beside is None else here[1]
            if under_way is not None:
                here = under_way.wait()


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
        assert of_block is not None
        total += class_sums(block, of_block, classes)
    return total


@_ring_class_sums_op.register_fake
def _(rows: Tensor, classes: Tensor, group_name: str) -> Tensor:
    return torch.empty_like(rows)
