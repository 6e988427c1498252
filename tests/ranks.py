"""Worlds of processes that live as long as the test session: each test sends them a function to run on every rank."""

import contextlib
import tempfile
import time
import traceback
from multiprocessing import connection
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
    """``size`` processes joined by gloo. Those in one of which a function failed are ended, and started anew."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.processes = []

    def run(self, function, *args, timeout=300):
        """Call ``function(rank, size, *args)`` on every rank; return the results, or raise what a rank raised."""
        if not self.processes:
            self._start()
        for pipe in self.pipes:
            pipe.send((function, args))
        return self._answers(timeout, f"{function.__name__}{args}")

    def _answers(self, timeout, what):
        answers, waiting, end = {}, dict(enumerate(self.pipes)), time.monotonic() + timeout
        while waiting and connection.wait(waiting.values(), max(0, end - time.monotonic())):
            for rank in [rank for rank, pipe in waiting.items() if pipe.poll()]:
                try:
                    answers[rank] = waiting.pop(rank).recv()
                except EOFError:
                    answers[rank] = False, "the process has ended"
                if not answers[rank][0]:  # Others may wait for this rank, and never end.
                    end = min(end, time.monotonic() + 2)
        failures = [f"rank {rank} of {self.size}:\n{text}" for rank, (is_good, text) in answers.items() if not is_good]
        if failures or waiting:
            self.stop(patience=0)
        if failures:
            raise AssertionError("\n".join(failures))
        if waiting:
            raise TimeoutError(f"rank {min(waiting)} of {self.size} hangs in {what}")
        return [answers[rank][1] for rank in range(self.size)]

    def stop(self, patience=5):
        for pipe in self.pipes if self.processes else ():
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self.processes:
            process.join(patience)
            if process.is_alive():
                process.kill()
                process.join()
        self.processes = []

    def _start(self):
        context = mp.get_context("forkserver")
        file = Path(tempfile.mkdtemp(), "store").as_uri()
        self.pipes, self.processes = [], []
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            self.pipes.append(ours)
            self.processes.append(context.Process(target=_serve, args=(rank, self.size, file, theirs), daemon=True))
            self.processes[-1].start()
            theirs.close()
        self._answers(600, "its start")


def _serve(rank, size, file, pipe):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=file, rank=rank, world_size=size)
    pipe.send((True, None))
    while (task := pipe.recv()) is not None:
        function, args = task
        torch.manual_seed(0)
        try:
            answer = True, function(rank, size, *args)
        except BaseException:
            answer = False, traceback.format_exc()
        pipe.send(answer)
    dist.destroy_process_group()
