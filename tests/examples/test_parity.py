"""A hundred steps of the runner on rows like Covertype's against the authors' recipe, written out in plain torch."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import runner.feed
import runner.run
import torch
import torch.nn.functional as F
from runner.data.dataset import take
from runner.domains.tabular import TABULAR
from runner.paper import TABLES, recipe
from runner.run import parse, prepare, pretrain
from runner.state.experiment import Experiment

ROWS, TRAIN, BATCH, EPOCHS, WIDTH = 1400, 1050, 512, 50, 2


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)  # a hundred steps of float32 drift apart by more than what is looked for
    yield
    torch.set_default_dtype(torch.float32)


def forest():
    draw = np.random.default_rng(0)
    quantities = draw.normal(2000, 300, (ROWS, 10)).round()
    kinds = np.eye(4)[draw.integers(0, 4, ROWS)], np.eye(40)[draw.integers(0, 40, ROWS)]
    return np.hstack([quantities, *kinds, draw.integers(1, 8, (ROWS, 1))])


def written_out(start, table, draws):
    """Losses and weights of the recipe for N-pair on Covertype."""
    x = torch.from_numpy(table[:, :-1].astype(np.float32)).double()
    quantities = x[:, :10]
    x[:, :10] = ((quantities - quantities.mean(0)) / quantities.std(0, correction=0)).float()  # by all rows
    weights = {name: value.clone().requires_grad_() for name, value in start.items()}
    speed = {name: torch.zeros_like(value) for name, value in start.items()}

    def normalised(h, name):
        mean, variance = h.mean(0), h.var(0, correction=0)
        return (h - mean) / (variance + 1e-5).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def network(h):
        encoder = "net.0"
        groups = [h[:, :10], h[:, 10:14], h[:, 14:]]
        h = torch.cat(
            [
                g @ weights[f"{encoder}.kinds.{i}.weight"].T + weights[f"{encoder}.kinds.{i}.bias"]
                for i, g in enumerate(groups)
            ],
            1,
        )
        for layer in ("layer1", "layer2", "layer3", "layer4"):
            h = normalised(h @ weights[f"{encoder}.{layer}.0.weight"].T, f"{encoder}.{layer}.1").relu()
        h = h @ weights[f"{encoder}.layer5.weight"].T + weights[f"{encoder}.layer5.bias"]
        h = torch.stack([h[:, i::4] for i in range(4)]).max(0).values
        h = normalised(h @ weights["net.1.0.weight"].T, "net.1.1").relu()
        return normalised(h @ weights["net.1.3.weight"].T, "net.1.4")

    steps_per_epoch, top, losses = TRAIN // BATCH, 0.125 * BATCH / 256, []
    for step, (rows, dropped, lam, partner) in enumerate(draws):
        epoch = step // steps_per_epoch
        rate = top * 0.5 * (1 + math.cos(math.pi * epoch / EPOCHS))
        if epoch < 5:
            rate = top * 0.5 * (1 + math.cos(math.pi * 5 / EPOCHS)) * (step + 1) / (5 * steps_per_epoch)
        view_1, view_2 = (x[rows].masked_fill(mask, 0) for mask in dropped)
        mixed = lam[:, None] * view_1 + (1 - lam[:, None]) * view_1[partner]
        out = F.normalize(network(torch.cat([mixed, view_2])))
        log_share = (out[:BATCH] @ out[BATCH:].T / 0.1).log_softmax(1)
        own = torch.arange(BATCH)
        loss = -(lam * log_share[own, own] + (1 - lam) * log_share[own, partner]).mean()
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                speed[name] = 0.9 * speed[name] + gradient + 1e-4 * weight
                weight -= rate * speed[name]
    return losses, weights


def test_a_hundred_steps_are_the_authors_recipe(double, tmp_path, monkeypatch):
    table = forest()
    pd.DataFrame(table).to_csv(tmp_path / "covtype.data", header=False, index=False)
    (row,) = [row for row in TABLES["1"] if row.name == "covtype-npair"]
    changed = ("--epochs", EPOCHS, "--width", WIDTH, "--data", tmp_path / "covtype.data")
    rest = ("--no-controls", "--device", "cpu", "--out", tmp_path / "out")
    given = parse(TABULAR, [*recipe(row, "mixup", "paper"), *map(str, (*changed, *rest))])
    settings, task = prepare(TABULAR, given)
    data = replace(task.data, train_x=task.data.train_x.double())

    taken, views, drawn, losses, start = [], [], [], [], {}

    def note_rows(x, rows):
        taken.append(rows)
        return take(x, rows)

    def note_views(x):
        view = task.augmented(x)
        assert torch.equal(view[:, 10:], x[:, 10:])
        assert torch.equal(view[:, :10], x[:, :10].where(view[:, :10] != 0, 0))
        views.append((view == 0) & (x != 0))
        return view

    def build_mix(*options, **more):
        imix = real_mix(*options, **more)
        imix.register_forward_hook(lambda _module, _inputs, result: drawn.append(result[1]))
        return imix

    def build_method(*options, **more):
        method = real_method(*options, **more)
        start.update({name: p.detach().clone() for name, p in method.net.named_parameters(prefix="net")})
        method.register_forward_hook(lambda _module, _inputs, loss: losses.append(loss.item()))
        built.append(method)
        return method

    built, real_mix, real_method = [], runner.run.build_mix, runner.run.build_method
    monkeypatch.setattr(runner.feed, "take", note_rows)
    for name, noting in (("build_mix", build_mix), ("build_method", build_method)):
        monkeypatch.setattr(runner.run, name, noting)
    pretrain(Experiment(settings, "mixup", 0), replace(task, augmented=note_views), data)

    draws = [
        (rows, views[2 * i : 2 * i + 2], labels.lam, labels.partner)
        for i, (rows, labels) in enumerate(zip(taken, drawn, strict=True))
    ]
    assert len(draws) == 100
    assert abs(torch.stack(views)[:, :, :10].double().mean() - 0.2) < 0.001  # of a million
    lam = torch.cat([labels.lam for labels in drawn])
    # Beta(2, 2), the larger of lambda and 1 - lambda: mean 11 / 16.
    assert lam.min() >= 0.5
    assert abs(lam.mean() - 11 / 16) < 0.005
    expected_losses, expected = written_out(start, table, draws)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert losses[-1] < losses[0] - 0.5
    for name, weight in built[0].net.named_parameters(prefix="net"):
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
