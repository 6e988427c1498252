import json

import numpy as np
import pytest
import tabular
import torch
from runner.augment.image import crop_padded_and_flip
from runner.evaluate import evaluate
from runner.sgd_probe import sgd_probe
from torch import nn


@pytest.fixture
def blobs():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 10, generator=generator).double()
    y = torch.arange(800) % 4
    x = 0.05 * (centres[y] + 1.2 * torch.randn(800, 10, generator=generator))  # small: a rate of 70 should not be chaos
    return x[:600], y[:600], x[600:], y[600:]


@pytest.mark.parametrize("batch_size", [256, 512])
def test_each_rate_is_sgd_written_out(blobs, batch_size):
    train, y, test, test_y = blobs
    found = sgd_probe(lambda: train, y, test, test_y, batch_size=batch_size)
    assert list(found) == [1, 3, 5, 10, 30, 50, 70]

    generator = torch.Generator().manual_seed(0)
    start = [0.01 * torch.randn(4, 10, generator=generator) for _ in range(7)]
    orders = [torch.randperm(600, generator=generator).numpy() for _ in range(100)]
    x, one_hot = train.numpy(), np.eye(4)[y]
    for rate, weights in zip(found, start, strict=True):
        w, b = weights.double().numpy().copy(), np.zeros(4)
        w_speed, b_speed, lr = np.zeros_like(w), np.zeros_like(b), float(rate)
        for epoch, order in enumerate(orders):
            if epoch in (80, 90, 95):
                lr *= 0.2
            for first in range(0, 600, batch_size):
                rows = order[first : first + batch_size]
                logits = x[rows] @ w.T + b
                shares = np.exp(logits - logits.max(1, keepdims=True))
                error = (shares / shares.sum(1, keepdims=True) - one_hot[rows]) / len(rows)
                w_speed, b_speed = 0.9 * w_speed + error.T @ x[rows], 0.9 * b_speed + error.sum(0)
                w, b = w - lr * w_speed, b - lr * b_speed
        accuracy = ((test.numpy() @ w.T + b).argmax(1) == test_y.numpy()).mean()
        assert found[rate] == pytest.approx(accuracy, abs=1e-12)


def test_the_command_reports_each_rate_and_the_best(runs, tmp_path, capsys):
    options = ("--epochs", 1, "--seeds", 1, "--width", 1, "--mix", "none", "--probe", "sgd", "--controls")
    (run,) = runs(tabular, *options)
    rates = run["metrics"]["sgd_probe"]
    assert list(map(int, rates)) == [1, 3, 5, 10, 30, 50, 70]
    assert run["metrics"]["probe_accuracy"] == max(rates.values())
    assert run["config"]["probe"] == "sgd"
    printed = capsys.readouterr().out
    assert "chosen on the test rows" in printed
    assert all(f"{rate}: {100 * accuracy:.2f}" in printed for rate, accuracy in rates.items())
    controls = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["controls"]
    assert all(one["metrics"]["probe_accuracy"] == max(one["metrics"]["sgd_probe"].values()) for one in controls)


def test_features_are_neither_standardised_nor_drawn_in_training_mode(monkeypatch, blobs):
    seen = {}

    def note(epoch_of_features, _y, test, _test_y, *, batch_size, **_):
        seen.update(train=epoch_of_features(), test=test, batch_size=batch_size)
        return {1: 0.5}

    monkeypatch.setattr("runner.evaluate.sgd_probe", note)
    train, y, test, test_y = blobs
    train, test = train.float(), test.float()
    data = type("Data", (), {"name": "covtype", "train_x": train, "train_y": y, "test_x": test, "test_y": test_y})
    evaluate(nn.Dropout(0.5), data, lambda rows: 3 * rows + 7, "sgd")
    torch.testing.assert_close(seen["train"], 3 * train + 7)
    torch.testing.assert_close(seen["test"], 3 * test + 7)
    assert seen["batch_size"] == 512


def test_cifars_probe_sees_other_images_each_epoch(monkeypatch):
    epochs = []

    def note(epoch_of_features, _y, test, _test_y, *, batch_size, **_):
        epochs.extend([epoch_of_features(), epoch_of_features(), test])
        return {1: 0.5}

    monkeypatch.setattr("runner.evaluate.sgd_probe", note)
    x, y = torch.randint(1, 256, (50, 3, 32, 32), dtype=torch.uint8), torch.arange(50) % 5
    data = type("Data", (), {"name": "cifar10", "train_x": x, "train_y": y, "test_x": x, "test_y": y})
    evaluate(nn.Flatten(), data, lambda pixels: pixels.float(), "sgd")
    one, two, test = epochs
    assert not torch.equal(one, two)
    assert torch.equal(test, x.flatten(1).float())


def test_crops_of_a_padded_image_and_their_mirror_images():
    torch.manual_seed(0)
    image = torch.arange(1, 3 * 6 * 7 + 1, dtype=torch.uint8).view(3, 6, 7)
    padded = np.pad(image.numpy(), ((0, 0), (2, 2), (2, 2)))
    possible = {}
    for top in range(5):
        for left in range(5):
            crop = padded[:, top : top + 6, left : left + 7]
            possible[crop.tobytes()] = possible[crop[:, :, ::-1].tobytes()] = 0
    for crop in crop_padded_and_flip(image.expand(2000, 3, 6, 7), padding=2).numpy():
        possible[np.ascontiguousarray(crop).tobytes()] += 1  # a KeyError is a crop that there cannot be
    assert len(possible) == 50
    assert min(possible.values()) > 10  # 40 in the mean
