import numpy as np
import pytest
import torch
from runner.evaluate import choose_strength, extract_features, fit_logistic, linear_probe, nearest_neighbours
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn


@pytest.fixture
def blobs():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 10, generator=generator)
    y = torch.arange(800) % 4
    x = centres[y] + 1.2 * torch.randn(800, 10, generator=generator)
    return x[:600], y[:600], x[600:], y[600:]


@pytest.mark.parametrize("strength", [1e-1, 1e-3])
def test_logistic_regression_is_scikit_learns(blobs, strength):
    x, y, *_ = blobs
    weights = fit_logistic(x.double().float(), y, 4, strength)
    peer = LogisticRegression(C=1 / (strength * len(x)), tol=1e-8, max_iter=1000).fit(x.double().numpy(), y.numpy())
    np.testing.assert_allclose(weights[:-1] - weights[:-1].mean(1, keepdim=True), peer.coef_.T, atol=5e-3)
    logits = x @ weights[:-1] + weights[-1]
    np.testing.assert_allclose(logits.softmax(1), peer.predict_proba(x.numpy()), atol=2e-3)


@pytest.mark.parametrize(("rows", "columns"), [(60, 30), (1000, 500)])
def test_strength_is_the_one_that_is_right_on_most_held_out_rows(rows, columns):
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(rows) % 2
    x = torch.randn(rows, columns, generator=generator) + (1.6 / columns**0.5) * y[:, None]
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    fold = torch.full((rows,), -1)  # of those that are never held out
    strengths = (10, 1, 1e-1, 1e-2, 1e-3, 1e-4) if rows < 1000 else (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
    if rows < 1000:
        fold[order] = torch.arange(rows) % 5
    else:
        fold[order[:100]] = 0
    right = {}
    for strength in strengths:
        found = []
        for held in (fold == one for one in range(int(fold.max()) + 1)):
            train = ~held
            peer = LogisticRegression(C=1 / (strength * int(train.sum())), tol=1e-8, max_iter=1000).fit(
                x[train].numpy(), y[train].numpy()
            )
            found += list(peer.predict(x[held].numpy()) == y[held].numpy())
        right[strength] = sum(found)
    assert len(set(right.values())) > 2
    assert right[choose_strength(x, y, 2)] >= max(right.values()) - 1  # a row on the border


def test_two_rows_are_enough_for_a_probe():
    x, y = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
    assert linear_probe(x, y, x, y) in (0.5, 1.0)


def test_probe_does_not_mind_the_scale_of_a_feature(blobs):
    x, y, test, test_y = blobs
    accuracy = linear_probe(x, y, test, test_y)
    assert 0.6 < accuracy < 1
    scale = torch.logspace(-3, 3, 10)
    assert linear_probe(x * scale + 5, y, test * scale + 5, test_y) == pytest.approx(accuracy, abs=0.011)


def test_probe_of_features_that_say_nothing_is_chance():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(1000, 8, generator=generator), torch.randint(0, 4, (1000,), generator=generator)
    assert linear_probe(x[:800], y[:800], x[800:], y[800:]) < 0.35
    assert linear_probe(torch.zeros(40, 3), y[:40], torch.zeros(40, 3), y[:40]) < 0.5


def test_nearest_neighbours_are_scikit_learns(blobs):
    x, y, test, test_y = blobs

    def weights(distance):
        return np.exp(-distance / 0.07)

    peer = KNeighborsClassifier(20, metric="cosine", weights=weights).fit(x.numpy(), y.numpy())
    assert nearest_neighbours(x, y, test, test_y) == pytest.approx(peer.score(test.numpy(), test_y.numpy()))


def test_features_are_those_of_evaluation_mode():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    x = torch.randn(50, 3) * 4 + 1
    features = extract_features(net, x, lambda rows: rows, batch_size=7)
    torch.testing.assert_close(features, x / (1 + 1e-5) ** 0.5)
    assert net.training
    torch.testing.assert_close(net[0].running_mean, torch.zeros(3))
