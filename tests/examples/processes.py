"""Processes that a test starts: several ranks, or one that ends in mid-run."""

import multiprocessing
import os
import socket
import sys

import pytest
import torch
from runner.steps import Steps

if sys.platform != "linux":
    pytest.skip("several processes are tested on Linux", allow_module_level=True)

CONTEXT = multiprocessing.get_context("forkserver")


def start(ranks, preloaded, target, *arguments):
    """Call ``target`` in as many processes, which find each other, and return how they ended."""
    # Every optimizer wants torch._dynamo, which takes longer to import than these runs to train.
    CONTEXT.set_forkserver_preload([preloaded, "pytest", "torch._dynamo"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [CONTEXT.Process(target=_as_rank, args=(rank, ranks, port, target, arguments)) for rank in range(ranks)]
    for child in children:
        child.start()
    for child in children:
        child.join(300)
        child.kill()
    return [child.exitcode for child in children]


def _as_rank(rank, ranks, port, target, arguments):
    torch.set_num_threads(1)
    if ranks > 1:
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
        os.environ.update({key: str(value) for key, value in where.items()})
    target(*arguments)


def end_at(step):
    """End this process with 3 when it has recorded so many steps; None: let it be."""
    if step is None:
        return
    record, steps = Steps.record, []

    def stop(loop, loss):
        record(loop, loss)
        steps.append(loss)
        if len(steps) == step:
            os._exit(3)

    Steps.record = stop
