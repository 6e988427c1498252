"""Hugging Face Accelerate with i-Mix: one process, or several with `accelerate launch with_accelerate.py`."""

import torch
from accelerate import Accelerator
from digits import encoder, two_views

from imix_aug import IMix, imix_nce_loss


def main(steps: int = 200) -> list[float]:
    """Train; return the losses of all steps."""
    accelerator = Accelerator(cpu=True)
    net = encoder()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    net, optimizer = accelerator.prepare(net, optimizer)
    imix = IMix(alpha=1.0)  # i-Mix
    losses = []
    for view_1, view_2 in two_views(steps):
        x, labels = imix(view_1.to(accelerator.device))  # i-Mix
        key = net(view_2.to(accelerator.device))
        loss = imix_nce_loss(net(x), key, labels, temperature=0.2, gather_distributed=True)  # i-Mix
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    accelerator.print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
