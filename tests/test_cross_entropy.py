"""The soft cross-entropy, its sweeps, and the loss as a single node, against dense float64 formulas."""

import math

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from imix_aug import VirtualLabels, _cross_entropy, _embeddings, imix_nce_loss
from imix_aug._cross_entropy import blocked, node, operator, plain, sweeps
from imix_aug._cross_entropy.columns import LeftOut, Positives
from imix_aug._cross_entropy.once_differentiable import once_differentiable
from imix_aug._cross_entropy.operator import soft_cross_entropy
from imix_aug._cross_entropy.positives import settle
from imix_aug._embeddings import unit_rows


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_tiles(patch):
    """Shrink the tiles until few rows fill many of them, none of them whole."""
    patch.setattr(plain, "SMALL_BATCH", 0)
    patch.setattr(blocked, "MAX_ROWS", 5)
    patch.setattr(blocked, "MIN_ROWS", 2)
    patch.setattr(blocked, "KEY_TILE", 35)
    patch.setattr(blocked, "NEGATIVE_TILE", 20)


def own(n):
    return Positives.own(n, torch.device("cpu"), torch.float32)


def close(actual, expected, tolerance):
    assert actual.shape == expected.shape
    if expected.numel() == 0:
        return
    scale = expected.abs().max().clamp_min(1)
    assert ((actual.double() - expected).abs().max() / scale).item() <= tolerance


@st.composite
def problems(draw):
    n, m, d = draw(st.integers(1, 17)), draw(st.integers(1, 19)), draw(st.integers(1, 9))
    k = draw(st.sampled_from([None, 0, 1, 13]))
    positives, excludes = draw(st.integers(1, min(3, m))), draw(st.integers(0, 3))
    ids, further = draw(st.booleans()), draw(st.booleans())
    return n, m, d, k, positives, excludes, ids, further, draw(st.integers(0, 2**31))


def make(problem, scale, dtype):
    """Tensors of a problem, the same for every dtype."""
    n, m, d, k, p, excludes, ids, further, seed = problem
    g = torch.Generator().manual_seed(seed)
    query = (scale * torch.randn(n, d, generator=g)).to(dtype).requires_grad_()
    key = torch.randn(m, d, generator=g).to(dtype).requires_grad_()
    negatives = None if k is None else torch.randn(k, d, generator=g).to(dtype).requires_grad_()
    columns = torch.stack([torch.randperm(m, generator=g)[:p] for _ in range(n)])
    shares = torch.rand(n, p, generator=g, dtype=torch.float64)
    # Some columns stand for none, as a row's own partner does.
    absent = torch.rand(n, p, generator=g) < 0.3
    absent[:, 0] = False
    columns, shares = torch.where(absent, columns[:, :1], columns), torch.where(absent, 0, shares)
    shares = (shares / shares.sum(1, keepdim=True)).to(dtype)
    left_out = LeftOut(torch.randint(m, (n, excludes), generator=g) if excludes else None)
    if ids:
        rows_ids, key_ids, negative_ids = (torch.randint(4, (size,), generator=g) for size in (n, m, k or 0))
        left_out = left_out._replace(
            row_ids=rows_ids, key_ids=key_ids, negative_ids=None if k is None else negative_ids
        )
    more = (scale * torch.randn(n, generator=g)).to(dtype).requires_grad_() if further else None
    return query, key, negatives, Positives(columns, shares), left_out, more


