"""Rows of all ranks, gradients included."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


def world(process_group: dist.ProcessGroup | None) -> tuple[int, int]:
    """Return this process's rank and the number of ranks; one rank where torch.distributed was not initialised."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(process_group), dist.get_world_size(process_group)


def gather_rows(rows: Tensor, process_group: dist.ProcessGroup | None = None) -> Tensor:
    """Concatenate the rows of all ranks, in the order of the ranks; a row's gradient is summed over them.

    Every rank must bring the same number of rows: a loss over uneven batches would weight the ranks unevenly too.
    """
    if world(process_group)[1] == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows, process_group)
    return gathered


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, process_group):
        ctx.process_group = process_group
        size = dist.get_world_size(process_group)
        gathered = rows.new_empty((size * rows.shape[0], *rows.shape[1:]))
        dist.all_gather_into_tensor(gathered, rows.contiguous(), group=process_group)
        return gathered

    @staticmethod
    def backward(ctx, grad):
        size = dist.get_world_size(ctx.process_group)
        own = grad.new_empty((grad.shape[0] // size, *grad.shape[1:]))
        dist.reduce_scatter_tensor(own, grad.contiguous(), group=ctx.process_group)
        return own, None
