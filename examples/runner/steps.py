"""The steps of a run, in order, and where it stands: progress, losses, checkpoints."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from runner.errors import Interrupted, Refused, catch_signals
from runner.pace import Pace
from runner.progress import Progress
from runner.ranks import as_main_decides, average, is_main, my_share, rank, world_size
from runner.report.board import Board
from runner.state.checkpoint import load_checkpoint, save_checkpoint
from runner.state.experiment import Experiment
from runner.state.place import refuse_without_room


class Steps:
    """Iterate over the row numbers of each batch; continue where a killed run stopped.

        steps = Steps(experiment, rows=len(x), parts={"method": net, "optimizer": optimizer}, board=board)
        for rows in steps:
            loss = ...
            steps.record(loss)

    The order of an epoch follows from the seed and the epoch's number alone, so the step is the whole position. What a
    step draws follows from the seed and the step's number: runs of one seed without and with i-Mix see the same views.
    ``parts`` are the objects whose ``state_dict`` makes up the rest of the run's state.
    """

    def __init__(self, experiment: Experiment, *, rows: int, parts: dict[str, Any], board: Board) -> None:
        settings = experiment.settings
        self.experiment, self.parts, self.board = experiment, parts, board
        self.rows, self.batch_size, self.device = rows, settings.batch_size, settings.device
        self.path, self.checkpoint_every = experiment.checkpoint, settings.checkpoint_every
        # The last, smaller batch is left out: the loss depends on its size.
        self.steps_per_epoch = rows // settings.batch_size
        self.total = settings.epochs * self.steps_per_epoch
        self.step, self.pace = 0, Pace(parts["method"], settings.device, settings.batch_size)
        self.losses: list[float] = []  # the mean of each epoch
        self._recent: list[Tensor] = []  # on the device: reading one would wait for it
        self._epoch_loss = (0.0, 0)
        self._signal: int | None = None
        if is_main():
            refuse_without_room(self.path, checkpoint_size(parts["method"]))
        if not settings.resume:
            if is_main():
                self.path.unlink(missing_ok=True)
        elif self.path.exists():
            progress = load_checkpoint(self.path, experiment.configuration, parts, self.steps_per_epoch)
            self.step = progress["step"]
            self.pace.load_state_dict(progress["pace"])
            self.losses, self._epoch_loss = progress["losses"], tuple(progress["epoch_loss"])

    def __iter__(self) -> Iterator[Tensor]:
        saved, first = time.monotonic(), self.step
        self.pace.start()
        with Progress(self.experiment.title, total=self.total, start=self.step) as progress, catch_signals(self._stop):
            for _, rows in self.ahead():
                torch.manual_seed(self._seed_of_step())
                yield rows
                self._count_step()
                progress.advance(self.losses[-1] if self.losses else None)
                due = time.monotonic() - saved >= self.checkpoint_every or self.step == self.total
                decision = as_main_decides(self._signal or -due)  # a signal's number, or -1 to save and go on
                if decision:
                    self.save()
                    saved = time.monotonic()
                if decision > 0:
                    raise Interrupted(decision)
        if is_main() and self.step > first:
            print(f"{self.experiment.title}: {self.pace}", file=sys.stderr)

    def ahead(self) -> Iterator[tuple[int, Tensor]]:
        """The epoch and this rank's rows of each step that is still to come."""
        first, position = divmod(self.step, self.steps_per_epoch)
        for epoch in range(first, self.total // self.steps_per_epoch):
            for batch in self._order(epoch)[position:]:
                yield epoch, my_share(batch)
            position = 0

    def _count_step(self) -> None:
        self.pace.step()
        self.step += 1
        if self.step % self.steps_per_epoch == 0:
            self._read_losses()
            self.losses.append(self._epoch_loss[0] / self._epoch_loss[1])
            self._epoch_loss = (0.0, 0)
            rate = self.parts["optimizer"].param_groups[0]["lr"]
            self.board.scalars(self.step, loss=self.losses[-1], learning_rate=rate)

    def _stop(self, number: int, _frame: object) -> None:
        """Finish the step and save; whoever insists gets an end at once."""
        if self._signal is not None:
            raise Interrupted(number)
        self._signal = number

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
            "steps": self.total,
            "pace": self.pace.state_dict(),
            "losses": self.losses,
            "epoch_loss": list(self._epoch_loss),
        }
        save_checkpoint(self.path, self.experiment.configuration, progress, self.parts)

    def _order(self, epoch: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(self.experiment.seed * 1_000_003 + epoch)
        order = torch.randperm(self.rows, generator=generator).to(self.device)
        return order[: self.steps_per_epoch * self.batch_size].split(self.batch_size)

    def _seed_of_step(self) -> int:
        run = self.experiment.seed * world_size() + rank()
        return (run + 1) * 1_000_000_007 + self.step  # far from the seeds of the orders

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
            raise Refused(
                f"{self.experiment.title}: the loss became {values[bad[0]].item()} at step {step} of {self.total}{kept}"
            )
        self._epoch_loss = (self._epoch_loss[0] + values.sum().item(), self._epoch_loss[1] + len(values))


def checkpoint_size(method: nn.Module) -> int:
    """About how many bytes a checkpoint takes: weights, buffers, momentum, and the random states."""
    kept = [*method.parameters(), *method.buffers(), *(p for p in method.parameters() if p.requires_grad)]
    return (1 << 17) + sum(tensor.nbytes for tensor in kept)