@settings(max_examples=100, deadline=None)
@given(
    problems(),
    st.sampled_from([1e-3, 1.0, 30.0]),
    st.sampled_from([(torch.float64, 1e-10), (torch.float32, 2e-5)]),
    st.sampled_from(["rows", "sum", "weighted sum"]),
    st.booleans(),
)
def test_the_primitive_is_the_dense_formula(problem, scale, kind, summed, by_operator):
    dtype, tolerance = kind
    query, key, negatives, positives, left_out, further = make(problem, scale, dtype)
    weight = torch.rand(len(query), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    how = {"rows": {}, "sum": {"summed": True}, "weighted sum": {"summed": True, "weight": weight.to(dtype)}}[summed]
    with pytest.MonkeyPatch.context() as patch:
        tiny_tiles(patch)
        if by_operator:
            patch.setattr(node, "readable", lambda rows: False)
        values = soft_cross_entropy(
            query, key, negatives, positives, left_out=left_out, further=further, dtype=dtype, **how
        )
        leaves = [each for each in (query, key, negatives, further) if each is not None]
        total = (values * weight.to(dtype)).sum() if summed == "rows" else values
        grads = torch.autograd.grad(total, leaves)
    exact = [None if each is None else each.detach().double().requires_grad_() for each in (query, key, negatives)]
    exact_further = None if further is None else further.detach().double().requires_grad_()
    label = Positives(positives.columns, positives.shares.double())
    expected = reference.soft_cross_entropy(*exact, label, left_out, exact_further)
    weighted = (expected * (1 if summed == "sum" else weight)).sum()
    close(values, expected if summed == "rows" else weighted, tolerance)
    assert (values >= 0).all()
    right = torch.autograd.grad(weighted, [each for each in (*exact, exact_further) if each is not None])
    for grad, wanted in zip(grads, right, strict=True):
        close(grad, wanted, 10 * tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_units", [False, True])
@pytest.mark.parametrize("summed", [False, True])
def test_half_precision_multiplies_in_the_units_that_there_are(dtype, has_units, summed, monkeypatch):
    monkeypatch.setattr(blocked, "_HAS_BFLOAT16_UNITS", has_units)
    tiny_tiles(monkeypatch)
    query, key, negatives = (F.normalize(torch.randn(count, 32)).to(dtype).float() for count in (17, 19, 23))
    query, key = (5 * query).requires_grad_(), key.requires_grad_()
    positives = Positives(torch.stack([torch.randperm(19)[:2] for _ in range(17)]), torch.full((17, 2), 0.5))
    taken, forward = [], blocked.forward
    monkeypatch.setattr(blocked, "forward", lambda query, *rest: taken.append(query.dtype) or forward(query, *rest))
    values = soft_cross_entropy(query, key, negatives, positives, dtype=dtype, summed=summed)
    grads = torch.autograd.grad(values.sum(), (query, key))
    exact = [each.detach().double().requires_grad_() for each in (query, key)]
    expected = reference.soft_cross_entropy(*exact, negatives.double(), positives).sum()
    assert values.dtype == torch.float32
    assert values.sum().item() == pytest.approx(expected.item(), rel=1e-2)
    for grad, right in zip(grads, torch.autograd.grad(expected, exact), strict=True):
        assert ((grad.double() - right).norm() / right.norm()).item() < 1e-2
    assert taken == [torch.bfloat16 if has_units and dtype == torch.bfloat16 else torch.float32]


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e3, 1e6])
def test_logits_of_any_size_neither_overflow_nor_vanish(scale, monkeypatch):
    tiny_tiles(monkeypatch)
    query, key, negatives = (scale * torch.randn(11, 4)).requires_grad_(), torch.randn(11, 4), torch.randn(30, 4)
    values = soft_cross_entropy(query, key, negatives, own(11), dtype=torch.float32)
    (grad,) = torch.autograd.grad(values.sum(), query)
    exact = query.detach().double().requires_grad_()
    expected = reference.soft_cross_entropy(exact, key.double(), negatives.double(), own(11))
    (expected_grad,) = torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)
    single = query.detach().requires_grad_()
    dense = reference.soft_cross_entropy(single, key, negatives, own(11)).sum()
    (dense_grad,) = torch.autograd.grad(dense, single)
    # A logit of 1e6 is rounded by as much as 0.06, whoever computes it.
    assert (grad - expected_grad).norm() <= 3 * (dense_grad - expected_grad).norm() + 1e-6 * expected_grad.norm()


