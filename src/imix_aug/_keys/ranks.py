"""The keys of all ranks: gathered, or sent round a ring where a rank could not hold them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

from imix_aug._cross_entropy.columns import LeftOut, Positives
from imix_aug._keys.class_sums import class_sums, with_ones
from imix_aug._keys.keys import Keys, OwnKeys

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Above this many bytes of gathered keys, and as many of their gradients, the ring's second sweep is the lesser cost.
RING_BYTES = 1 << 30


@dataclass(frozen=True)
class GatheredKeys:
    """The keys of all ranks, this one's beginning at row ``first``."""

    key: Tensor
    first: int
    process_group: ProcessGroup | None

    def soft_cross_entropy(
        self, query: Tensor, negatives: Tensor | None, positives: Positives, *, left_out: LeftOut, **how: Any
    ) -> Tensor:
        """Contrast the queries with the keys of all ranks and the negatives of this one."""
        left_out = left_out.shifted(self.first)
        if left_out.key_ids is not None:
            left_out = left_out._replace(key_ids=all_gather(left_out.key_ids, self.process_group))
        keys = OwnKeys(self.key)
        return keys.soft_cross_entropy(query, negatives, positives.shifted(self.first), left_out=left_out, **how)

    def class_sums(self, classes: Tensor) -> Tensor:
        """Sum the keys of each row's class, whichever rank holds them, and count them."""
        return class_sums(with_ones(self.key), gather(classes, self.process_group), classes)


def keys_of_all(key: Tensor, process_group: ProcessGroup | None, travelling: tuple[bool, ...] = ()) -> Keys:
    """Return the keys of all ranks, gathered or on the ring; of a single rank, its own."""
    rank, size = world(process_group)
    if size == 1:
        return OwnKeys(key)
    refuse_uneven(key, process_group, travelling)
    if size * key.numel() * key.element_size() <= RING_BYTES:
        return GatheredKeys(gather(key, process_group), rank * key.shape[0], process_group)
    from imix_aug._keys.ring import RingKeys

    return RingKeys(key, group_name(process_group))


def gather_keys(
    rows: Tensor, ids: Tensor | None, process_group: ProcessGroup | None, travelling: tuple[bool, ...]
) -> tuple[Tensor, Tensor | None, int]:
    """Concatenate the keys of all ranks and their ids; return with them the row at which this rank's begin."""
    rank, size = world(process_group)
    if size == 1:
        return rows, ids, 0
    refuse_uneven(rows, process_group, travelling)
    ids = None if ids is None else all_gather(ids, process_group)
    return gather(rows, process_group), ids, rank * rows.shape[0]


def gather_rows(rows: Tensor, process_group: ProcessGroup | None = None) -> Tensor:
    """Concatenate the rows of all ranks, in the order of the ranks; a row's gradient is summed over them."""
    if world(process_group)[1] == 1:
        return rows
    refuse_uneven(rows, process_group)
    return gather(rows, process_group)


def world(process_group: ProcessGroup | None) -> tuple[int, int]:
    """Return this process's rank and the number of ranks; one rank where torch.distributed was not initialised."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    if process_group is not None and not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(  # A rank outside gets a stand-in for the group that ``new_group`` made.
            f"process_group must be a group or a mesh of one dimension that holds this rank, got {process_group!r}"
        )
    return dist.get_rank(process_group), dist.get_world_size(process_group)


def refuse_uneven(rows: Tensor, process_group: ProcessGroup | None, travelling: tuple[bool, ...] = ()) -> None:
    """Refuse, on all ranks alike, rows that differ between the ranks in number, width, dtype or need of a gradient.

    The same goes for what else travels. It would hang or garble the collectives that follow. One integer per rank
    tells. On the CPU the host reads it; elsewhere, and in a compiled graph, that would be a wait, so the device asserts
    that all are alike.
    """
    wants_grad = rows.requires_grad and torch.is_grad_enabled()
    n, d = rows.shape
    flags = sum(int(given) << place for place, given in enumerate((wants_grad, *travelling)))
    fact = (n << 27) + (d << 7) + (_DTYPES.index(rows.dtype) << 4) + flags  # torch 2.4 knows no | of symbolic integers
    own = torch.full((1,), fact, dtype=torch.int64, device=rows.device)
    facts = all_gather(own, process_group)
    if rows.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(  # pyright: ignore[reportPrivateImportUsage]
            (facts == own).all(),
            "gather_distributed=True needs equal batches on all ranks, of one width and dtype, "
            "and keys that need a gradient, ids and a weighted mean on all or none",
        )
        return
    for wanted, got, of in _FACTS:
        values = [of(each) for each in facts.tolist()]
        if len(set(values)) > 1:
            shown = got.format(", ".join(map(str, values)))
            raise ValueError(
                f"gather_distributed=True needs {wanted}, got {shown} on ranks 0 to {len(values) - 1}"
                + (": drop an uneven last batch" if "rows" in got else "")
            )


# What else the losses exchange: ids, the weights of a weighted mean, and these weights' gradients.
TRAVELLING = ("ids", "a weighted mean", "weights that need a gradient")
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_FACTS: tuple[tuple[str, str, Callable[[int], object]], ...] = (
    ("equal batches on all ranks", "{} rows", lambda fact: fact >> 27),
    ("embeddings of one width on all ranks", "{} columns", lambda fact: fact >> 7 & (1 << 20) - 1),
    ("embeddings of one dtype on all ranks", "{}", lambda fact: _DTYPES[fact >> 4 & 7]),
    ("keys that need a gradient on all ranks or on none", "requires_grad {}", lambda fact: bool(fact & 1)),
    *(
        (f"{name} on all ranks or on none", "{}", lambda fact, place=place: bool(fact >> place & 1))
        for place, name in enumerate(TRAVELLING, start=1)
    ),
)


def mean_over_ranks(value: Tensor, process_group: ProcessGroup | None) -> Tensor:
    """Return the mean of a number over the ranks."""
    if world(process_group)[1] == 1:
        return value
    return gather(value.view(1), process_group).mean()


def gather(rows: Tensor, process_group: ProcessGroup | None) -> Tensor:
    """Concatenate the rows of all ranks, which are known to be even."""
    if not (rows.requires_grad and torch.is_grad_enabled()):
        return all_gather(rows, process_group)
    return _GatherRows.apply(rows, process_group)


def all_gather(rows: Tensor, process_group: ProcessGroup | None) -> Tensor:
    """Concatenate the rows of all ranks, as constants."""
    size = dist.get_world_size(process_group)
    gathered = rows.new_empty((size * rows.shape[0], *rows.shape[1:]))
    dist.all_gather_into_tensor(gathered, rows.contiguous(), group=process_group)
    return gathered


def reduce_scatter(rows: Tensor, process_group: ProcessGroup | None) -> Tensor:
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
        return all_gather(rows, process_group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return reduce_scatter(grad, ctx.process_group), None


def group_name(process_group: ProcessGroup | None) -> str:
    """Return the name by which an operator's schema can pass the group on."""
    group = dist.group.WORLD if process_group is None else process_group
    assert group is not None
    return group.group_name
