"""info-nce-pytorch with i-Mix. It gives a loss per row when asked, so every row may have its own lambda."""

import torch
from digits import encoder, two_views
from info_nce import InfoNCE

from imix_aug import IMix, IMixLoss


def main(steps: int = 200) -> list[float]:
    """Train; return the losses of all steps."""
    net = encoder()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    imix = IMix(alpha=1.0)  # i-Mix
    criterion = IMixLoss(InfoNCE(temperature=0.2, reduction="none"))  # i-Mix
    losses = []
    for view_1, view_2 in two_views(steps):
        x, labels = imix(view_1)  # i-Mix
        loss = criterion(net(x), net(view_2), labels).mean()  # i-Mix
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
