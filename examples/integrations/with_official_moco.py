"""The official MoCo script's loss, a cross-entropy over logits, with i-Mix.

MoCo's builder lines up the logits as (N, 1 + K): a row's own key, then the queue. A mixed row has two positives, and
the second is another row's key, so the logits become (N, N + K): all keys of the batch, then the queue. Column j
belongs to row j, which is what `on="logits"` wants.
"""

import copy

import torch
from digits import encoder, two_views
from torch import Tensor, nn

from imix_aug import IMix, IMixLoss


class MoCo(nn.Module):
    """The parts of MoCo's builder that matter here, under their names there."""

    def __init__(self, dim: int = 32, K: int = 1024, m: float = 0.99, T: float = 0.2) -> None:
        super().__init__()
        self.m, self.T = m, T
        self.encoder_q = encoder(dim)
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.register_buffer("queue", nn.functional.normalize(torch.randn(dim, K), dim=0))
        self.queue_ptr = 0

    def forward(self, im_q: Tensor, im_k: Tensor) -> Tensor:
        q = nn.functional.normalize(self.encoder_q(im_q), dim=1)
        with torch.no_grad():
            for own, moving in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
                moving.lerp_(own, 1 - self.m)
            k = nn.functional.normalize(self.encoder_k(im_k), dim=1)
        logits = q @ torch.cat([k.T, self.queue.clone()], dim=1) / self.T  # i-Mix: was cat([l_pos, l_neg], dim=1)
        self.queue[:, self.queue_ptr : self.queue_ptr + len(k)] = k.T
        self.queue_ptr = (self.queue_ptr + len(k)) % self.queue.shape[1]
        return logits


def main(steps: int = 200) -> list[float]:
    """Train; return the losses of all steps."""
    model = MoCo()
    optimizer = torch.optim.SGD(model.encoder_q.parameters(), lr=0.06, momentum=0.9)
    imix = IMix(alpha=1.0)  # i-Mix
    criterion = IMixLoss(nn.CrossEntropyLoss(), on="logits")  # i-Mix
    losses = []
    for view_1, view_2 in two_views(steps):
        x, labels = imix(view_1)  # i-Mix
        loss = criterion(model(im_q=x, im_k=view_2), labels)  # i-Mix: was criterion(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss once the queue is full: {losses[10]:.3f} -> {losses[-1]:.3f}")
