"""The gradient keeps its digits however well samples are told apart, and no loss is below zero."""

import oracle
import pytest
import torch
from torch.nn import functional as F

from imix_aug import VirtualLabels, imix_clip_loss, imix_nce_loss, imix_ntxent_loss, imix_supcon_loss

N = 96
HALF = [torch.bfloat16, torch.float16]
# From nearly told apart to so well that a plain softmax rounds to one: (D, temperature, noise of the second view).
SEPARATED = [
    (17, 0.07, 0.2),
    (128, 0.2, 0.5),
    (128, 0.1, 0.5),
    (128, 0.07, 0.5),
    (300, 0.07, 0.5),
    (128, 0.05, 0.3),
    (1024, 0.05, 0.1),
    (128, 1.0, 0.5),
    (64, 0.03, 0.4),
]


def exact_losses(logits, label, left_out=None):
    """Cross-entropies in float64 whose digits are kept: each positive against the sum over all others."""
    if left_out is not None:
        logits = logits.masked_fill(left_out, -torch.inf)
    rows = []
    for row, shares in zip(logits, label, strict=True):
        terms = [
            share * F.softplus((torch.cat([row[:j], row[j + 1 :]])).logsumexp(0) - row[j], threshold=200)
            for j, share in enumerate(shares)
            if share > 0
        ]
        rows.append(torch.stack(terms).sum())
    return torch.stack(rows)


def dense_losses(logits, label, left_out=None):
    """The usual formula."""
    if left_out is not None:
        logits = logits.masked_fill(left_out, -torch.inf)
    log_p = logits.float().log_softmax(1) if logits.dtype != torch.float64 else logits.log_softmax(1)
    return -(label.to(log_p.dtype) * torch.where(label > 0, log_p, 0)).sum(1)


def nce(first, second, label, classes, temperature, losses):
    return losses(F.normalize(first) @ F.normalize(second).T / temperature, label)


def ntxent(first, second, label, classes, temperature, losses):
    rows = F.normalize(torch.cat([first, second]))
    label = torch.cat([torch.cat([0 * label, label], 1), torch.cat([label, 0 * label], 1)])
    return losses(rows @ rows.T / temperature, label, torch.eye(len(rows), dtype=torch.bool))


def supcon(first, second, label, classes, temperature, losses):
    same = (classes[:, None] == classes).to(label.dtype)
    label = label @ (same / same.sum(1, keepdim=True))
    return losses(F.normalize(first) @ F.normalize(second).T / temperature, label)


def clip(first, second, label, classes, temperature, losses):
    logits = F.normalize(first) @ F.normalize(second).T / temperature
    held = label.T / label.sum(0)[:, None]
    return (losses(logits, label) + losses(logits.T, held)) / 2


LOSSES = {
    "nce": (nce, lambda a, b, labels, classes, **how: imix_nce_loss(a, b, labels, **how)),
    "ntxent": (ntxent, lambda a, b, labels, classes, **how: imix_ntxent_loss(a, b, **how)),
    "supcon": (supcon, lambda a, b, labels, classes, **how: imix_supcon_loss(a, b, classes, labels, **how)),
    "clip": (clip, lambda a, b, labels, classes, **how: imix_clip_loss(a, b, labels, **how)),
}


def errors(loss, case, dtype, mixed, reduction):
    """Relative errors of loss and gradients, ours and the dense formula's under the same autocast."""
    d, temperature, noise = case
    formula, ours = LOSSES[loss]
    generator = torch.Generator().manual_seed(d)
    first = torch.randn(N, d, generator=generator)
    second = first + noise * torch.randn(N, d, generator=generator)
    classes = torch.arange(N) // 2 if loss == "supcon" else torch.arange(N)
    lam = torch.rand(N, generator=generator) / 2 + 0.5 if mixed else torch.ones(N)
    labels = VirtualLabels(lam, torch.randperm(N, generator=generator))
    label = oracle.soft_labels(*labels, N)
    weight = torch.rand(N, generator=generator) if reduction == "none" else torch.full((N,), 1 / N)
    results = {}
    for name in ("exact", "dense", "ours"):
        a, b = (each.clone().to(torch.float64 if name == "exact" else torch.float32) for each in (first, second))
        a.requires_grad_()
        b.requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32 and name != "exact"):
            if name == "ours":
                value = ours(a, b, labels if mixed else None, classes, temperature=temperature, reduction=reduction)
                assert (value >= 0).all()
            else:
                value = formula(a, b, label, classes, temperature, exact_losses if name == "exact" else dense_losses)
                if loss == "ntxent":
                    value = value.view(2, N).mean(0)
        total = value if value.dim() == 0 else (value * weight.to(value.dtype)).sum()
        results[name] = (total.detach(), *torch.autograd.grad(total, (a, b)))
    return {
        name: [
            ((got.double() - want).norm() / want.norm()).item()
            for got, want in zip(results[name], results["exact"], strict=True)
        ]
        for name in ("dense", "ours")
    }


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("case", SEPARATED, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_float32_keeps_its_digits(loss, case, mixed, reduction):
    if loss == "ntxent" and mixed:
        pytest.skip("mixed NT-Xent has keys of its own, as test_losses.py tests")
    found = errors(loss, case, torch.float32, mixed, reduction)
    for ours, dense in zip(found["ours"], found["dense"], strict=True):
        assert ours <= max(2 * dense, 4e-6)  # logits of 1 / temperature are themselves rounded to 1e-6 of one
    if loss in ("nce", "ntxent", "clip"):
        assert max(found["ours"]) < 1e-5


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("case", SEPARATED, ids=str)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_never_worse_than_the_dense_formula(loss, dtype, case, mixed, reduction):
    if loss == "ntxent" and mixed:
        pytest.skip("mixed NT-Xent has keys of its own, as test_losses.py tests")
    found = errors(loss, case, dtype, mixed, reduction)
    for ours, dense in zip(found["ours"][1:], found["dense"][1:], strict=True):
        assert ours <= 1.05 * dense


@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_single_row_loses_nothing(temperature, dtype):
    for seed in range(200):
        row = torch.randn(1, 24, generator=torch.Generator().manual_seed(seed)).to(dtype)
        for grad in (False, True):
            query, key = row.clone().requires_grad_(grad), (2 * row).requires_grad_(grad)
            assert imix_nce_loss(query, key, temperature=temperature).item() == 0
            assert imix_supcon_loss(query, key, torch.zeros(1, dtype=torch.long), temperature=temperature).item() == 0
            assert imix_ntxent_loss(query, key, temperature=temperature).item() == 0


@pytest.mark.parametrize("temperature", [0.01, 0.05])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_no_loss_is_below_zero(temperature, reduction):
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        first = torch.randn(256, 64, generator=generator)
        second = first + 0.1 * torch.randn(256, 64, generator=generator)
        for key in (second, second.requires_grad_()):
            query = first.clone().requires_grad_(key.requires_grad)
            assert (imix_nce_loss(query, key, temperature=temperature, reduction=reduction) >= 0).all()
            assert (imix_ntxent_loss(query, key, temperature=temperature, reduction=reduction) >= 0).all()
            classes = torch.randint(200, (256,), generator=generator)
            assert (imix_supcon_loss(query, key, classes, temperature=temperature, reduction=reduction) >= 0).all()
