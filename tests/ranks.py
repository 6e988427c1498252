"""Worlds of processes that live as long as the test session: each test sends them a function to run on every rank."""

import contextlib
import tempfile
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing as mp


@contextlib.contextmanager
def ring(always):
    """Send keys round the ring always, or never."""
    from imix_aug._keys import ranks

    before, ranks.RING_BYTES = ranks.RING_BYTES, 0 if always else 1 << 60
    try:
        yield
    finally:
        ranks.RING_BYTES = before


@contextlib.contextmanager
def on_hosts(hosts):
    """Let each rank take itself for one that runs on the host of its number."""
    from imix_aug._cross_entropy import route

    kept, route._host = route._host, lambda: hosts[dist.get_rank()]
    route._known.clear()
    try:
        yield
    finally:
        route._host = kept
        route._known.clear()


class World:
    """``size`` processes joined by gloo. One in which a function failed is ended, and started anew when needed."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.processes = []

    def run(self, function, *args, timeout=300):
        """Call ``function(rank, size, *args)`` on every rank; return the results, or raise what a rank raised."""
        if not self.processes:
            self._start()
        for pipe in self.pipes:
            pipe.send((function, args))
        results = []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(timeout):
                self.stop()
                raise TimeoutError(f"rank {rank} of {self.size} hangs in {function.__name__}{args}")
            is_good, result = pipe.recv()
            results.append(result if is_good else AssertionError(f"rank {rank} of {self.size}:\n{result}"))
        for result in results:
            if isinstance(result, AssertionError):
                self.stop()
                raise result
        return results

    def stop(self):
        for pipe in self.pipes if self.processes else ():
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
        self.processes = []

    def _start(self):
        context = mp.get_context("spawn")
        file = Path(tempfile.mkdtemp(), "store").as_uri()
        pairs = [context.Pipe() for _ in range(self.size)]
        self.pipes = [ours for ours, _ in pairs]
        self.processes = [
            context.Process(target=_serve, args=(rank, self.size, file, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self.processes:
            process.start()


def _serve(rank, size, file, pipe):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=file, rank=rank, world_size=size)
    while (task := pipe.recv()) is not None:
        function, args = task
        torch.manual_seed(0)
        try:
            answer = True, function(rank, size, *args)
        except BaseException:
            answer = False, traceback.format_exc()
        pipe.send(answer)
    dist.destroy_process_group()
