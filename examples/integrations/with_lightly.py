"""lightly's losses with i-Mix: NT-Xent, decoupled contrastive learning, and SimSiam's cosine similarity."""

import torch
from digits import encoder, two_views
from lightly.loss import DCLLoss, NegativeCosineSimilarity, NTXentLoss
from torch import nn

from imix_aug import IMix, IMixLoss


def train(loss: nn.Module, steps: int) -> list[float]:
    """Train an encoder with one of lightly's contrastive losses."""
    net = encoder()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    imix = IMix(per_sample=False)  # i-Mix: the loss is one number per batch, so lambda is too
    criterion = IMixLoss(loss)  # i-Mix
    losses = []
    for view_1, view_2 in two_views(steps):
        x, labels = imix(view_1)  # i-Mix
        loss_value = criterion(net(x), net(view_2), labels)  # i-Mix
        optimizer.zero_grad()
        loss_value.backward()
        optimizer.step()
        losses.append(loss_value.item())
    return losses


def train_simsiam(steps: int) -> list[float]:
    """Train an encoder and a predictor with lightly's negative cosine similarity."""
    net, predictor = encoder(), nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 32))
    optimizer = torch.optim.SGD([*net.parameters(), *predictor.parameters()], lr=0.05, momentum=0.9)
    imix = IMix(per_sample=False)  # i-Mix
    criterion = IMixLoss(NegativeCosineSimilarity())  # i-Mix
    losses = []
    for view_1, view_2 in two_views(steps):
        (mixed_1, mixed_2), labels = imix((view_1, view_2))  # i-Mix: one lambda and partner for both views
        p_1, p_2 = predictor(net(mixed_1)), predictor(net(mixed_2))
        z_1, z_2 = net(view_1).detach(), net(view_2).detach()
        loss = (criterion(p_1, z_2, labels) + criterion(p_2, z_1, labels)) / 2  # i-Mix
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(steps: int = 200) -> dict[str, list[float]]:
    """Train with each loss; return the losses of all steps."""
    return {
        "NTXentLoss": train(NTXentLoss(temperature=0.2), steps),
        "DCLLoss": train(DCLLoss(temperature=0.2), steps),
        "NegativeCosineSimilarity": train_simsiam(steps),
    }


if __name__ == "__main__":
    for name, losses in main().items():
        print(f"{name}: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