@pytest.mark.parametrize("length", [5e-11, 1.0, 9e11])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_logits_that_need_no_peak(length, sign, monkeypatch):
    """Nearly every logit of the first query is as large, or as small, as it may be, and so are the rows."""
    tiny_tiles(monkeypatch)
    limit = 0.9999 * blocked.SAFE_LOGIT
    query, key = F.normalize(torch.randn(11, 4)), F.normalize(torch.randn(17, 4))
    key[:] = sign * query[0]
    key[3] = F.normalize(torch.randn(4), dim=0)
    query, key = (query * length).requires_grad_(), (key * (limit / length)).requires_grad_()
    assert blocked._is_bounded(query.detach(), key.detach(), None)
    assert not blocked._is_bounded(query.detach() * 1.001, key.detach(), None)
    values = soft_cross_entropy(query, key, None, own(11), dtype=torch.float32, summed=True)
    grads = torch.autograd.grad(values, (query, key))
    exact = [each.detach().double().requires_grad_() for each in (query, key)]
    expected = reference.soft_cross_entropy(*exact, None, own(11)).sum()
    assert values.item() == pytest.approx(expected.item(), rel=1e-5)
    for grad, right in zip(grads, torch.autograd.grad(expected, exact), strict=True):
        assert ((grad.double() - right).norm() / right.norm()).item() < 2e-5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["query", "key", "negatives"])
def test_what_is_no_number_stays_none(bad, where):
    tensors = {"query": torch.randn(6, 4), "key": torch.randn(6, 4), "negatives": torch.randn(4, 4)}
    tensors[where][2, 1] = bad
    values = soft_cross_entropy(**tensors, positives=own(6), dtype=torch.float32)
    if where == "query":
        assert not values[2].isfinite()
        assert values[[0, 1, 3, 4, 5]].isfinite().all()
    else:
        assert not values.isfinite().all()


def test_a_row_whose_columns_are_all_positive_or_left_out_loses_nothing():
    query, key = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4)
    left_out = LeftOut(torch.tensor([[0, 1], [1, 1], [0, 0]]))
    positives = Positives(torch.tensor([[0], [0], [1]]), torch.ones(3, 1))
    values = soft_cross_entropy(query, key, None, positives, left_out=left_out, dtype=torch.float32)
    assert values.tolist() == [0, 0, 0]
    (grad,) = torch.autograd.grad(values.sum(), query)
    assert grad.abs().max() == 0
    lse, mean = blocked.sweep_keys(query.detach(), key, None, left_out, True)
    assert lse[0] == -math.inf
    assert mean[0].tolist() == [0] * 4
    assert lse[1:].isfinite().all()
    # With a negative there is a column again.
    negatives = torch.randn(1, 4)
    values = soft_cross_entropy(query, key, negatives, positives, left_out=left_out, dtype=torch.float32)
    expected = F.softplus((query * negatives).sum(1) - (query * key[positives.columns[:, 0]]).sum(1))
    torch.testing.assert_close(values, expected)


@settings(max_examples=40, deadline=None)
@given(problems(), st.sampled_from([1.0, 30.0]), st.booleans())
def test_the_two_sweeps_are_the_dense_formula(problem, scale, wants_mean):
    query, key, negatives, positives, left_out, _ = make(problem, scale, torch.float64)
    query, key = query.detach(), key.detach()
    negatives = None if negatives is None else negatives.detach()
    left_out = left_out.and_columns(positives.columns)
    with pytest.MonkeyPatch.context() as patch:
        tiny_tiles(patch)
        lse, mean = blocked.sweep_keys(query, key, negatives, left_out, wants_mean)
        level, weight = torch.randn(len(query)).double() + 3 * scale, torch.randn(len(query)).double()
        grad = blocked.sweep_queries(query, key, left_out, level, weight)
    logits = reference.logits_of(query, key, negatives, left_out)
    torch.testing.assert_close(lse, logits.logsumexp(1), rtol=1e-10, atol=1e-10)
    if wants_mean:
        every = key if negatives is None else torch.cat([key, negatives])
        torch.testing.assert_close(mean, logits.softmax(1).nan_to_num(0) @ every, rtol=1e-9, atol=1e-9)
    own_logits = reference.logits_of(query, key, None, left_out)
    right = ((own_logits - level[:, None]).exp() * weight[:, None]).T @ query
    torch.testing.assert_close(grad, right, rtol=1e-9, atol=1e-9)


