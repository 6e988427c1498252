"""The paper's training recipe: what mixes, what descends, and how fast."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from imix_aug import IMix, InputMix, VirtualLabels


def build_mix(name: str, alpha: float, lambda_per: str | None = None, *, table: bool = False) -> nn.Module | None:
    """Build i-Mix by its name on the command line; ``none`` trains without.

    ``lambda_per`` says "row" or "batch", None leaves it to the mode. In a ``table`` (N, columns), cutmix pastes a span
    of neighbouring columns.
    """
    if name == "none":
        return None
    imix = IMix(alpha, name, per_sample=None if lambda_per is None else lambda_per == "row")
    return Columns(imix) if table and name == "cutmix" else imix


class Columns(nn.Module):
    """Take each row of a table for a series of one channel."""

    def __init__(self, imix: IMix) -> None:
        super().__init__()
        self.imix = imix

    def forward(self, x: Tensor | tuple[Tensor, ...]) -> tuple[Tensor | tuple[Tensor, ...], VirtualLabels]:
        if isinstance(x, Tensor):
            mixed, labels = self.imix(x[:, None])
            return mixed[:, 0], labels
        mixed, labels = self.imix(tuple(view[:, None] for view in x))
        return tuple(view[:, 0] for view in mixed), labels


def build_inputmix(others: int) -> Callable[[Tensor], Tensor]:
    """Build InputMix with so many other rows; 0 leaves the input alone."""
    return InputMix(others) if others else nn.Identity()


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    batch_size: int,
    weight_decay: float,
    epochs: int,
    steps_per_epoch: int,
    milestones: Sequence[int] | None = None,
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """SGD whose rate is in proportion to the batch, with momentum 0.9, and its schedule, which steps per batch.

    From epoch to epoch the rate falls as a cosine, or with ``milestones`` (epochs) to a tenth at each of them. It first
    climbs, step by step, to what the schedule says at the end of the warm-up: 5 epochs, of more than 500 epochs 10, but
    never more than half of a run.
    """
    trained = [p for p in parameters if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=lr * batch_size / 256, momentum=0.9, weight_decay=weight_decay)
    warmup = int(min(5 if epochs <= 500 else 10, epochs / 2) * steps_per_epoch)

    def at(step: int) -> float:
        epoch = step // steps_per_epoch
        if milestones:
            return 0.1 ** sum(epoch >= milestone for milestone in milestones)
        return 0.5 * (1 + math.cos(math.pi * epoch / epochs))

    def factor(step: int) -> float:
        return at(step) if step >= warmup else at(warmup) * (step + 1) / warmup

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
