"""Several processes that train as one: who each is, and the few words they exchange. Alone, all of it is nothing."""

from __future__ import annotations

import argparse
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

from common.dataset import DataError


def join_ranks(args: argparse.Namespace) -> None:
    """Join the processes that ``torchrun`` started; each gets a GPU of its own, or all share the CPU."""
    args.ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if args.ranks > 1:
        local = int(os.environ["LOCAL_RANK"])
        if args.device == "auto":
            args.device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
        elif args.device == "cuda":
            args.device = f"cuda:{local}"
        elif args.device != "cpu":
            raise DataError(f"--device {args.device}: with torchrun wanted auto, cuda (a GPU a process) or cpu")
        if args.device != "cpu" and local >= torch.cuda.device_count():
            raise DataError(f"torchrun: more processes than the {torch.cuda.device_count()} GPU(s) here")
        if args.device != "cpu":
            torch.cuda.set_device(args.device)
        if not dist.is_initialized():
            # The probe of rank 0 may take its time while the others wait for the next run.
            backend = "gloo" if args.device == "cpu" else "cpu:gloo,cuda:nccl"
            dist.init_process_group(backend, timeout=timedelta(hours=6))
            atexit.register(_leave_ranks)
    _refuse_norm(args)


def _leave_ranks() -> None:
    if dist.is_initialized():  # whoever imported the example may have left before
        dist.destroy_process_group()


def refuse_uneven_batch(args: argparse.Namespace) -> None:
    """Every process takes the same share of a batch."""
    if args.batch_size % args.ranks or args.batch_size < 2 * args.ranks:
        raise DataError(f"--batch-size {args.batch_size}: wanted a multiple of the {args.ranks} processes, 2 rows each")


def _refuse_norm(args: argparse.Namespace) -> None:
    if args.bn is None:
        return
    if args.ranks == 1:
        raise DataError(f"--bn {args.bn}: one process has one batch; start several with torchrun")
    if args.bn == "sync" and args.device == "cpu":
        raise DataError("--bn sync: torch's SyncBatchNorm works on GPUs only; wanted shuffle or local on a CPU")
    if args.bn == "shuffle" and args.method not in ("moco", "byol"):
        raise DataError(f"--bn shuffle: shuffles what the momentum copy sees, and {args.method} has none")


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
    if world_size() > 1 and not is_main():
        dist.barrier()
    yield
    if world_size() > 1 and is_main():
        dist.barrier()


def meet() -> None:
    """Wait until all are here: what rank 0 has written can be read."""
    if world_size() > 1:
        dist.barrier()


def spread(method: nn.Module, args: argparse.Namespace, seed: int) -> nn.Module:
    """Average the gradients over the processes, and let each draw its own augmentations and lambdas."""
    if world_size() == 1:
        return method
    if args.bn == "sync":
        method = nn.SyncBatchNorm.convert_sync_batchnorm(method)
    # Buffers stay with their rank: running statistics play no part in training, and all queues are alike anyway.
    devices = None if args.device.type == "cpu" else [args.device]
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


def ask_main(answer: bool) -> bool:
    """What rank 0 answers: clocks differ, and all must save at the same step."""
    if world_size() == 1:
        return answer
    word = torch.tensor(int(answer))
    dist.broadcast(word, 0)
    return bool(word)


def gather(thing: Any) -> list[Any]:
    """The things of all ranks."""
    if world_size() == 1:
        return [thing]
    things = [None] * world_size()
    dist.all_gather_object(things, thing)
    return things


@torch.no_grad()
def shuffled(net: nn.Module, x: Tensor) -> Tensor:
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
