"""How fast a run goes, and how much of its time is spent outside the network."""

from __future__ import annotations

import time

import torch
from torch import nn


class Pace:
    """Time every step, and the part of it before the network is called: drawing, augmenting, saving.

    On CUDA the marks are events in the stream that are read later, so that nothing waits for them.
    """

    KEPT = ("rows", "seconds", "cpu_seconds", "outside")  # by a checkpoint

    def __init__(self, network: nn.Module, device: torch.device, batch_size: int) -> None:
        self.on_cuda, self.batch_size = device.type == "cuda", batch_size
        self.rows, self.seconds, self.cpu_seconds, self.outside = 0, 0.0, 0.0, 0.0
        self._marks: list[tuple] = []
        network.register_forward_pre_hook(self._enter)

    def start(self) -> None:
        """Count from here on."""
        self._ended = self._entered = self._mark()
        self._cpu = time.process_time()

    def step(self) -> None:
        """Note that a step is done."""
        now = self._mark()
        self._marks.append((self._ended, self._entered, now))
        self._ended = now
        if len(self._marks) >= 100:
            self._read()

    def summary(self) -> dict[str, float]:
        """What is written beside the results of a run."""
        self._read()
        return {
            "seconds": round(self.seconds, 2),
            "cpu_seconds": round(self.cpu_seconds, 2),
            "rows_per_second": round(self.rows / max(self.seconds, 1e-9), 1),
            "outside_network": round(self.outside / max(self.seconds, 1e-9), 4),
        }

    def __str__(self) -> str:
        found = self.summary()
        return f"{found['rows_per_second']:,.0f} rows/s, {found['outside_network']:.0%} of the time outside the network"

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        self._read()
        return {name: getattr(self, name) for name in self.KEPT}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Count on from a checkpoint."""
        vars(self).update({name: state[name] for name in self.KEPT})

    def _enter(self, *_: object) -> None:
        self._entered = self._mark()

    def _read(self) -> None:
        if not self._marks:
            return
        if self.on_cuda:
            torch.cuda.synchronize()
        for began, entered, ended in self._marks:
            self.seconds += self._between(began, ended)
            self.outside += self._between(began, entered)
        self.rows += self.batch_size * len(self._marks)
        self._marks.clear()
        now = time.process_time()
        self.cpu_seconds, self._cpu = self.cpu_seconds + now - self._cpu, now

    def _mark(self):
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, first, second) -> float:
        return first.elapsed_time(second) / 1000 if self.on_cuda else second - first
