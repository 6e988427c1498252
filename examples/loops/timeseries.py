"""N-pair contrastive learning of time series with i-Mix, from the values to the linear probe.

    python examples/loops/timeseries.py                 # six kinds of control charts, made by their published formula
    python examples/loops/timeseries.py --data my.npz   # x (N, T, C), numbers, and y (N,), classes

The classes are for the probes alone. The settings were chosen on a quarter of the training series, seed 0.
"""

import argparse

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from imix_aug import IMix, imix_nce_loss

BATCH, RATE, TEMPERATURE, LABELS = 100, 2e-3, 0.2, 24


def load(path: str | None = None) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """Return series (N, C, T) for training and for the test, each channel standardised, and their classes."""
    file = np.load(path) if path else None
    series, classes = (file["x"], file["y"]) if file else control_charts(200)  # (N, T, C), (N,)
    train_x, test_x, train_y, test_y = train_test_split(series, classes, random_state=0, stratify=classes)
    mean, std = train_x.mean((0, 1)), train_x.std((0, 1))
    train_x, test_x = (
        torch.tensor((x - mean) / std, dtype=torch.float32).transpose(1, 2).contiguous() for x in (train_x, test_x)
    )
    return train_x, test_x, train_y, test_y


def control_charts(each: int, length: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Return charts (N, T, 1) of six kinds and the kind of each, by Alcock and Manolopoulos (1999)."""
    draw, time = np.random.default_rng(0), np.arange(length)

    def uniform(low: float, high: float) -> np.ndarray:
        return draw.uniform(low, high, (each, 1))

    normal = [30 + 2 * draw.uniform(-3, 3, (each, length)) for _ in range(6)]
    cycle = uniform(10, 15) * np.sin(2 * np.pi * time / uniform(10, 15))
    rise, fall = uniform(0.2, 0.5) * time, -uniform(0.2, 0.5) * time
    up, down = (sign * uniform(7.5, 20) * (time >= uniform(length / 3, 2 * length / 3)) for sign in (1, -1))
    charts = [chart + pattern for chart, pattern in zip(normal, (0, cycle, rise, fall, up, down), strict=True)]
    return np.concatenate(charts)[..., None], np.repeat(np.arange(6), each)


def view(x: Tensor) -> Tensor:
    """Add a little noise to each series (N, C, T)."""
    return x + 0.1 * torch.randn_like(x)


def build_networks(channels: int, width: int = 32, dim: int = 64) -> tuple[nn.Module, nn.Module]:
    """Return an encoder (N, C, T) -> (N, 4 width), which is kept, and a head -> (N, dim), which is not."""

    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv1d(inputs, outputs, 7, padding=3, bias=False), nn.BatchNorm1d(outputs), nn.ReLU())

    layers = [block(channels, width), nn.MaxPool1d(2), block(width, 2 * width), nn.MaxPool1d(2)]
    encoder = nn.Sequential(*layers, block(2 * width, 4 * width), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    head = nn.Sequential(nn.Linear(4 * width, 4 * width), nn.ReLU(), nn.Linear(4 * width, dim))
    return encoder, head


def train(x: Tensor, epochs: int, alpha: float = 1.0, seed: int = 0) -> nn.Module:
    """Pretrain an encoder on series (N, C, T). An alpha of 0 trains without i-Mix."""
    torch.manual_seed(seed)
    encoder, head = build_networks(x.shape[1])
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(epochs * (len(x) // BATCH), 1))
    imix = IMix(alpha=alpha)  # mode="cutmix" pastes a span instead
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            view_1, view_2 = view(x[rows]), view(x[rows])  # (B, C, T) each
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


def main(path: str | None = None, epochs: int = 40) -> dict[str, list[float]]:
    """Print and return the accuracies of four kinds of features."""
    data = load(path)
    scores = {
        "raw values": judge(nn.Identity(), *data),
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
