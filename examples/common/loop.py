"""The batches of a run, in order, and where it stands: progress, losses, checkpoints."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from common.board import Board
from common.checkpoint import load_checkpoint, save_checkpoint
from common.distributed import ask_main, average, is_main, my_share
from common.experiment import configuration, run_folder, run_title
from common.pace import Pace
from common.progress import Progress


class Diverged(Exception):
    """The loss is no number any more."""


class Loop:
    """Iterate over the row numbers of each batch; continue where a killed run stopped.

        loop = Loop(args, mix, seed, rows=len(x), parts={"net": net, "optimizer": optimizer})
        for rows in loop:
            loss = ...
            loop.record(loss)

    The order of an epoch follows from the seed and the epoch's number alone, so the step is the whole position.
    ``parts`` are the objects whose ``state_dict`` makes up the rest of the run's state.
    """

    def __init__(self, args: argparse.Namespace, mix: str, seed: int, *, rows: int, parts: dict[str, Any]) -> None:
        self.parts, self.config = parts, configuration(args, mix, seed)
        self.path, self.title = run_folder(args, mix, seed) / "checkpoint.pt", run_title(args, mix, seed)
        self.rows, self.batch_size, self.seed, self.device = rows, args.batch_size, seed, args.device
        self.steps_per_epoch = (
            rows // args.batch_size
        )  # the last, smaller batch is left out: the loss depends on its size
        self.steps = args.epochs * self.steps_per_epoch
        self.checkpoint_every = args.checkpoint_every
        self.board = Board(args, self.path.parent)
        self.step, self.pace = 0, Pace(parts["method"], args.device, args.batch_size)
        self.losses: list[float] = []  # the mean of each epoch
        self._recent: list[Tensor] = []  # on the device: reading one would wait for it
        self._epoch_loss = (0.0, 0)
        if not args.resume:
            if is_main():
                self.path.unlink(missing_ok=True)
        elif self.path.exists():
            progress = load_checkpoint(self.path, self.config, parts)
            self.step = progress["step"]
            self.pace.load_state_dict(progress["pace"])
            self.losses, self._epoch_loss = progress["losses"], tuple(progress["epoch_loss"])

    def __iter__(self) -> Iterator[Tensor]:
        saved, first = time.monotonic(), self.step
        self.pace.start()
        with Progress(self.title, total=self.steps, start=self.step) as progress:
            while self.step < self.steps:
                epoch, position = divmod(self.step, self.steps_per_epoch)
                for batch in self._order(epoch)[position:]:
                    yield my_share(batch)
                    self.pace.step()
                    self.step += 1
                    if self.step % self.steps_per_epoch == 0:
                        self._read_losses()
                        self.losses.append(self._epoch_loss[0] / self._epoch_loss[1])
                        self._epoch_loss = (0.0, 0)
                        rate = self.parts["optimizer"].param_groups[0]["lr"]
                        self.board.scalars(self.step, loss=self.losses[-1], learning_rate=rate)
                    progress.advance(self.losses[-1] if self.losses else None)
                    if ask_main(time.monotonic() - saved >= self.checkpoint_every or self.step == self.steps):
                        self.save()
                        saved = time.monotonic()
        if is_main() and self.step > first:
            print(f"{self.title}: {self.pace}", file=sys.stderr)

    def record(self, loss: Tensor) -> None:
        """Note the loss of a step; it is looked at once in a while, so that the device need not wait."""
        self._recent.append(loss.detach())
        if len(self._recent) >= 100:
            self._read_losses()

    def save(self) -> None:
        """Write a checkpoint, after making sure that it is a good one."""
        self._read_losses()
        progress = {
            "step": self.step,
            "steps": self.steps,
            "pace": self.pace.state_dict(),
            "losses": self.losses,
            "epoch_loss": list(self._epoch_loss),
        }
        save_checkpoint(self.path, self.config, progress, self.parts)

    def _order(self, epoch: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.rows, generator=generator).to(self.device)
        return order[: self.steps_per_epoch * self.batch_size].split(self.batch_size)

    def _read_losses(self) -> None:
        if not self._recent:
            return
        values = average(torch.stack(self._recent).double()).cpu()
        self._recent.clear()
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):
            # _read_losses runs before or after the step is counted; count from what this epoch has read so far.
            step = len(self.losses) * self.steps_per_epoch + self._epoch_loss[1] + int(bad[0]) + 1
            kept = f"; the last good checkpoint is {self.path}" if self.path.exists() else ""
            raise Diverged(
                f"{self.title}: the loss became {values[bad[0]].item()} at step {step} of {self.steps}{kept}"
            )
        self._epoch_loss = (self._epoch_loss[0] + values.sum().item(), self._epoch_loss[1] + len(values))
