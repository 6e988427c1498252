"""pytorch-metric-learning's SelfSupervisedLoss with i-Mix, around any loss that it supports."""

import torch
from digits import encoder, two_views
from pytorch_metric_learning.losses import MultiSimilarityLoss, NTXentLoss, SelfSupervisedLoss
from torch import nn

from imix_aug import IMix, IMixLoss


def train(loss: nn.Module, steps: int) -> list[float]:
    """Train an encoder with one of the library's losses."""
    net = encoder()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    imix = IMix(per_sample=False)  # i-Mix: the loss is one number per batch, so lambda is too
    criterion = IMixLoss(SelfSupervisedLoss(loss, symmetric=False))  # i-Mix
    losses = []
    for view_1, view_2 in two_views(steps):
        x, labels = imix(view_1)  # i-Mix
        loss_value = criterion(net(x), net(view_2), labels)  # i-Mix
        optimizer.zero_grad()
        loss_value.backward()
        optimizer.step()
        losses.append(loss_value.item())
    return losses


def main(steps: int = 200) -> dict[str, list[float]]:
    """Train with two losses; return the losses of all steps."""
    return {
        "NTXentLoss": train(NTXentLoss(temperature=0.2), steps),
        "MultiSimilarityLoss": train(MultiSimilarityLoss(), steps),
    }


if __name__ == "__main__":
    for name, losses in main().items():
        print(f"{name}: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