class StandIn:
    """Takes what kernels take, and computes it plainly."""

    sweep_queries = staticmethod(blocked.sweep_queries)

    @staticmethod
    def sweep_keys(query, key, negatives, left_out, wants_mean, bounded):
        assert bounded
        return blocked.sweep_keys(query, key, negatives, left_out, wants_mean)


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("wants_mean", [False, True])
@pytest.mark.parametrize("has_further", [False, True])
@pytest.mark.parametrize("by_kernels", [False, True])
def test_a_sweep_comes_together_with_the_positives_that_it_left_out(
    width, wants_mean, has_further, by_kernels, monkeypatch
):
    """The way of the ring and of the kernels: each number that it leaves behind, from the dense softmax."""
    if by_kernels:
        monkeypatch.setattr(sweeps, "with_kernels", lambda device, kernels, plainly: kernels())
        monkeypatch.setattr(_cross_entropy, "triton", StandIn, raising=False)
    query, key, negatives, positives, left_out, further = make(
        (7, 9, 4, 5, width, 2, True, has_further, width), 1.0, torch.float64
    )
    query, key, negatives = (each.detach() for each in (query, key, negatives))
    further = None if further is None else further.detach()
    weight = torch.rand(7, dtype=torch.float64)
    rest, mean = sweeps.sweep_keys(
        query, key, negatives, left_out.and_columns(positives.columns), wants_mean, bounded=True
    )
    found = settle(query, key, positives, rest, mean, further)
    key_grad = sweeps.key_gradient(query, key, positives.columns, left_out, found.level, found.excess, weight)

    logits = reference.logits_of(query, key, negatives, left_out)
    own = (query @ key.T).gather(1, positives.columns)
    logits = logits.scatter(1, positives.columns, own)
    label = torch.zeros_like(logits).scatter_add(1, positives.columns, positives.shares)
    further = torch.full((7, 1), -math.inf, dtype=torch.float64) if further is None else further[:, None]
    level = torch.cat([logits, further], 1).logsumexp(1)
    off = (logits - level[:, None]).exp() - label
    stands_for_one = positives.columns != positives.columns[:, :1]
    stands_for_one[:, 0] = True
    wanted = {
        "loss": reference.soft_cross_entropy(
            query, key, negatives, positives, left_out, further[:, 0] if has_further else None
        ),
        "logits": own,
        "level": level,
        "excess": torch.where(stands_for_one, off.gather(1, positives.columns), 0),
    }
    for name, value in wanted.items():
        torch.testing.assert_close(getattr(found, name), value, rtol=1e-10, atol=1e-12, msg=name)
    torch.testing.assert_close(key_grad, (off[:, :9] * weight[:, None]).T @ query, rtol=1e-10, atol=1e-12)
    both_levels, key_level = torch.rand(2, 7, dtype=torch.float64).unbind()
    own_logits = reference.logits_of(query, key[:7])
    factor = weight[:, None] * (own_logits - both_levels[:, None]).exp() + weight * (own_logits - key_level).exp()
    both = sweeps.sweep_queries(query, key[:7], LeftOut(), both_levels, weight, key_level)
    torch.testing.assert_close(both, factor.T @ query, rtol=1e-10, atol=1e-12)
    if wants_mean:
        torch.testing.assert_close(found.query_grad, off @ torch.cat([key, negatives]), rtol=1e-10, atol=1e-12)
    else:
        assert found.query_grad is None


