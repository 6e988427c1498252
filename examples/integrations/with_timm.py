"""timm with i-Mix: a timm encoder is pretrained, then fine-tuned with timm's own supervised Mixup."""

import timm
import torch
from digits import images, two_views
from sklearn.datasets import load_digits
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy

from imix_aug import IMix, imix_nce_loss


def main(steps: int = 20, model: str = "test_resnet") -> tuple[list[float], list[float]]:
    """Pretrain, then fine-tune; return both runs' losses."""
    net = timm.create_model(model, in_chans=1, num_classes=0)
    head = torch.nn.Linear(net.num_features, 32)
    optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=1e-3)
    imix = IMix(alpha=1.0)  # i-Mix
    pretraining = []
    for view_1, view_2 in two_views(steps):
        x, labels = imix(large(view_1))  # i-Mix
        loss = imix_nce_loss(head(net(x)), head(net(large(view_2))), labels, temperature=0.2)  # i-Mix
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pretraining.append(loss.item())

    net.reset_classifier(num_classes=10)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    mixup, criterion = Mixup(mixup_alpha=0.2, num_classes=10), SoftTargetCrossEntropy()
    data, classes = images(), torch.tensor(load_digits().target)
    fine_tuning = []
    for _ in range(steps):
        rows = torch.randperm(len(data))[:128]
        x, soft_classes = mixup(large(data[rows]), classes[rows])
        loss = criterion(net(x), soft_classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        fine_tuning.append(loss.item())
    return pretraining, fine_tuning


def large(batch: torch.Tensor) -> torch.Tensor:
    """The digits at 32 x 32, which timm's networks prefer to 8 x 8."""
    return torch.nn.functional.interpolate(batch, size=32, mode="bilinear")


if __name__ == "__main__":
    for name, losses in zip(("pretraining", "fine-tuning"), main(), strict=True):
        print(f"{name}: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
