"""Extreme values: right to the promised tolerance where a right answer exists, NaN where none does."""

import dense
import pytest
import torch

from imix_aug import (
    IMix,
    VirtualLabels,
    imix_byol_loss,
    imix_nce_loss,
    imix_ntxent_loss,
    imix_supcon_loss,
)


def labels_of(n):
    return VirtualLabels(0.5 + 0.5 * torch.rand(n), torch.randperm(n))


def npair(q, k, labels, **options):
    return imix_nce_loss(q, k, labels, **options), dense.nce(q, k, labels, **options).mean()


def moco(q, k, labels, **options):
    negatives = torch.randn(50, q.shape[1], generator=torch.Generator().manual_seed(1))
    return (
        imix_nce_loss(q, k, labels, negatives=negatives, **options),
        dense.nce(q, k, labels, negatives=negatives, **options).mean(),
    )


def ntxent(q, k, labels, **options):
    rows = q, q.roll(1, 0), k, k.roll(1, 0)
    return imix_ntxent_loss(*rows, labels, **options), dense.ntxent(*rows, labels, **options).mean()


def supcon(q, k, labels, **options):
    classes = torch.arange(len(q)) % 4
    return imix_supcon_loss(q, k, classes, labels, **options), dense.supcon(q, k, classes, labels, **options).mean()


def byol(q, k, labels):
    return imix_byol_loss(q, k, labels), dense.byol(q, k, labels).mean()


LOSSES = [npair, moco, ntxent, supcon]


def assert_agree(loss, expected, inputs, tolerance=1e-5):
    """Value to its relative tolerance, each gradient to that of its norm; all finite."""
    assert loss.isfinite()
    assert abs(loss.item() - expected.item()) <= tolerance * max(abs(expected.item()), 1e-3)
    grads = torch.autograd.grad(loss, inputs, allow_unused=True)
    for grad, wanted in zip(grads, torch.autograd.grad(expected, inputs, allow_unused=True), strict=True):
        if wanted is None:
            assert grad is None
            continue
        assert grad.isfinite().all()
        assert (grad.double() - wanted.double()).norm() <= tolerance * wanted.double().norm() + 1e-30


@pytest.mark.parametrize("temperature", [0.005, 0.02, 0.07, 0.2, 1.0, 10.0])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_temperatures(loss, temperature):
    q, k = torch.randn(200, 16, requires_grad=True), torch.randn(200, 16, requires_grad=True)
    tau = torch.tensor(temperature, requires_grad=True)
    # A logit of 1 / temperature carries float32's rounding of that size into the softmax.
    tolerance = 1e-5 * max(1, 0.05 / temperature)
    assert_agree(*loss(q, k, labels_of(200), temperature=tau), (q, k, tau), tolerance)


