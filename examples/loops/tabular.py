"""N-pair contrastive learning of a table with i-Mix, from the columns to the linear probe.

    python examples/loops/tabular.py                  # scikit-learn's digits as a table of 64 columns
    python examples/loops/tabular.py --data my.npz    # x (N, columns), numbers, and y (N,), classes

The classes are for the probes alone. The settings were chosen on a quarter of the training rows, seed 0.
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
from torch.nn.functional import dropout

from imix_aug import IMix, imix_nce_loss

BATCH, RATE, TEMPERATURE, DROPOUT, LABELS = 128, 2e-3, 0.2, 0.2, 1000


def load(path: str | None = None) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """Return columns of the training and the test rows, standardised, and their classes."""
    file = np.load(path) if path else None
    columns, classes = (file["x"], file["y"]) if file else load_digits(return_X_y=True)  # (N, C), (N,)
    train_x, test_x, train_y, test_y = train_test_split(columns, classes, random_state=0, stratify=classes)
    scaler = StandardScaler().fit(train_x)
    train_x, test_x = (torch.tensor(scaler.transform(x), dtype=torch.float32) for x in (train_x, test_x))
    return train_x, test_x, train_y, test_y


def build_networks(columns: int, width: int = 256, dim: int = 64) -> tuple[nn.Module, nn.Module]:
    """Return an encoder (N, columns) -> (N, width), which is kept, and a head (N, width) -> (N, dim), which is not."""

    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU())

    encoder = nn.Sequential(block(columns, width), block(width, width), block(width, width))
    head = nn.Sequential(block(width, width), nn.Linear(width, dim))
    return encoder, head


def train(x: Tensor, epochs: int, alpha: float = 1.0, seed: int = 0) -> nn.Module:
    """Pretrain an encoder on rows (N, columns). An alpha of 0 trains without i-Mix."""
    torch.manual_seed(seed)
    encoder, head = build_networks(x.shape[1])
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(epochs * (len(x) // BATCH), 1))
    imix = IMix(alpha=alpha)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            view_1, view_2 = dropout(x[rows], DROPOUT), dropout(x[rows], DROPOUT)  # (B, columns) each
            mixed, labels = imix(view_1)  # i-Mix
            query, key = head(encoder(mixed)), head(encoder(view_2))  # (B, dim) each
            loss = imix_nce_loss(query, key, labels, temperature=TEMPERATURE)  # i-Mix
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


def main(path: str | None = None, epochs: int = 100) -> dict[str, list[float]]:
    """Print and return the accuracies of four kinds of features."""
    data = load(path)
    scores = {
        "raw columns": judge(nn.Identity(), *data),
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
    parser.add_argument("--epochs", type=int, default=100)
    options = parser.parse_args()
    main(options.data, options.epochs)
