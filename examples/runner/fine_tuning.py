"""Train an encoder and a classifier on top of it with the labels that there are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.data.dataset import Dataset, take
from runner.evaluate import extract_features

BATCH = 128


def fine_tune(
    encoder: nn.Module,
    data: Dataset,
    to_input: Callable[[Tensor], Tensor],
    rows: Tensor,
    *,
    steps: int,
    rate: float,
    seed: int = 0,
) -> float:
    """Train a copy of the encoder on the labelled rows; return the accuracy on the test rows."""
    torch.manual_seed(seed)
    net = nn.Sequential(copy.deepcopy(encoder), nn.Linear(encoder.features, len(data.classes))).to(rows.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    net.train()
    for some in islice(batches(rows), steps):
        loss = F.cross_entropy(net(to_input(take(data.train_x, some).to(some.device))), data.train_y[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    logits = extract_features(net, data.test_x, to_input)
    return (logits.argmax(1) == data.test_y).double().mean().item()


def steps_per_epoch(rows: int) -> int:
    """How many whole batches so many rows fill; fewer rows than a batch are one of their own."""
    return rows // min(BATCH, rows)


def batches(rows: Tensor, size: int = BATCH, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """The rows in a new order each epoch, whole batches alone, without end."""
    size = min(size, len(rows))
    while True:
        order = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
        yield from order[: len(rows) // size * size].split(size)
