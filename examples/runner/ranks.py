"""Several processes that train as one: who each is, and the few words they exchange. Alone, all of it is nothing."""

from __future__ import annotations

import atexit
import contextlib
import os
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from runner.device import pick_device
from runner.errors import Refused


def join_ranks(name: str) -> tuple[torch.device, int]:
    """Join the processes that ``torchrun`` started; return this one's device and how many they are.

    ``name`` is what ``--device`` says. Each process gets a GPU of its own, or all share the CPU.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        return pick_device(name), 1
    if name not in ("auto", "cuda", "cpu"):
        raise Refused(f"--device {name}: with torchrun wanted auto, cuda (a GPU per process) or cpu")
    local = int(os.environ["LOCAL_RANK"])
    device = torch.device("cpu")
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        if local >= torch.cuda.device_count():
            raise Refused(f"torchrun: more processes than the {torch.cuda.device_count()} GPU(s) here")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # The probe of rank 0 may take its time while the others wait for the next run.
        backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, timeout=timedelta(hours=6))
        atexit.register(_leave_ranks)
    return device, ranks


def _leave_ranks() -> None:
    if dist.is_initialized():  # whoever imported the example may have left before
        dist.destroy_process_group()


def refuse_norm(norm: str | None, method: str, device: torch.device, ranks: int) -> None:
    """Refuse a ``--bn`` that says nothing here."""
    if norm is None:
        return
    if ranks == 1:
        raise Refused(f"--bn {norm}: one process has one batch; start several with torchrun")
    if norm == "sync" and device.type == "cpu":
        raise Refused("--bn sync: torch's SyncBatchNorm works on GPUs only; wanted shuffle or local on a CPU")
    if norm == "shuffle" and method not in ("moco", "byol"):
        raise Refused(f"--bn shuffle: shuffles what the momentum copy sees, and {method} has none")


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes train."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the one process that evaluates, prints and writes."""
    return rank() == 0


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Let rank 0 go first, so that it downloads and the others find what it has put there."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def barrier() -> None:
    """Wait until all are here: what rank 0 has written can be read."""
    if world_size() > 1:
        dist.barrier()


def wrap_in_ddp(method: nn.Module, device: torch.device, *, sync_norm: bool, seed: int) -> nn.Module:
    """Average the gradients over the processes, and let each draw its own augmentations and lambdas."""
    if world_size() == 1:
        return method
    if sync_norm:
        method = nn.SyncBatchNorm.convert_sync_batchnorm(method)
    # Buffers stay with their rank: running statistics play no part in training, and all queues are alike anyway.
    devices = None if device.type == "cpu" else [device]
    with warnings.catch_warnings():  # the option has a new name, which older releases do not know
        warnings.simplefilter("ignore", FutureWarning)
        method = DistributedDataParallel(method, device_ids=devices, broadcast_buffers=False)
    torch.manual_seed(seed * 1_000_003 + rank())
    return method


def my_share(batch: Tensor) -> Tensor:
    """This rank's rows of a batch."""
    return batch.chunk(world_size())[rank()]


def average(values: Tensor) -> Tensor:
    """The mean over the ranks."""
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return values


def as_main_decides(decision: int) -> int:
    """Do on all ranks what rank 0 decides: clocks differ, and all must save at the same step."""
    if world_size() == 1:
        return decision
    flag = torch.tensor(decision)
    dist.broadcast(flag, 0)
    return int(flag)


def gather(thing: Any) -> list[Any]:
    """The things of all ranks."""
    if world_size() == 1:
        return [thing]
    things = [None] * world_size()
    dist.all_gather_object(things, thing)
    return things


@torch.no_grad()
def apply_shuffled(net: nn.Module, x: Tensor) -> Tensor:
    """Apply ``net`` to a share drawn from the batches of all ranks, so that its statistics give no query away."""
    whole = torch.cat(_all_rows(x))
    order = torch.randperm(len(whole), device=x.device)
    dist.broadcast(order, 0)
    out = torch.cat(_all_rows(net(my_share(whole[order]))))
    return my_share(out[order.argsort()])


def _all_rows(x: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return parts
