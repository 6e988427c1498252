"""The paper's training recipe: what mixes, what descends, and how fast."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from imix_aug import IMix, InputMix, VirtualLabels


def build_mix(name: str, alpha: float) -> IMix | None:
    """Build i-Mix by its name on the command line; ``none`` trains without."""
    return None if name == "none" else IMix(alpha, name)


class Columns(nn.Module):
    """Let cutmix paste a span of neighbouring columns: it takes a row of a table for a series of one channel."""

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
    args: argparse.Namespace, method: nn.Module, rows: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """SGD whose rate is in proportion to the batch, warms up for ten epochs or a tenth, and falls as a cosine.

    With ``--milestones`` it falls to a tenth at each of them instead.
    """
    steps = args.epochs * (rows // args.batch_size)
    trained = [p for p in method.parameters() if p.requires_grad]
    rate = args.lr * args.batch_size / 256
    optimizer = torch.optim.SGD(trained, lr=rate, momentum=0.9, weight_decay=args.weight_decay)
    warmup = max(1, round(steps * min(10 / args.epochs, 0.1)))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if args.milestones:
            return 0.1 ** sum(step >= milestone * steps // args.epochs for milestone in args.milestones)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def autocast(args: argparse.Namespace) -> torch.autocast:
    """Open the precision that ``--amp`` asks for."""
    return torch.autocast(args.device.type, torch.bfloat16, enabled=args.amp == "bf16")
