"""The paper's linear probe: a classifier trained by SGD at seven rates, the best of which it chose on the test rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

EPOCHS = 100


@dataclass(frozen=True)
class Schedule:
    """The rates to try, and how they fall. The batch does not scale them: nor does the paper's of 512 on Covertype."""

    rates: tuple[int, ...] = (1, 3, 5, 10, 30, 50, 70)
    milestones: tuple[int, ...] = (80, 90, 95)
    decay: float = 0.2


def sgd_probe(
    epoch_of_features: Callable[[], Tensor],
    train_y: Tensor,
    test: Tensor,
    test_y: Tensor,
    *,
    batch_size: int = 256,
    schedule: Schedule = Schedule(),
) -> dict[int, float]:
    """Train one classifier per rate, and return the accuracies on the test rows, as fractions.

    ``epoch_of_features`` is called before each epoch and returns the features (N, F) of all training rows, in order,
    not standardised: it may augment them anew. The classifiers see the same batches and are apart otherwise: weights
    drawn with deviation 0.01, biases zero, momentum 0.9, no weight decay.
    """
    classes = int(max(train_y.max(), test_y.max())) + 1
    generator = torch.Generator().manual_seed(0)
    weights = [0.01 * torch.randn(classes, test.shape[1], generator=generator) for _ in schedule.rates]
    probes = [(w.to(test).requires_grad_(), test.new_zeros(classes).requires_grad_()) for w in weights]
    optimizer = torch.optim.SGD(
        [{"params": probe, "lr": rate} for probe, rate in zip(probes, schedule.rates, strict=True)], lr=1, momentum=0.9
    )
    fall = torch.optim.lr_scheduler.MultiStepLR(optimizer, schedule.milestones, schedule.decay)
    for _ in range(EPOCHS):
        train = epoch_of_features()
        order = torch.randperm(len(train), generator=generator).to(train.device)
        for rows in order.split(batch_size):
            x, y = train[rows], train_y[rows]
            loss = sum(F.cross_entropy(F.linear(x, *probe), y) for probe in probes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        fall.step()
    with torch.no_grad():
        return {
            rate: (F.linear(test, *probe).argmax(1) == test_y).double().mean().item()
            for rate, probe in zip(schedule.rates, probes, strict=True)
        }
