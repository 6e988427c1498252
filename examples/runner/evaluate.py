"""How good the features are: a linear probe and cosine nearest neighbours, the same for every method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.augment.image import crop_padded_and_flip
from runner.data.dataset import Dataset
from runner.data.files import IMAGENETS, ImageFiles, crop_and_mirror
from runner.sgd_probe import Schedule, sgd_probe

PROBES = ("logistic", "sgd")
BATCHES = {"covtype": 512}  # of the paper's probe; 256 elsewhere
SHIFTED = ("cifar10", "cifar100")  # whose probe the paper trains with crops and mirror images
IMAGENETS_PROBE = Schedule(rates=(30,), milestones=(60, 80), decay=0.1)
STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
FEW = 1000  # training rows, of which a tenth would choose a strength by chance
STRENGTHS_OF_FEW, FOLDS = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4), 5


@torch.no_grad()
def extract_features(
    encoder: nn.Module, x: Tensor | ImageFiles, to_input: Callable[[Tensor], Tensor], batch_size: int = 1024
) -> Tensor:
    """Features of all rows, not augmented, in evaluation mode."""
    was_training = encoder.training
    encoder.eval()
    device = next((parameter.device for parameter in encoder.parameters()), x.device)
    features = torch.cat([encoder(to_input(rows.to(device))).float() for rows in x.split(batch_size)])
    encoder.train(was_training)
    return features


def evaluate(
    encoder: nn.Module, data: Dataset, to_input: Callable[[Tensor], Tensor], probe: str = "logistic"
) -> dict[str, Any]:
    """Accuracies on the test rows, as fractions.

    With ``probe="sgd"``, the paper's, ``probe_accuracy`` is the best of the rates, chosen on the test rows, and
    ``sgd_probe`` holds that of each rate.
    """
    train, test = (extract_features(encoder, x, to_input).to(data.train_y.device) for x in (data.train_x, data.test_x))
    found: dict[str, Any] = {"knn_accuracy": nearest_neighbours(train, data.train_y, test, data.test_y)}
    if probe == "logistic":
        return {"probe_accuracy": linear_probe(train, data.train_y, test, data.test_y), **found}
    rates = probe_by_sgd(encoder, data, to_input, train, test)
    return {"probe_accuracy": max(rates.values()), **found, "sgd_probe": {str(r): rates[r] for r in rates}}


def probe_by_sgd(
    encoder: nn.Module, data: Dataset, to_input: Callable[[Tensor], Tensor], train: Tensor, test: Tensor
) -> dict[int, float]:
    """The paper's probe of features that were extracted before.

    Those of CIFAR and ImageNet are made anew each epoch, of images that are shifted or cropped.
    """
    epochs = count()

    def epoch_of_features() -> Tensor:
        if data.name in SHIFTED:
            return extract_features(encoder, data.train_x, lambda pixels: to_input(crop_padded_and_flip(pixels)))
        if data.name in IMAGENETS and isinstance(data.train_x, ImageFiles):
            cropped = replace(data.train_x, change=crop_and_mirror(data.train_x.size), seed=next(epochs))
            return extract_features(encoder, cropped, to_input)
        return train

    schedule = IMAGENETS_PROBE if data.name in IMAGENETS else Schedule()
    batch_size = BATCHES.get(data.name, 256)
    return sgd_probe(epoch_of_features, data.train_y, test, data.test_y, batch_size=batch_size, schedule=schedule)


def linear_probe(train: Tensor, train_y: Tensor, test: Tensor, test_y: Tensor) -> float:
    """Multinomial logistic regression on standardised features.

    Its strength is chosen on a tenth held out, of fewer than 1,000 rows by cross-validation in five folds.
    """
    std, mean = torch.std_mean(train, dim=0, correction=0)
    std = torch.where(std > 1e-6, std, torch.ones_like(std))
    train, test = (train - mean) / std, (test - mean) / std
    classes = int(max(train_y.max(), test_y.max())) + 1
    strength = choose_strength(train, train_y, classes)
    return _accuracy(test, test_y, fit_logistic(train, train_y, classes, strength))


def choose_strength(x: Tensor, y: Tensor, classes: int) -> float:
    """The strength that is right on most held-out rows, the strongest of those that are equal."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(x.device)
    if len(x) < FEW:
        strengths, folds = STRENGTHS_OF_FEW, [order[fold::FOLDS] for fold in range(min(FOLDS, len(x)))]
    else:
        strengths, folds = STRENGTHS, [order[: len(x) // 10]]
    right = dict.fromkeys(strengths, 0.0)
    for held in folds:
        rest = order[torch.isin(order, held, invert=True)]
        weights = None
        for strength in strengths:
            weights = fit_logistic(x[rest], y[rest], classes, strength, weights)
            right[strength] += len(held) * _accuracy(x[held], y[held], weights)
    return max(strengths, key=right.__getitem__)


def fit_logistic(x: Tensor, y: Tensor, classes: int, strength: float, start: Tensor | None = None) -> Tensor:
    """Weights (F + 1, classes), bias last, that minimise the mean cross-entropy + strength / 2 x squared weights."""
    weights = torch.zeros(x.shape[1] + 1, classes, device=x.device) if start is None else start.clone()
    weights.requires_grad_()
    solver = torch.optim.LBFGS(
        [weights],
        max_iter=300,
        history_size=20,
        tolerance_grad=1e-5,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(_logits(x, weights), y) + strength / 2 * weights[:-1].square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return weights.detach()


def nearest_neighbours(train: Tensor, train_y: Tensor, test: Tensor, test_y: Tensor, k: int = 20) -> float:
    """The vote of the ``k`` nearest training rows by cosine, each weighted by exp(cosine / 0.07)."""
    train, test = F.normalize(train), F.normalize(test)
    classes, correct = int(max(train_y.max(), test_y.max())) + 1, 0
    for rows, labels in zip(test.split(1024), test_y.split(1024), strict=True):
        similarity, nearest = (rows @ train.T).topk(min(k, len(train)), dim=1)
        votes = torch.zeros(len(rows), classes, device=rows.device)
        votes.scatter_add_(1, train_y[nearest], ((similarity - 1) / 0.07).exp())
        correct += int((votes.argmax(1) == labels).sum())
    return correct / len(test)


def _logits(x: Tensor, weights: Tensor) -> Tensor:
    return torch.addmm(weights[-1], x, weights[:-1])


def _accuracy(x: Tensor, y: Tensor, weights: Tensor) -> float:
    return (_logits(x, weights).argmax(1) == y).double().mean().item()
