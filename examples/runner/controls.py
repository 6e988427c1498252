"""What a comparison is worth nothing without: the input as it is, and the network before it has learnt."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.data.dataset import take
from runner.domain import Task
from runner.evaluate import evaluate

PASSES = 30  # running statistics forget their start with 0.9 to the power of these
MOST = 4096  # numbers per row that a probe is given raw


def raw_input(task: Task, probe: str) -> dict[str, Any]:
    """Judge what the network is shown as if it were features."""
    return evaluate(Raw(), task.data, task.to_input, probe)


def untrained(task: Task, seed: int, batch_size: int, device: torch.device, probe: str) -> dict[str, Any]:
    """Judge the features of the weights that a run with this seed begins with, batch statistics settled."""
    return evaluate(untrained_encoder(task, seed, batch_size, device), task.data, task.to_input, probe)


def untrained_encoder(task: Task, seed: int, batch_size: int, device: torch.device) -> nn.Module:
    """The weights that a run with this seed begins with, batch statistics settled."""
    torch.manual_seed(seed)
    encoder = task.build_encoder().to(device)
    settle_statistics(encoder, task, batch_size, device)
    return encoder


class Raw(nn.Module):
    """Rows as they are; large pictures are averaged down to 32 x 32."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4 and x[0].numel() > MOST:
            x = F.adaptive_avg_pool2d(x, 32)
        return x.flatten(1)


@torch.no_grad()
def settle_statistics(encoder: nn.Module, task: Task, batch_size: int, device: torch.device) -> None:
    """Let batch normalisation see the data, for its running statistics begin at none."""
    encoder.train()
    for _ in range(PASSES):
        rows = torch.randint(len(task.data.train_y), (batch_size,))
        encoder(task.to_input(take(task.data.train_x, rows).to(device)))