@pytest.mark.parametrize("temperature", [0.005, 0.2])
# At 1e-12 itself the divisor has a corner.
@pytest.mark.parametrize("norm", [0.0, 1e-20, 1e-13, 1e-11, 1e-6, 1e20, 1e30])
@pytest.mark.parametrize("loss", [*LOSSES, byol], ids=lambda loss: loss.__name__)
def test_lengths_of_rows(loss, norm, temperature):
    lengths = torch.ones(40, 1)
    lengths[::3] = norm
    q = (torch.nn.functional.normalize(torch.randn(40, 8), dim=1) * lengths).requires_grad_()
    k = (torch.nn.functional.normalize(torch.randn(40, 8), dim=1) * lengths.roll(1, 0)).requires_grad_()
    options = {} if loss is byol else {"temperature": temperature}
    outcome, expected = loss(q, k, labels_of(40), **options)
    assert outcome.isfinite()
    torch.testing.assert_close(outcome.double(), expected, rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(outcome, (q, k), allow_unused=True)
    for grad, wanted in zip(grads, torch.autograd.grad(expected, (q, k), allow_unused=True), strict=True):
        if wanted is None:
            assert grad is None
            continue
        assert grad.isfinite().all()
        for rows in (slice(0, None, 3), slice(1, None, 3), slice(2, None, 3)):  # Lengths of a kind share a scale.
            error, size = (grad[rows] - wanted[rows]).double().norm(), wanted[rows].double().norm()
            assert error <= 1e-4 * size


@pytest.mark.parametrize("loss", [*LOSSES, byol], ids=lambda loss: loss.__name__)
def test_all_rows_alike(loss):
    q, k = torch.ones(30, 5, requires_grad=True), torch.ones(30, 5, requires_grad=True)
    outcome, expected = loss(q, k, labels_of(30))
    torch.testing.assert_close(outcome.double(), expected, rtol=1e-5, atol=1e-6)
    (grad,) = torch.autograd.grad(outcome, q)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, q)[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("labels", [None, VirtualLabels.identity(1)], ids=["unmixed", "identity"])
def test_a_single_row(labels):
    q, k = torch.randn(1, 4, requires_grad=True), torch.randn(1, 4, requires_grad=True)
    losses = [
        imix_nce_loss(q, k, labels),
        imix_ntxent_loss(q, k, q, k, labels),
        imix_supcon_loss(q, k, torch.tensor([3]), labels),
    ]
    for loss in losses:  # One key, and it is the positive: nothing to tell apart.
        assert abs(loss.item()) < 1e-5
        for grad in torch.autograd.grad(loss, (q, k)):
            assert grad.abs().max() < 1e-5
    negatives = torch.randn(3, 4)
    assert_agree(
        imix_nce_loss(q, k, labels, negatives=negatives), dense.nce(q, k, labels, negatives=negatives).mean(), (q, k)
    )
    mixed, drawn = IMix()(q)
    assert drawn.partner.tolist() == [0]
    torch.testing.assert_close(mixed, q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("normalize", [False, True])
def test_lambda_of_one_is_no_label_to_the_bit(normalize, dtype):
    q, k = torch.randn(2, 33, 7, dtype=dtype).unbind()
    labels = VirtualLabels(torch.ones(33), torch.randperm(33))
    for loss in (imix_nce_loss, imix_byol_loss):
        assert torch.equal(loss(q, k, labels, normalize=normalize), loss(q, k, normalize=normalize))
    classes = torch.arange(33) % 5
    mixed, plain = (imix_supcon_loss(q, k, classes, each, normalize=normalize) for each in (labels, None))
    assert torch.equal(mixed, plain)


SLOW_COLUMNS = [4096, *(pytest.param(columns, marks=pytest.mark.slow) for columns in (65536, 1_000_000))]


@pytest.mark.parametrize("temperature", [0.01, 0.2])
@pytest.mark.parametrize("columns", SLOW_COLUMNS)
def test_many_negatives(columns, temperature):
    q, k, negatives = (
        torch.randn(8, 16, requires_grad=True),
        torch.randn(8, 16, requires_grad=True),
        torch.randn(columns, 16),
    )
    labels, options = labels_of(8), {"negatives": negatives, "temperature": temperature}
    tolerance = 1e-5 * max(1, 0.05 / temperature)
    assert_agree(imix_nce_loss(q, k, labels, **options), dense.nce(q, k, labels, **options).mean(), (q, k), tolerance)


@pytest.mark.slow
def test_many_rows_and_keys():
    q, k = torch.randn(8192, 8, requires_grad=True), torch.randn(8192, 8, requires_grad=True)
    assert_agree(*npair(q, k, labels_of(8192)), (q, k))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["query", "key", "negatives"])
@pytest.mark.parametrize("temperature", [0.005, 0.2])
def test_bad_values_give_nan(where, bad, normalize, reduction, temperature):
    """A bad query spoils its own row, a bad key or negative every row that it is compared with."""
    rows = {"query": torch.randn(9, 4), "key": torch.randn(9, 4), "negatives": torch.randn(600, 4)}
    rows[where][3, 1] = bad
    for each in ("query", "key"):
        rows[each].requires_grad_()
    options = {"negatives": rows["negatives"], "normalize": normalize, "temperature": temperature}
    loss = imix_nce_loss(rows["query"], rows["key"], labels_of(9), reduction=reduction, **options)
    if not normalize and abs(bad) == torch.inf:  # Unscaled, a logit of minus infinity puts a key out of the running.
        assert not loss.isfinite().all() or where != "query"
        return
    spoilt = loss[3:4] if where == "query" and reduction == "none" else loss
    assert spoilt.isnan().all()
    if reduction == "none" and where == "query":
        assert loss[:3].isfinite().all()
        assert loss[4:].isfinite().all()
    (grad,) = torch.autograd.grad(loss.sum(), rows["query"])
    assert grad[3].isnan().any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_values_give_nan_in_every_loss(bad):
    labels = labels_of(9)
    for index in range(4):
        rows = list(torch.randn(4, 9, 4).unbind())
        rows[index][2, 0] = bad
        q1, q2, k1, k2 = rows
        assert imix_ntxent_loss(q1, q2, k1, k2, labels).isnan()
        if index in (0, 2):
            assert imix_supcon_loss(q1, k1, torch.arange(9) % 2, labels).isnan()
            assert imix_byol_loss(q1, k1, labels).isnan()


def test_bad_inputs_stay_visible_after_mixing():
    x = torch.randn(8, 3)
    x[2, 1] = torch.nan
    mixed, labels = IMix()(x)
    assert mixed[2, 1].isnan()
    assert mixed[labels.partner == 2, 1].isnan().all()


def test_bad_temperatures_on_the_host_are_refused():
    q = torch.randn(3, 2)
    for bad in (torch.nan, torch.inf, 0.0, -1.0):
        for value in (bad, torch.tensor(bad)):
            with pytest.raises(ValueError, match="temperature"):
                imix_nce_loss(q, q, temperature=value)
