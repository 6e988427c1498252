"""The keys that queries are contrasted with: this rank's, or those of all ranks, gradients included."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import ProcessGroup

from imix_aug._cross_entropy import operator as _ops
from imix_aug._keys.class_sums import class_sums, mean, with_ones
from imix_aug._keys.ring import RingKeys

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
        return mean(class_sums(with_ones(self.rows), of_rows, classes))


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
