"""Scikit-learn's digits, two noisy views at a time: data that every script in this folder can afford."""

from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


def images() -> Tensor:
    """All 1,797 digits, (1797, 1, 8, 8), from 0 to 1."""
    return torch.tensor(load_digits().images / 16, dtype=torch.float32).unsqueeze(1)


def view(batch: Tensor) -> Tensor:
    """A random view: noise, and a seventh of the pixels left out."""
    return nn.functional.dropout(batch + 0.1 * torch.randn_like(batch), p=1 / 7)


def two_views(steps: int, batch_size: int = 128) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of two views each."""
    data = images()
    for _ in range(steps):
        batch = data[torch.randperm(len(data))[:batch_size]]
        yield view(batch), view(batch)


def encoder(dim: int = 32) -> nn.Sequential:
    """A small encoder with its projection head."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, dim))
