"""Any nested batch with i-Mix: all tensors of a dict get the same partners and lambdas.

The rows here are patients: numbers, a time series each, and a category that only an embedding can mix.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from imix_aug import IMix, imix_nce_loss

Batch = dict[str, Tensor]


class Encoder(nn.Module):
    """One branch a modality; the category comes as its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.ward = nn.Embedding(5, 8)
        self.numbers = nn.Linear(6, 16)
        self.series = nn.Sequential(nn.Conv1d(2, 8, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
        self.projection = nn.Sequential(nn.ReLU(), nn.Linear(16 + 8 + 8, 32))

    def embed(self, batch: Batch) -> Batch:
        """Make all of the batch continuous: an index cannot be mixed, its embedding can."""
        return {**batch, "ward": self.ward(batch["ward"])}

    def forward(self, batch: Batch) -> Tensor:
        parts = [self.numbers(batch["numbers"]), self.series(batch["series"]), batch["ward"]]
        return self.projection(torch.cat(parts, dim=1))


def two_views(steps: int, batch_size: int = 64) -> Iterator[tuple[Batch, Batch]]:
    """Batches of 512 synthetic patients in two noisy views."""
    frequency, phase = torch.rand(512, 1), torch.rand(512, 1)
    time = torch.arange(40.0)
    series = torch.stack([torch.sin(frequency * time + phase), torch.cos(frequency * time)], dim=1)
    numbers, ward = torch.cat([frequency, phase, torch.randn(512, 4)], dim=1), torch.randint(5, (512,))
    for _ in range(steps):
        rows = torch.randperm(512)[:batch_size]
        yield tuple(
            {
                "numbers": numbers[rows] + 0.1 * torch.randn(batch_size, 6),
                "series": series[rows] + 0.1 * torch.randn(batch_size, 2, 40),
                "ward": ward[rows],
            }
            for _ in range(2)
        )


def main(steps: int = 200) -> list[float]:
    """Train; return the losses of all steps."""
    net = Encoder()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    imix = IMix(alpha=1.0)  # i-Mix
    losses = []
    for view_1, view_2 in two_views(steps):
        x, labels = imix(net.embed(view_1))  # i-Mix: a dict in, a dict out
        loss = imix_nce_loss(net(x), net(net.embed(view_2)), labels, temperature=0.2)  # i-Mix
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
