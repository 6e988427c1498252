"""The recipe for weighted negatives against the two papers' formulas over whole matrices."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from imix_aug import VirtualLabels

RECIPE = Path(__file__).parents[2] / "examples" / "recipes" / "weighted_negatives.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("weighted_negatives", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published(logits, positive, temperature, tau_plus, beta):
    """The row's loss, its positive's place given: g of the debiased paper, over importance weights of the other's."""
    negatives = torch.cat([logits[:positive], logits[positive + 1 :]]).exp()
    importance = negatives**beta / (negatives**beta).mean()
    count = len(negatives)
    g = ((importance * negatives).sum() - count * tau_plus * logits[positive].exp()) / (1 - tau_plus)
    g = g.clamp(min=count * math.exp(-1 / temperature))
    return -torch.log(logits[positive].exp() / (logits[positive].exp() + g))


@pytest.mark.parametrize("tau_plus", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("mixed", [False, True])
def test_equals_the_published_formulas(recipe, tau_plus, beta, mixed):
    query, key = torch.randn(2, 9, 5, dtype=torch.float64, requires_grad=True).unbind()
    labels = VirtualLabels(torch.rand(9, dtype=torch.float64), torch.randperm(9)) if mixed else None
    settings = {"temperature": 0.5, "tau_plus": tau_plus, "beta": beta}
    ours = recipe.weighted_loss(query, key, labels, **settings)
    logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / 0.5
    rows = torch.stack([published(logits[i], i, **settings) for i in range(9)])
    if mixed:
        others = torch.stack([published(logits[i], int(labels.partner[i]), **settings) for i in range(9)])
        rows = labels.lam * rows + (1 - labels.lam) * others
    torch.testing.assert_close(ours, rows.mean(), rtol=0, atol=1e-10)
    for one, other in zip(
        torch.autograd.grad(ours, (query, key)), torch.autograd.grad(rows.mean(), (query, key)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
