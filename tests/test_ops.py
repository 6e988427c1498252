"""The row log-sum-exp, and the loss as a single node, against dense float64 formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imix_aug import VirtualLabels, imix_nce_loss
from imix_aug._losses import unit_rows
from imix_aug._cross_entropy import blocked, node
from imix_aug._cross_entropy.operator import row_logsumexp
import reference


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_tiles(patch):
    """Shrink the tiles until few rows fill many of them, none of them whole."""
    patch.setattr(node, "SMALL_BATCH", 0)
    patch.setattr(blocked, "MAX_ROWS", 5)
    patch.setattr(blocked, "MIN_ROWS", 2)
    patch.setattr(blocked, "KEY_TILE", 35)
    patch.setattr(blocked, "NEGATIVE_TILE", 20)


def dense(query, key, negatives, excluded, weight):
    """Values and gradients in float64, by autograd through the dense formula."""
    query, key = (rows.detach().double().requires_grad_() for rows in (query, key))
    negatives = None if negatives is None else negatives.double()
    values = reference.row_logsumexp(query, key, negatives, excluded)
    return values.detach(), *torch.autograd.grad((values * weight.double()).sum(), (query, key))


def close(actual, expected, tolerance):
    assert actual.shape == expected.shape
    scale = expected.abs().max().clamp_min(1)
    assert ((actual.double() - expected).abs().max() / scale).item() <= tolerance


@st.composite
def problems(draw):
    n, m, d = draw(st.integers(1, 17)), draw(st.integers(1, 19)), draw(st.integers(1, 9))
    k = draw(st.sampled_from([None, 0, 1, 13]))
    # A row keeps a column: as many are left out, repetitions included, as leave one over.
    excludes = draw(st.integers(0, min(3, m - 1)))
    return n, m, d, k, excludes, draw(st.integers(0, 2**31)), draw(st.sampled_from([1e-3, 1.0, 30.0]))


TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from(list(TOLERANCES)), st.booleans())
def test_blocked_is_the_dense_formula(problem, dtype, summed):
    n, m, d, k, excludes, seed, scale = problem
    generator = torch.Generator().manual_seed(seed)
    query = (scale * torch.randn(n, d, generator=generator)).to(dtype).requires_grad_()
    key = torch.randn(m, d, generator=generator).to(dtype).requires_grad_()
    negatives = None if k is None else torch.randn(k, d, generator=generator).to(dtype)
    excluded = torch.randint(m, (n, excludes), generator=generator) if excludes else None
    weight = torch.full((n,), 0.7, dtype=torch.float64) if summed else torch.rand(n, generator=generator).double()
    with pytest.MonkeyPatch.context() as patch:
        tiny_tiles(patch)
        values = row_logsumexp(query, key, negatives, excluded=excluded, summed=summed)
        grads = torch.autograd.grad((values * (0.7 if summed else weight)).sum(), (query, key))
    expected, *expected_grads = dense(query, key, negatives, excluded, weight)
    close(values, expected.sum() if summed else expected, TOLERANCES[dtype])
    for grad, right in zip(grads, expected_grads, strict=True):
        close(grad, right, 10 * TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_units", [False, True])
def test_half_precision_multiplies_in_the_units_that_there_are(dtype, has_units, monkeypatch):
    monkeypatch.setattr(blocked, "_HAS_BFLOAT16_UNITS", has_units)
    tiny_tiles(monkeypatch)
    unit = torch.nn.functional.normalize
    query, key, negatives = (unit(torch.randn(count, 32)).to(dtype) for count in (17, 19, 23))
    query = (5 * query).requires_grad_()
    key.requires_grad_()
    values = row_logsumexp(query, key, negatives, summed=True)
    grads = torch.autograd.grad(values, (query, key))
    expected, *expected_grads = dense(query, key, negatives, None, torch.ones(17))
    assert values.dtype == torch.float32
    assert values.item() == pytest.approx(expected.sum().item(), rel=1e-2)
    for grad, right in zip(grads, expected_grads, strict=True):
        assert ((grad.double() - right).norm() / right.norm()).item() < 1e-2
    takes = blocked.product_dtype(dtype)
    assert takes == (torch.bfloat16 if has_units and dtype == torch.bfloat16 else torch.float32)


def test_logits_of_any_size_neither_overflow_nor_vanish(monkeypatch):
    tiny_tiles(monkeypatch)
    rows = torch.randn(11, 4)
    key, negatives = torch.randn(7, 4), torch.randn(30, 4)
    for scale in (1e-20, 1e-3, 1.0, 1e3, 1e6):
        query = (rows * scale).requires_grad_()
        values = row_logsumexp(query, key, negatives)
        (grad,) = torch.autograd.grad(values.sum(), query)
        expected, expected_grad, _ = dense(query, key, negatives, None, torch.ones(11))
        torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(grad.double(), expected_grad, rtol=2e-2 if scale > 1 else 1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [5e-11, 1.0, 9e11])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_logits_that_need_no_peak(length, sign, monkeypatch):
    """Every logit of the first query is 40, or -40, and rows are as long or as short as they may be."""
    tiny_tiles(monkeypatch)
    limit = 0.9999 * blocked.SAFE_LOGIT
    query, key = torch.nn.functional.normalize(torch.randn(11, 4)), torch.nn.functional.normalize(torch.randn(17, 4))
    key[:] = sign * query[0]
    key[3] = torch.nn.functional.normalize(torch.randn(4), dim=0)
    query, key = (query * length).requires_grad_(), (key * (limit / length)).requires_grad_()
    assert blocked._is_bounded(query.detach(), key.detach(), None)
    assert not blocked._is_bounded(query.detach() * 1.001, key.detach(), None)
    values = row_logsumexp(query, key, summed=True)
    grads = torch.autograd.grad(values, (query, key))
    expected, *expected_grads = dense(query, key, None, None, torch.ones(11))
    assert values.item() == pytest.approx(expected.sum().item(), rel=1e-5)
    for grad, right in zip(grads, expected_grads, strict=True):
        assert ((grad.double() - right).norm() / right.norm()).item() < 2e-5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["query", "key", "negatives"])
def test_what_is_no_number_stays_none(bad, where):
    tensors = {"query": torch.randn(6, 4), "key": torch.randn(5, 4), "negatives": torch.randn(4, 4)}
    tensors[where][2, 1] = bad
    values = row_logsumexp(**tensors)
    if where == "query":
        assert not values[2].isfinite()
        assert values[[0, 1, 3, 4, 5]].isfinite().all()
    else:
        assert not values.isfinite().all()


def test_a_row_that_leaves_out_every_column_sums_to_nothing():
    query, key = torch.randn(3, 4), torch.randn(2, 4)
    excluded = torch.tensor([[0, 1], [1, 1], [0, 0]])
    values = row_logsumexp(query, key, excluded=excluded)
    assert values[0] == -math.inf
    assert values[1:].isfinite().all()
    # With a negative there is a column again.
    negatives = torch.randn(1, 4)
    values = row_logsumexp(query, key, negatives, excluded=excluded)
    torch.testing.assert_close(values[0], query[0] @ negatives[0])


def test_rows_in_any_memory_layout():
    query, key, negatives = torch.randn(6, 10)[:, ::2], torch.randn(5, 7).T, torch.randn(9, 5).flip(0)[1::3]
    query.requires_grad_()
    grad = torch.autograd.grad(row_logsumexp(query, key, negatives, summed=True), query)[0]
    right = torch.autograd.grad(row_logsumexp(query, key.contiguous(), negatives.contiguous(), summed=True), query)[0]
    torch.testing.assert_close(grad, right)
    torch.testing.assert_close(
        right.double(), dense(query, key, negatives, None, torch.ones(6))[1], rtol=1e-5, atol=1e-6
    )


def test_no_gradient_is_computed_that_nobody_asks_for(monkeypatch):
    calls = []
    forward = blocked.forward
    monkeypatch.setattr(blocked, "forward", lambda *args: calls.append(args[-2:]) or forward(*args))
    query, key = torch.randn(3, 4), torch.randn(3, 4)
    row_logsumexp(query, key, summed=True)
    row_logsumexp(query.requires_grad_(), key, summed=True)
    row_logsumexp(query, key.requires_grad_(), summed=True)
    row_logsumexp(query, key, summed=False)
    assert calls == [(False, False), (True, False), (True, True), (True, False)]


def exact_nce(query, key, labels, temperature, mean):
    """The paper's formula in float64."""
    query, key = (rows.detach().double().requires_grad_() for rows in (query, key))
    unit = [rows / rows.norm(dim=1, keepdim=True) for rows in (query, key)]
    log_softmax = (unit[0] @ unit[1].T / temperature).log_softmax(dim=1)
    n = len(query)
    label = torch.eye(n, dtype=torch.float64) if labels is None else labels.dense().double()
    loss = -(label * log_softmax).sum() / (n if mean else 1)
    return loss.detach(), *torch.autograd.grad(loss, (query, key))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 9),
    st.sampled_from([0.005, 0.07, 0.2, 10.0]),
    st.sampled_from([1e-9, 1.0, 1e20]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_all_ways_to_the_loss_are_the_formula(n, d, temperature, length, mean, mixed, seed):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(n, d, generator=generator) + 2
    key = torch.randn(n, d, generator=generator) + 2
    key[0] *= length
    labels = None
    if mixed:
        labels = VirtualLabels(torch.rand(n, generator=generator) / 2 + 0.5, torch.randperm(n, generator=generator))
    expected, *expected_grads = exact_nce(query, key, labels, temperature, mean)
    for as_node, tile in ((True, "whole"), (True, "tiny"), (False, "tiny")):
        with pytest.MonkeyPatch.context() as patch:
            if tile == "tiny":
                tiny_tiles(patch)
            if not as_node:
                patch.setattr(node, "nce_loss", lambda *args: None)
            leaves = [rows.double().requires_grad_() for rows in (query, key)]
            loss = imix_nce_loss(*leaves, labels, temperature=temperature, reduction="mean" if mean else "sum")
            grads = torch.autograd.grad(loss, leaves)
            single = imix_nce_loss(
                *(leaf.detach().float().requires_grad_() for leaf in leaves),
                labels,
                temperature=temperature,
                reduction="mean" if mean else "sum",
            )
        assert loss.item() == pytest.approx(expected.item(), rel=1e-10, abs=1e-10)
        # Logits of 1 / 0.005 = 200 carry 2 ** -24 of themselves as float32's rounding.
        assert single.item() == pytest.approx(expected.item(), rel=1e-5, abs=3e-6 * n / temperature)
        for grad, right, rows in zip(grads, expected_grads, (query, key), strict=True):
            # The gradient in a row of length 1e-9 is a difference of numbers that are 1e9 times as large.
            scale = 1 / (temperature * rows.double().norm(dim=1).min().item())
            assert (grad - right).norm().item() <= 1e-10 * max(scale, right.norm().item())


def test_the_single_node_is_taken_where_it_serves_and_only_there():
    query, key = (torch.randn(8, 4, requires_grad=True) for _ in range(2))
    assert node.nce_loss(query, key, None, 5.0, "mean") is not None
    zero = torch.zeros(8, 4, requires_grad=True)
    overflown = (torch.ones(8, 4) * 1e30).requires_grad_()
    undefined = torch.full((8, 4), math.nan, requires_grad=True)
    for rows in (zero, overflown, undefined):
        assert node.nce_loss(rows, key, None, 5.0, "mean") is None
        assert node.nce_loss(query, rows, None, 5.0, "mean") is None
    assert node.nce_loss(query.detach(), key, None, 5.0, "mean") is None
    assert node.nce_loss(query, key, None, 5.0, "none") is None
    with torch.autocast("cpu"):
        assert node.nce_loss(query, key, None, 5.0, "mean") is None


@pytest.mark.parametrize("has_units", [False, True])
def test_few_products_of_half_precision_are_made_in_single(has_units, monkeypatch):
    monkeypatch.setattr(blocked, "_HAS_BFLOAT16_UNITS", has_units)
    monkeypatch.setattr(node, "MANY_PRODUCTS", 8 * 8 * 5)
    for dtype in (torch.bfloat16, torch.float16):
        for d in (4, 5):
            query, key = (torch.randn(8, d, dtype=dtype, requires_grad=True) for _ in range(2))
            loss = node.nce_loss(query, key, None, 5.0, "mean")
            assert (loss is None) == (d == 5 and has_units and dtype == torch.bfloat16)
            if loss is not None:
                expected, *expected_grads = exact_nce(query, key, None, 0.2, True)
                assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
                for grad, right in zip(torch.autograd.grad(loss, (query, key)), expected_grads, strict=True):
                    assert grad.dtype == dtype
                    assert (grad - right).norm() / right.norm() <= torch.finfo(dtype).eps


@pytest.mark.parametrize("as_node", [True, False])
def test_a_second_derivative_is_refused(as_node, monkeypatch):
    if not as_node:
        monkeypatch.setattr(node, "nce_loss", lambda *args: None)
    query, key = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    (grad,) = torch.autograd.grad(imix_nce_loss(query, key), query, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


def test_unit_rows_of_all_lengths():
    rows = torch.randn(6, 5, dtype=torch.float64)
    lengths = torch.tensor([0.0, 1e-30, 1e-13, 1.0, 1e20, 1e30], dtype=torch.float64)[:, None]
    rows = rows / rows.norm(dim=1, keepdim=True) * lengths
    unit = unit_rows(rows.float()).norm(dim=1)
    expected = torch.tensor([0.0, 1e-18, 0.1, 1.0, 1.0, 1.0])
    torch.testing.assert_close(unit, expected, rtol=1e-5, atol=1e-20)
    # A batch without extremes takes the shorter way to the same rows.
    torch.testing.assert_close(unit_rows(rows[2:4].float()), unit_rows(rows.float())[2:4])


def test_only_rows_whose_squares_overflow_are_scaled_twice():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Calls(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    for length, twice in ((1.0, False), (0.0, False), (1e30, True)):
        with Calls() as calls:
            unit_rows(length * torch.ones(3, 4))
        assert ("amax" in calls.names) is twice
