"""The keys of all ranks, gradients included: gathered, or sent round a ring where a rank could not hold them all."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import _resolve_process_group  # type: ignore[attr-defined]
from torch.nn import functional as F

from imix_aug import _ops

# Above this many bytes of gathered keys, and as many of their gradients, the ring's second sweep is the lesser cost.
RING_BYTES = 1 << 30


@dataclass(frozen=True)
class Keys:
    """Keys that this rank holds; its own begin at row ``first``, the others are those of ``process_group``."""

    rows: Tensor
    first: int
    process_group: ProcessGroup | None

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
        if excluded is not None:
            excluded = excluded + self.first
        return _ops.row_logsumexp(query, self.rows, negatives, excluded=excluded, dtype=dtype, summed=summed)

    def class_means(self, classes: Tensor) -> Tensor:
        """Return for each of this rank's classes the mean of its keys."""
        is_own = self.rows.shape[0] == classes.shape[0]
        of_rows = classes if is_own else _gather(classes, self.process_group)
        return _mean(_class_sums(_with_ones(self.rows), of_rows, classes))


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
        sums: Tensor = _RingClassSums.apply(_with_ones(self.rows), classes, self.group_name)
        return _mean(sums)


def choose_keys(rows: Tensor, gather_distributed: bool, process_group: ProcessGroup | None) -> Keys | RingKeys:
    """Return what queries are to be contrasted with: this rank's keys, or those of all ranks."""
    if not gather_distributed or _world(process_group)[1] == 1:
        return Keys(rows, 0, None)
    _refuse_uneven(rows, process_group)
    rank, size = _world(process_group)
    if size * rows.numel() * rows.element_size() > RING_BYTES:
        return RingKeys(rows, _group_name(process_group))
    return Keys(_gather(rows, process_group), rank * rows.shape[0], process_group)


def gather_rows(rows: Tensor, process_group: ProcessGroup | None = None) -> Tensor:
    """Concatenate the rows of all ranks, in the order of the ranks; a row's gradient is summed over them."""
    if _world(process_group)[1] == 1:
        return rows
    _refuse_uneven(rows, process_group)
    return _gather(rows, process_group)


def _world(process_group: ProcessGroup | None) -> tuple[int, int]:
    """Return this process's rank and the number of ranks; one rank where torch.distributed was not initialised."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(process_group), dist.get_world_size(process_group)


def _refuse_uneven(rows: Tensor, process_group: ProcessGroup | None) -> None:
    """Refuse, on all ranks alike, rows that differ between the ranks in number or in the need of a gradient.

    Uneven rows would hang or garble the collectives that follow. One integer a rank tells. On the CPU the host reads
    it; elsewhere, and in a compiled graph, that would be a wait, so the device asserts it.
    """
    wants_grad = rows.requires_grad and torch.is_grad_enabled()
    own = torch.full((1,), 2 * rows.shape[0] + int(wants_grad), dtype=torch.int64, device=rows.device)
    facts = _all_gather(own, process_group)
    if rows.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(  # pyright: ignore[reportPrivateImportUsage]
            (facts == own).all(),
            "gather_distributed=True needs equal batches on all ranks, and keys that need a gradient on all or none",
        )
        return
    counts, grads = zip(*(divmod(fact, 2) for fact in facts.tolist()), strict=True)
    if len(set(counts)) > 1:
        raise ValueError(
            f"gather_distributed=True needs equal batches on all ranks, got {', '.join(map(str, counts))} rows on "
            f"ranks 0 to {len(counts) - 1}: drop an uneven last batch"
        )
    if len(set(grads)) > 1:
        raise ValueError(
            "gather_distributed=True needs keys that need a gradient on all ranks or on none, got requires_grad "
            f"{', '.join(str(bool(grad)) for grad in grads)} on ranks 0 to {len(grads) - 1}"
        )


def _gather(rows: Tensor, process_group: ProcessGroup | None) -> Tensor:
    if not (rows.requires_grad and torch.is_grad_enabled()):
        return _all_gather(rows, process_group)
    gathered: Tensor = _GatherRows.apply(rows, process_group)
    return gathered


def _all_gather(rows: Tensor, process_group: ProcessGroup | None) -> Tensor:
    size = dist.get_world_size(process_group)
    gathered = rows.new_empty((size * rows.shape[0], *rows.shape[1:]))
    dist.all_gather_into_tensor(gathered, rows.contiguous(), group=process_group)
    return gathered


def _reduce_scatter(rows: Tensor, process_group: ProcessGroup | None) -> Tensor:
    """Sum over the ranks and return this rank's share of the rows."""
    size = dist.get_world_size(process_group)
    own = rows.new_empty((rows.shape[0] // size, *rows.shape[1:]))
    if rows.device.type == "cpu":  # Gloo has no reduce-scatter of its own: an exchange and a sum send as little.
        parts = torch.empty_like(rows, memory_format=torch.contiguous_format)
        dist.all_to_all_single(parts, rows.contiguous(), group=process_group)
        return parts.view(size, *own.shape).sum(dim=0)
    dist.reduce_scatter_tensor(own, rows.contiguous(), group=process_group)
    return own


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, process_group: ProcessGroup | None) -> Tensor:
        ctx.process_group = process_group
        return _all_gather(rows, process_group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _reduce_scatter(grad, ctx.process_group), None


def _group_name(process_group: ProcessGroup | None) -> str:
    """Return the name by which an operator's schema can pass the group on."""
    group = dist.group.WORLD if process_group is None else process_group
    assert group is not None
    name: str = group.group_name
    return name


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
        total += _class_sums(block, of_block, classes)
    return total


@_ring_class_sums_op.register_fake
def _(rows: Tensor, classes: Tensor, group_name: str) -> Tensor:
    return torch.empty_like(rows)


def _class_sums(rows: Tensor, of_rows: Tensor, classes: Tensor) -> Tensor:
    """Return for each of ``classes`` the sum of its rows; sorting finds the classes without asking the host."""
    ordered = classes.sort().values
    n = ordered.shape[0]
    slot = torch.searchsorted(ordered, of_rows)
    is_known = ordered[slot.clamp_max(n - 1)] == of_rows
    sums = rows.new_zeros(n + 1, rows.shape[1]).index_add(0, torch.where(is_known, slot, n), rows)
    return sums[torch.searchsorted(ordered, classes)]


def _with_ones(rows: Tensor) -> Tensor:
    """Add a column that counts the rows."""
    return F.pad(rows, (0, 1), value=1.0)


def _mean(sums: Tensor) -> Tensor:
    return sums[:, :-1] / sums[:, -1:]
