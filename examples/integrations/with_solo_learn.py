"""solo-learn's loss functions with i-Mix, under the names and signatures of its main branch."""

import torch
from digits import encoder, two_views
from solo.losses.byol import byol_loss_func
from solo.losses.simclr import simclr_loss_func
from torch import Tensor, nn

from imix_aug import IMix, IMixLoss


def simclr(a: Tensor, b: Tensor) -> Tensor:
    """SimCLR's loss of two batches whose rows pair up: solo-learn wants them stacked, with their rows' identities."""
    identities = torch.arange(len(a), device=a.device).repeat(2)
    return simclr_loss_func(torch.cat([a, b]), identities, temperature=0.2)


def train_simclr(steps: int) -> list[float]:
    """Train an encoder with SimCLR's loss."""
    net = encoder()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    imix = IMix(per_sample=False)  # i-Mix: the function returns one number per batch, so lambda is too
    criterion = IMixLoss(simclr)  # i-Mix
    losses = []
    for view_1, view_2 in two_views(steps):
        x, labels = imix(view_1)  # i-Mix
        loss = criterion(net(x), net(view_2), labels)  # i-Mix
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_byol(steps: int) -> list[float]:
    """Train an encoder and a predictor with BYOL's loss; the target network is a moving average."""
    net, predictor = encoder(), nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    target_net = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
    optimizer = torch.optim.SGD([*net.parameters(), *predictor.parameters()], lr=0.05, momentum=0.9)
    imix = IMix(per_sample=False)  # i-Mix
    criterion = IMixLoss(byol_loss_func)  # i-Mix
    losses = []
    for view_1, view_2 in two_views(steps):
        x, labels = imix(view_1)  # i-Mix
        with torch.no_grad():
            target = target_net(view_2)
        loss = criterion(predictor(net(x)), target, labels)  # i-Mix
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        target_net.update_parameters(net)
        losses.append(loss.item())
    return losses


def main(steps: int = 200) -> dict[str, list[float]]:
    """Train with both losses; return the losses of all steps."""
    return {"simclr_loss_func": train_simclr(steps), "byol_loss_func": train_byol(steps)}


if __name__ == "__main__":
    for name, losses in main().items():
        print(f"{name}: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
