"""The silent gradient faults of the field, put into our own loss, queue or mix: each trains on and says nothing."""

import contextlib

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from imix_aug import NegativeQueue
from imix_aug._keys import ranks
from imix_aug._mixing import generators


@contextlib.contextmanager
def replaced(owner, name, value):
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def gather_without_gradient():
    """``all_gather`` returns constants: keys on other ranks, and one's own, learn nothing."""
    return replaced(ranks, "gather", lambda rows, group: ranks.all_gather(rows.detach(), group))


def gather_with_own_gradient_alone():
    """The common repair puts this rank's rows back: what other ranks' losses say about them is still lost."""

    def gather(rows, process_group):
        gathered, rank = ranks.all_gather(rows.detach(), process_group), dist.get_rank(process_group)
        blocks = list(gathered.split(rows.shape[0]))
        return torch.cat([*blocks[:rank], rows, *blocks[rank + 1 :]])

    return replaced(ranks, "gather", gather)


def gradient_divided_by_the_world_size():
    """The gathered keys' gradient is averaged over the ranks where it has to be summed: DDP averages it once more."""
    whole = ranks.reduce_scatter
    return replaced(ranks, "reduce_scatter", lambda rows, group: whole(rows, group) / dist.get_world_size(group))


def loss_averaged_twice():
    """The loss is divided by the world size, and DDP averages its gradient once more."""
    forward = DistributedDataParallel.forward
    return replaced(
        DistributedDataParallel, "forward", lambda self, *args: forward(self, *args) / dist.get_world_size()
    )


def queue_that_differs_across_ranks():
    """Each rank enqueues its own keys where all ranks' were asked for."""
    enqueue = NegativeQueue.enqueue
    return replaced(NegativeQueue, "enqueue", lambda self, keys, *, gather_distributed=False: enqueue(self, keys))


def generator_state_lost_on_recomputation():
    """The recomputation under activation checkpointing draws on, instead of what the forward pass drew."""

    def ready(generator):
        if torch._C._current_graph_task_id() != -1 or generators._in_checkpoint():
            torch.empty((), dtype=torch.int64).random_()  # as ours does, so that the draws after it are the same
        return generator

    return replaced(generators, "ready", ready)
