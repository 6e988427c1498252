"""Encoding in chunks gives the gradients of the whole batch, against the dense formula on embeddings made at once."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from imix_aug import IMix, NegativeQueue

RECIPE = Path(__file__).parents[2] / "examples" / "recipes" / "large_batch.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("large_batch", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class RowsDropout(nn.Module):
    """Dropout whose masks are drawn by the chunk: the oracle's net plays them back over the whole batch."""

    def __init__(self, p):
        super().__init__()
        self.p, self.masks, self.whole = p, [], None

    def forward(self, x):
        if self.whole is not None:
            return x * self.whole.pop(0)
        mask = torch.bernoulli(torch.full_like(x, 1 - self.p)) / (1 - self.p)
        self.masks.append(mask)
        return x * mask


def formula(query, key, labels, negatives, temperature):
    """The paper's loss over dense logits."""
    columns = key if negatives is None else torch.cat([key, negatives])
    logits = normalize(query) @ normalize(columns).T / temperature
    return -(labels.dense().to(logits) * logits.log_softmax(1)[:, : len(key)]).sum(1).mean()


@pytest.mark.parametrize("rows", [1, 4, 7, 24])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("with_queue", [False, True])
def test_gradients_are_those_of_the_whole_batch(recipe, rows, dropout, with_queue):
    n = 24
    noise = RowsDropout(dropout)
    net = nn.Sequential(nn.Linear(6, 16), nn.GELU(), noise, nn.Linear(16, 5)).double()
    view_1, view_2 = (torch.randn(n, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    queue = NegativeQueue(size=40, dim=5).double() if with_queue else None
    if with_queue:
        queue.enqueue(normalize(torch.randn(30, 5, dtype=torch.float64)))
    negatives = queue.negatives.clone() if with_queue else None
    inputs = [view_1, view_2, *net.parameters()]

    torch.manual_seed(1)
    loss = recipe.step(net, view_1, view_2, rows, queue)
    found = [each.grad.clone() for each in inputs]

    for each in inputs:
        each.grad = None
    chunks = -(-n // rows)
    assert len(noise.masks) == 4 * chunks  # once on the way forward, once on the way back, for either view
    noise.whole = [torch.cat(noise.masks[:chunks]), torch.cat(noise.masks[chunks : 2 * chunks])]
    torch.manual_seed(1)
    mixed, labels = IMix(alpha=1.0)(view_1)
    query, key = net(mixed), net(view_2)
    expected = formula(query, key, labels, negatives, 0.2)
    expected.backward()

    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
    for gradient, each in zip(found, inputs, strict=True):
        torch.testing.assert_close(gradient, each.grad, rtol=1e-10, atol=1e-12)
    if with_queue:
        assert queue.negatives.shape == (40, 5)
        assert (queue.negatives[:, None] - normalize(key.detach())).norm(dim=2).amin(0).max() < 1e-10


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.slow
def test_memory_shrinks_with_the_chunk(recipe):
    peaks = recipe.main()
    assert peaks[64] < peaks[256] < peaks[2048]
    assert peaks[64] < peaks[2048] / 4