@pytest.mark.parametrize("summed", ["rows", "sum", "weighted sum"])
@pytest.mark.parametrize("wants", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("kind", [(torch.float64, 1e-10), (torch.bfloat16, 1e-2)])
def test_the_operator_is_the_dense_formula_the_kernels_way_too(summed, wants, kind, monkeypatch):
    dtype, tolerance = kind
    monkeypatch.setattr(operator, "runs_triton", lambda device: True)
    monkeypatch.setattr(sweeps, "with_kernels", lambda device, kernels, plainly: kernels())
    calls, sweep = [], StandIn.sweep_keys
    monkeypatch.setattr(StandIn, "sweep_keys", staticmethod(lambda *args: calls.append(args) or sweep(*args)))
    monkeypatch.setattr(_cross_entropy, "triton", StandIn, raising=False)
    monkeypatch.setattr(blocked, "_HAS_BFLOAT16_UNITS", True)
    sums = torch.promote_types(dtype, torch.float32)
    query, key, negatives, positives, left_out, further = make((7, 9, 4, 5, 2, 2, True, True, 3), 1.0, sums)
    leaves = [each.detach() for each in (query, key, negatives, further)]
    exact = [each.double() for each in leaves]
    for each, needs in zip((*leaves, *exact), (*wants, True, True) * 2, strict=True):
        each.requires_grad_(needs)
    weight = torch.rand(7, dtype=sums)
    how = {"rows": {}, "sum": {"summed": True}, "weighted sum": {"summed": True, "weight": weight}}[summed]
    values = soft_cross_entropy(
        *leaves[:3], positives, left_out=left_out, further=leaves[3], dtype=dtype, bounded=True, **how
    )
    label = Positives(positives.columns, positives.shares.double())
    expected = reference.soft_cross_entropy(*exact[:3], label, left_out, exact[3])
    weighted = (expected * (1 if summed == "sum" else weight.double())).sum()
    assert len(calls) == 1
    assert values.dtype == sums
    close(values, expected if summed == "rows" else weighted, tolerance)
    total = (values * weight).sum() if summed == "rows" else values
    grads = torch.autograd.grad(total, [each for each in leaves if each.requires_grad])
    right = torch.autograd.grad(weighted, [each for each in exact if each.requires_grad])
    for grad, wanted in zip(grads, right, strict=True):
        close(grad, wanted, 2 * tolerance)


def test_rows_in_any_memory_layout():
    query, key, negatives = torch.randn(6, 10)[:, ::2], torch.randn(5, 7).T, torch.randn(9, 5).flip(0)[1::3]
    query.requires_grad_()

    def gradient(key, negatives):
        values = soft_cross_entropy(query, key, negatives, own(6), dtype=torch.float32, summed=True)
        return torch.autograd.grad(values, query)[0]

    torch.testing.assert_close(gradient(key, negatives), gradient(key.contiguous(), negatives.contiguous()))


def test_no_gradient_is_computed_that_nobody_asks_for(monkeypatch):
    calls = []
    forward = blocked.forward
    monkeypatch.setattr(blocked, "forward", lambda *args: calls.append(args[-2:]) or forward(*args))
    query, key, how = torch.randn(3, 4), torch.randn(3, 4), {"positives": own(3), "dtype": torch.float32}
    soft_cross_entropy(query, key, None, **how, summed=True)
    soft_cross_entropy(query.requires_grad_(), key, None, **how, summed=True)
    soft_cross_entropy(query, key.requires_grad_(), None, **how, summed=True)
    soft_cross_entropy(query, key, None, **how, summed=False)
    with torch.no_grad():
        soft_cross_entropy(query, key, None, **how, summed=True)
    assert calls == [(False, False), (True, False), (True, True), (True, False), (False, False)]


def test_shares_have_a_gradient():
    query, key = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    columns = torch.stack([torch.randperm(5)[:2] for _ in range(5)])
    lam = torch.rand(5, dtype=torch.float64, requires_grad=True)

    def loss(lam):
        return soft_cross_entropy(
            query, key, None, Positives(columns, torch.stack([lam, 1 - lam], 1)), dtype=torch.float64
        )

    torch.autograd.gradcheck(loss, lam)


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
                patch.setattr(plain, "applies", lambda *args: False)
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
    for labels in (None, VirtualLabels(torch.full((8,), 0.75), torch.arange(8).flip(0))):
        assert plain.applies(query, key, labels, 0.2, "mean")
        assert plain.applies(query, key, labels, 1 / blocked.SAFE_LOGIT, "sum")
        assert not plain.applies(query, key, labels, 0.999 / blocked.SAFE_LOGIT, "sum")
        assert not plain.applies(query.detach(), key, labels, 0.2, "mean")
        assert not plain.applies(query, key.detach(), labels, 0.2, "mean")
        assert not plain.applies(query, key, labels, 0.2, "none")
        with torch.no_grad():
            assert not plain.applies(query, key, labels, 0.2, "mean")
    labels.lam.requires_grad_()
    assert not plain.applies(query, key, labels, 0.2, "mean")


def test_a_batch_mixed_with_nothing_but_itself_keeps_the_digits_of_an_unmixed_one():
    """A permutation may leave every row in its place; the softmax of rows told apart has no digits left then."""
    rows = torch.eye(4)
    stays = VirtualLabels(torch.full((4,), 0.6), torch.arange(4))
    mixed, unmixed = (
        imix_nce_loss(rows.clone().requires_grad_(), rows.clone().requires_grad_(), labels, temperature=0.04)
        for labels in (stays, None)
    )
    assert mixed.item() == unmixed.item() == pytest.approx(math.log1p(3 * math.exp(-25)), rel=1e-5)


@pytest.mark.parametrize("has_units", [False, True])
def test_few_products_of_half_precision_are_made_in_single(has_units, monkeypatch):
    monkeypatch.setattr(blocked, "_HAS_BFLOAT16_UNITS", has_units)
    monkeypatch.setattr(plain, "MANY_PRODUCTS", 8 * 8 * 5)
    for dtype in (torch.bfloat16, torch.float16):
        for d in (4, 5):
            query, key = (torch.randn(8, d, dtype=dtype, requires_grad=True) for _ in range(2))
            applies = plain.applies(query, key, None, 0.2, "mean")
            assert applies == (not (d == 5 and has_units and dtype == torch.bfloat16))
            if applies:
                loss = plain.nce_loss(query, key, None, 0.2, "mean")
                expected, *expected_grads = exact_nce(query, key, None, 0.2, True)
                assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
                for grad, right in zip(torch.autograd.grad(loss, (query, key)), expected_grads, strict=True):
                    assert grad.dtype == dtype
                    assert (grad - right).norm() / right.norm() <= torch.finfo(dtype).eps


@pytest.mark.parametrize("lengths", [(0.0, 1.0), (1e-13, 1.0), (1e30, 1.0), (1.0, 1e-20)])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_single_node_scales_rows_of_any_length_as_the_others_do(lengths, mixed):
    query, key = (torch.randn(6, 4) for _ in range(2))
    query[2] *= lengths[0] / query[2].norm()
    key[3] *= lengths[1] / key[3].norm()
    labels = VirtualLabels(torch.rand(6) / 2 + 0.5, torch.randperm(6)) if mixed else None
    results = []
    for as_node in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not as_node:
                patch.setattr(plain, "applies", lambda *args: False)
            leaves = [each.clone().requires_grad_() for each in (query, key)]
            loss = imix_nce_loss(*leaves, labels, temperature=0.2)
            results.append((loss, *torch.autograd.grad(loss, leaves)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("as_node", [True, False])
def test_a_second_derivative_is_refused(as_node, monkeypatch):
    if not as_node:
        monkeypatch.setattr(plain, "applies", lambda *args: False)
    query, key = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    (grad,) = torch.autograd.grad(imix_nce_loss(query, key), query, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


def test_gradients_are_copied_only_where_somebody_may_differentiate_them_again():
    gradient, leaf = torch.randn(4, 3), torch.randn(4, 3, requires_grad=True)
    with torch.no_grad():
        assert once_differentiable((gradient, None), leaf)[0] is gradient
    again, none = once_differentiable((gradient, None), leaf)
    assert again.requires_grad
    assert torch.equal(again, gradient)
    assert none is None


def test_unit_rows_of_all_lengths():
    rows = torch.randn(6, 5, dtype=torch.float64)
    lengths = torch.tensor([0.0, 1e-30, 1e-13, 1.0, 1e20, 1e30], dtype=torch.float64)[:, None]
    rows = rows / rows.norm(dim=1, keepdim=True) * lengths
    unit = unit_rows(rows.float()).norm(dim=1)
    expected = torch.tensor([0.0, 1e-18, 0.1, 1.0, 1.0, 1.0])
    torch.testing.assert_close(unit, expected, rtol=1e-5, atol=1e-20)
    # A batch without extremes takes the shorter way to the same rows.
    torch.testing.assert_close(unit_rows(rows[2:4].float()), unit_rows(rows.float())[2:4])


def test_only_rows_whose_squares_overflow_are_scaled_twice(monkeypatch):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Calls(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(_embeddings, "readable", lambda rows: True)  # a mode such as Calls is given the other way
    for length, twice in ((1.0, False), (0.0, False), (1e30, True)):
        with Calls() as calls:
            unit_rows(length * torch.ones(3, 4))
        assert ("amax" in calls.names) is twice
