"""torchvision's transforms v2 with i-Mix: each image is augmented twice, then the batch is mixed.

v2.MixUp and v2.CutMix mix images with the labels of people; they belong in the fine-tuning that comes later.
"""

import torch
from digits import encoder, images
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from imix_aug import IMix, imix_nce_loss


class TwoViews(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Each image twice through the same random transform."""

    def __init__(self, data: torch.Tensor, transform: v2.Transform) -> None:
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(self.data[index]), self.transform(self.data[index])


def pretrain(net: torch.nn.Module, epochs: int) -> list[float]:
    """Contrast mixed first views with second views; return the losses of all steps."""
    transform = v2.Compose([v2.RandomResizedCrop(8, scale=(0.6, 1), antialias=True), v2.GaussianNoise(sigma=0.1)])
    loader = DataLoader(TwoViews(images(), transform), batch_size=128, shuffle=True, drop_last=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    imix = IMix(mode="cutmix")  # i-Mix: on batches, so beside the loader and not in the transform
    losses = []
    for _ in range(epochs):
        for view_1, view_2 in loader:
            x, labels = imix(view_1)  # i-Mix
            loss = imix_nce_loss(net(x), net(view_2), labels, temperature=0.2)  # i-Mix
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def fine_tune(net: torch.nn.Module, data: torch.Tensor, classes: torch.Tensor, steps: int) -> list[float]:
    """Classify with torchvision's own supervised MixUp; return the losses of all steps."""
    model = torch.nn.Sequential(net, torch.nn.Linear(32, 10))
    mixup = v2.MixUp(num_classes=10, alpha=0.2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        rows = torch.randperm(len(data))[:128]
        x, soft_classes = mixup(data[rows], classes[rows])
        loss = torch.nn.functional.cross_entropy(model(x), soft_classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(epochs: int = 5, steps: int = 50) -> tuple[list[float], list[float]]:
    """Pretrain, then fine-tune; return both runs' losses."""
    from sklearn.datasets import load_digits

    net = encoder()
    return pretrain(net, epochs), fine_tune(net, images(), torch.tensor(load_digits().target), steps)


if __name__ == "__main__":
    for name, losses in zip(("pretraining", "fine-tuning"), main(), strict=True):
        print(f"{name}: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
