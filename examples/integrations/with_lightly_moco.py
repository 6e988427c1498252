"""MoCo built from lightly's parts, with i-Mix: `negatives=` takes the place of the loss's memory bank."""

import copy

import torch
from digits import encoder, two_views
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import nn

from imix_aug import IMix, NegativeQueue, imix_nce_loss


def main(steps: int = 200) -> list[float]:
    """Train; return the losses of all steps."""
    net = nn.Sequential(encoder(64), MoCoProjectionHead(64, 64, 32))
    momentum_net = copy.deepcopy(net)
    deactivate_requires_grad(momentum_net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.06, momentum=0.9)
    imix = IMix(alpha=1.0)  # i-Mix
    queue = NegativeQueue(size=1024, dim=32)  # i-Mix: was NTXentLoss(memory_bank_size=(1024, 32))
    losses = []
    for view_1, view_2 in two_views(steps):
        update_momentum(net, momentum_net, m=0.99)
        x, labels = imix(view_1)  # i-Mix
        key = nn.functional.normalize(momentum_net(view_2))
        loss = imix_nce_loss(net(x), key, labels, temperature=0.2, negatives=queue.negatives)  # i-Mix
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue.enqueue(key)  # after the backward pass: this step's keys are its positives
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss once the queue is full: {losses[10]:.3f} -> {losses[-1]:.3f}")
