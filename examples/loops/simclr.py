"""SimCLR with i-Mix, from the pixels to the linear probe.

    python examples/loops/simclr.py                   # scikit-learn's digits, 8 x 8 pixels
    python examples/loops/simclr.py --data my.npz     # x (N, C, H, W), from 0 to 1, and y (N,), classes

The classes are for the probes alone. The settings were chosen on a quarter of the training images, seed 0.
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import pad

from imix_aug import IMix, imix_ntxent_loss

BATCH, RATE, TEMPERATURE, LABELS = 128, 2e-3, 0.5, 100


def load(path: str | None = None) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """Return images (N, C, H, W) from 0 to 1 for training and for the test, and their classes."""
    file = np.load(path) if path else None
    images, classes = (file["x"], file["y"]) if file else (load_digits().images[:, None] / 16, load_digits().target)
    images = torch.tensor(images, dtype=torch.float32)
    train_rows, test_rows = train_test_split(np.arange(len(images)), random_state=0, stratify=classes)
    return images[train_rows], images[test_rows], classes[train_rows], classes[test_rows]


def view(x: Tensor) -> Tensor:
    """Move each image (N, C, H, W) by up to a pixel in either direction: as much as holds for images of any kind."""
    n, _, height, width = x.shape
    top, left = torch.randint(3, (2, n))
    return pad(x, (1, 1, 1, 1)).unfold(2, height, 1).unfold(3, width, 1)[torch.arange(n), :, top, left]


def build_networks(channels: int, width: int = 32, dim: int = 64) -> tuple[nn.Module, nn.Module]:
    """Return an encoder (N, C, H, W) -> (N, 4 width), which is kept, and a head -> (N, dim), which is not."""

    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

    layers = [block(channels, width), nn.MaxPool2d(2), block(width, 2 * width), nn.MaxPool2d(2)]
    encoder = nn.Sequential(*layers, block(2 * width, 4 * width), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Sequential(nn.Linear(4 * width, 4 * width), nn.ReLU(), nn.Linear(4 * width, dim))
    return encoder, head


def train(x: Tensor, epochs: int, alpha: float = 1.0, seed: int = 0) -> nn.Module:
    """Pretrain an encoder on images (N, C, H, W). An alpha of 0 trains without i-Mix."""
    torch.manual_seed(seed)
    encoder, head = build_networks(x.shape[1])
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(epochs * (len(x) // BATCH), 1))
    imix = IMix(alpha=alpha)  # mode="cutmix" pastes a box instead
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            view_1, view_2 = view(x[rows]), view(x[rows])  # (B, C, H, W) each
            (mixed_1, mixed_2), labels = imix((view_1, view_2))  # i-Mix: both views alike
            # One pass for mixed and one for plain rows, so that batch norm never averages over both kinds.
            query_1, query_2 = head(encoder(torch.cat([mixed_1, mixed_2]))).chunk(2)  # (B, dim) each
            key_1, key_2 = head(encoder(torch.cat([view_1, view_2]))).chunk(2)  # (B, dim) each
            loss = imix_ntxent_loss(query_1, query_2, key_1, key_2, labels, temperature=TEMPERATURE)  # i-Mix
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return encoder.eval()


@torch.no_grad()
def judge(encoder: nn.Module, train_x: Tensor, test_x: Tensor, train_y: np.ndarray, test_y: np.ndarray) -> list[float]:
    """Return two test accuracies of frozen features: a linear probe that saw few labels, neighbours that saw all."""
    train, test = encoder(train_x).flatten(1), encoder(test_x).flatten(1)  # (N, features)
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    neighbours = make_pipeline(StandardScaler(), KNeighborsClassifier(20, metric="cosine"))
    linear.fit(train[:LABELS], train_y[:LABELS])
    neighbours.fit(train, train_y)
    return [linear.score(test, test_y), neighbours.score(test, test_y)]


def main(path: str | None = None, epochs: int = 40) -> dict[str, list[float]]:
    """Print and return the accuracies of four kinds of features."""
    data = load(path)
    scores = {
        "raw pixels": judge(nn.Identity(), *data),
        "untrained network": judge(train(data[0], epochs=0), *data),
        "without i-Mix": judge(train(data[0], epochs, alpha=0.0), *data),
        "with i-Mix": judge(train(data[0], epochs), *data),
    }
    print(f"test accuracy      linear on {LABELS} labels   nearest neighbours")
    for name, (linear, neighbours) in scores.items():
        print(f"{name:17}  {linear:16.1%}  {neighbours:19.1%}")
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FILE.npz")
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    main(options.data, options.epochs)
