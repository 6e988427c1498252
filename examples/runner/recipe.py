"""The paper's training recipe: what mixes, what descends, and how fast."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from imix_aug import IMix, InputMix, VirtualLabels


def build_mix(name: str, alpha: float, *, table: bool = False) -> nn.Module | None:
    """Build i-Mix by its name on the command line; ``none`` trains without.

    In a ``table`` (N, columns), cutmix pastes a span of neighbouring columns.
    """
    if name == "none":
        return None
    imix = IMix(alpha, name)
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
    """SGD whose rate is in proportion to the batch, warms up for ten epochs or a tenth, and falls as a cosine.

    With ``milestones`` (epochs) it falls to a tenth at each of them instead.
    """
    trained = [p for p in parameters if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=lr * batch_size / 256, momentum=0.9, weight_decay=weight_decay)
    steps = epochs * steps_per_epoch
    warmup = max(1, round(steps * min(10 / epochs, 0.1)))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if milestones:
            return 0.1 ** sum(step >= milestone * steps_per_epoch for milestone in milestones)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
