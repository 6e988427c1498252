"""The official MoCo script with i-Mix: the builder mixes the queries and returns the loss beside its logits.

The logits (N, 1 + K), a row's own key first, have no column for a mixed row's second positive, its partner's key. They
stay for the accuracy line; the loss has all keys of the batch as columns, then the queue.
"""

import copy

import torch
from digits import encoder, two_views
from torch import Tensor, nn

from imix_aug import IMix, imix_nce_loss


class MoCo(nn.Module):
    """The parts of MoCo's builder that matter here, under their names there."""

    def __init__(self, dim: int = 32, K: int = 1024, m: float = 0.99, T: float = 0.2) -> None:
        super().__init__()
        self.m, self.T = m, T
        self.encoder_q = encoder(dim)
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.register_buffer("queue", nn.functional.normalize(torch.randn(dim, K), dim=0))
        self.queue_ptr = 0
        self.imix = IMix(alpha=1.0)  # i-Mix

    def forward(self, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        im_q, virtual = self.imix(im_q)  # i-Mix
        q = nn.functional.normalize(self.encoder_q(im_q), dim=1)
        with torch.no_grad():
            for own, moving in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
                moving.lerp_(own, 1 - self.m)
            k = nn.functional.normalize(self.encoder_k(im_k), dim=1)
        queue = self.queue.clone()  # it changes below, before the backward pass
        logits = torch.cat([(q * k).sum(dim=1, keepdim=True), q @ queue], dim=1) / self.T
        labels = torch.zeros(len(q), dtype=torch.long)
        loss = imix_nce_loss(q, k, virtual, temperature=self.T, negatives=queue.T)  # i-Mix
        self.queue[:, self.queue_ptr : self.queue_ptr + len(k)] = k.T
        self.queue_ptr = (self.queue_ptr + len(k)) % self.queue.shape[1]
        return logits, labels, loss  # i-Mix: was logits, labels


def main(steps: int = 200) -> list[float]:
    """Train; return the losses of all steps."""
    model = MoCo()
    optimizer = torch.optim.SGD(model.encoder_q.parameters(), lr=0.06, momentum=0.9)
    losses = []
    for step, (view_1, view_2) in enumerate(two_views(steps)):
        output, target, loss = model(
            im_q=view_1, im_k=view_2
        )  # i-Mix: was output, target; then criterion(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 50 == 0:
            own_key_first = (output.argmax(dim=1) == target).float().mean()
            print(f"step {step}: a mixed row's own key comes first in {own_key_first:.0%}")
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss once the queue is full: {losses[10]:.3f} -> {losses[-1]:.3f}")
