"""Both directions of a contrast out of one sweep, against two dense cross-entropies in float64."""

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from imix_aug import VirtualLabels, imix_clip_loss
from imix_aug._cross_entropy import blocked, both_apart, both_at_once, node, plain
from imix_aug._cross_entropy.both import cross_entropy_of_both
from imix_aug._cross_entropy.columns import LeftOut, Positives


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw_labels(n, generator, kind):
    """Labels as ``IMix`` draws them, with lambdas of one and of zero among them, or none."""
    if kind == "none":
        return None
    lam = torch.rand(n, generator=generator)
    if kind == "extreme":
        lam = lam.mul(3).sub(1).clamp(0, 1)
    return VirtualLabels(lam, torch.randperm(n, generator=generator))


def both_positives(n, labels, dtype):
    if labels is None:
        one = Positives.own(n, torch.device("cpu"), dtype)
        pair = one, one
    else:
        pair = Positives.of(labels, dtype), Positives.of_keys(labels, dtype)
    return Positives(*(torch.cat(each) for each in zip(*pair, strict=True)))


def dense(query, key, labels, ids):
    """The mean of both directions; a key's label is what the queries hold of it, its own where nobody does."""
    n = len(query)
    label = torch.eye(n, dtype=torch.float64) if labels is None else labels._replace(lam=labels.lam.double()).dense()
    mass = label.sum(0)
    held = torch.where(mass[:, None] == 0, torch.eye(n, dtype=torch.float64), label.T / mass.clamp_min(1e-300)[:, None])

    def direction(rows, columns, label):
        positives = Positives(torch.arange(n).expand(n, n), label)
        logits = rows @ columns.T
        if ids is not None:
            is_positive = (label > 0) | torch.eye(n, dtype=torch.bool)  # its own is there, with a share or without
            logits = logits.masked_fill((ids[:, None] == ids) & ~is_positive, -torch.inf)
        return -(positives.shares * torch.where(label > 0, logits.log_softmax(1), 0)).sum(1)

    return (direction(query, key, label) + direction(key, query, held)) / 2


def tiny_tiles(patch):
    patch.setattr(blocked, "MAX_ROWS", 5)
    patch.setattr(blocked, "MIN_ROWS", 2)
    patch.setattr(blocked, "KEY_TILE", 35)


@settings(max_examples=120, deadline=None)
@given(
    st.integers(1, 17),
    st.integers(1, 9),
    st.sampled_from([1e-3, 1.0, 30.0]),
    st.sampled_from([(torch.float64, 1e-10), (torch.float32, 2e-5)]),
    st.sampled_from(["none", "mixed", "extreme"]),
    st.sampled_from(["rows", "sum", "weighted sum"]),
    st.tuples(*(st.booleans(),) * 3),
    st.integers(0, 2**31),
)
def test_the_primitive_is_the_dense_formula(n, d, scale, kind, labelled, summed, ways, seed):
    dtype, tolerance = kind
    with_ids, by_operator, small = ways
    g = torch.Generator().manual_seed(seed)
    query = (scale * torch.randn(n, d, generator=g)).to(dtype).requires_grad_()
    key = torch.randn(n, d, generator=g).to(dtype).requires_grad_()
    labels = draw_labels(n, g, labelled)
    ids = torch.randint(4, (n,), generator=g) if with_ids else None
    weight = torch.rand(n, generator=g).double() - (0.2 if summed == "rows" else 0)
    how = {"rows": {}, "sum": {"summed": True}, "weighted sum": {"summed": True, "weight": weight.to(dtype)}}[summed]
    with pytest.MonkeyPatch.context() as patch:
        if small:
            tiny_tiles(patch)
        if by_operator:
            patch.setattr(node, "readable", lambda rows: False)
        values = cross_entropy_of_both(query, key, both_positives(n, labels, dtype), ids=ids, dtype=dtype, **how)
        total = (values * weight.to(dtype)).sum() if summed == "rows" else values
        grads = torch.autograd.grad(total, (query, key))
    exact = [each.detach().double().requires_grad_() for each in (query, key)]
    expected = dense(*exact, labels, ids)
    weighted = (expected * (1 if summed == "sum" else weight)).sum()
    wanted = (expected if summed == "rows" else weighted, *torch.autograd.grad(weighted, exact))
    assert (values >= 0).all() or summed == "weighted sum"
    for got, want, bound in zip((values, *grads), wanted, (tolerance, *(10 * tolerance,) * 2), strict=True):
        assert got.shape == want.shape
        assert ((got.double() - want).abs().max() / want.abs().max().clamp_min(1)).item() <= bound


@pytest.mark.parametrize("labelled", ["none", "mixed", "extreme"])
@pytest.mark.parametrize("n", [1, 2, 40])
@pytest.mark.parametrize("way", ["node", "primitive", "tiles"])
def test_all_ways_to_the_loss_are_the_formula(n, labelled, way, monkeypatch):
    if way == "tiles":
        tiny_tiles(monkeypatch)
    elif way == "primitive":
        monkeypatch.setattr(plain, "applies_to_both", lambda *args: False)
    calls = []
    monkeypatch.setattr(plain, "both_losses", lambda *args, do=plain.both_losses: calls.append(1) or do(*args))
    generator = torch.Generator().manual_seed(n)
    labels = draw_labels(n, generator, labelled)
    leaves = [torch.randn(n, 6, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    for reduction in ("mean", "sum"):
        loss = imix_clip_loss(*leaves, labels, temperature=0.1, reduction=reduction)
        unit = [F.normalize(each) for each in leaves]
        expected = getattr(dense(unit[0] / 0.1, unit[1], labels, None), reduction)()
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
        for got, want in zip(*(torch.autograd.grad(each, leaves) for each in (loss, expected)), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    assert bool(calls) == (way == "node" or (way == "tiles" and n < 3))


@pytest.mark.parametrize("wants", [(True, False), (False, True)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_side_that_is_frozen_costs_no_product(wants, reduction, monkeypatch):
    """Locked-image tuning trains the texts' side alone."""
    asked = []
    original = both_at_once._Tiles.gradients
    monkeypatch.setattr(
        both_at_once._Tiles, "gradients", lambda self, *args: asked.append(args[-1]) or original(self, *args)
    )
    query, key = (torch.randn(9, 4, dtype=torch.float64).requires_grad_(needs) for needs in wants)
    loss = imix_clip_loss(query, key, temperature=0.1, reduction=reduction).sum()
    leaf = query if wants[0] else key
    (grad,) = torch.autograd.grad(loss, leaf)
    assert asked == [wants]
    expected = dense(F.normalize(query) / 0.1, F.normalize(key), None, None)
    expected = expected.mean() if reduction == "mean" else expected.sum()
    torch.testing.assert_close(grad, torch.autograd.grad(expected, leaf)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_units", [False, True])
@pytest.mark.parametrize("summed", [False, True])
def test_half_precision_multiplies_in_the_units_that_there_are(dtype, has_units, summed, monkeypatch):
    monkeypatch.setattr(blocked, "_HAS_BFLOAT16_UNITS", has_units)
    tiny_tiles(monkeypatch)
    query, key = (F.normalize(torch.randn(17, 32)).to(dtype).float() for _ in range(2))
    query, key = (5 * query).requires_grad_(), key.requires_grad_()
    labels = VirtualLabels(torch.rand(17), torch.randperm(17))
    taken, forward = [], both_at_once.forward
    monkeypatch.setattr(
        both_at_once, "forward", lambda query, *rest: taken.append(query.dtype) or forward(query, *rest)
    )
    values = cross_entropy_of_both(query, key, both_positives(17, labels, torch.float32), dtype=dtype, summed=summed)
    assert taken == [torch.bfloat16 if has_units and dtype == torch.bfloat16 else torch.float32]
    grads = torch.autograd.grad(values.sum(), (query, key))
    exact = [each.detach().double().requires_grad_() for each in (query, key)]
    expected = dense(*exact, labels, None).sum()
    assert values.dtype == torch.float32
    assert values.sum().item() == pytest.approx(expected.item(), rel=1e-2)
    for grad, right in zip(grads, torch.autograd.grad(expected, exact), strict=True):
        assert ((grad.double() - right).norm() / right.norm()).item() < 1e-2


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([0.01, 0.02, 0.03]),
    st.sampled_from([0.0, 0.3, 3.0]),
    st.sampled_from(["none", "mixed", "extreme"]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_sharp_temperatures_keep_the_digits_of_the_dense_formula(temperature, noise, labelled, summed, seed):
    """From samples that are told apart to ones that are not, and pairs of both kinds in one batch."""
    g = torch.Generator().manual_seed(seed)
    query = torch.randn(40, 12, generator=g)
    noise = noise * torch.rand(40, 1, generator=g)
    rows = [F.normalize(query) / temperature, F.normalize(query + noise * torch.randn(40, 12, generator=g))]
    labels = draw_labels(40, g, labelled)
    how = {"dtype": torch.float32, "summed": summed}

    def of(formula, dtype):
        leaves = [each.to(dtype).requires_grad_() for each in rows]
        values = formula(*leaves)
        values = values.sum() if summed and values.dim() else values
        return [each.detach() for each in (values, *torch.autograd.grad(values.sum(), leaves))]

    def ours(query, key):
        return cross_entropy_of_both(query, key, both_positives(40, labels, torch.float32), **how)

    with pytest.MonkeyPatch.context() as patch:
        tiny_tiles(patch)
        found = of(ours, torch.float32)
    dtypes = torch.float64, torch.float32
    exact, rounded = (of(lambda *leaves: dense(*leaves, labels, None), dtype) for dtype in dtypes)
    for got, formula, right in zip(found, rounded, exact, strict=True):
        rounding = 2**-25 / temperature  # of the largest logits, in float32
        bound = max(2 * (formula - right).norm().item(), rounding * max(1, right.norm().item()))
        assert (got - right).norm().item() <= bound


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("what", ["a positive far below the others", "a stranger far above the positives"])
def test_each_direction_goes_by_itself_where_one_power_does_not_serve_both(what, summed, monkeypatch):
    query, key = 2 * torch.randn(2, 9, 4).clamp(-2, 2)
    if what.startswith("a positive"):
        query[3], key[3] = 8, -8
    else:
        query[3] = key[5] = 8
        query[5] = key[3] = -0.1
    served = []
    for name in ("forward", "gradients"):
        one = getattr(both_at_once, name)
        monkeypatch.setattr(both_at_once, name, lambda *args, one=one: served.append(one(*args)) or served[-1])
    leaves = [query.requires_grad_(), key.requires_grad_()]
    values = cross_entropy_of_both(*leaves, both_positives(9, None, torch.float32), dtype=torch.float32, summed=summed)
    grads = torch.autograd.grad(values.sum(), leaves)
    assert served[0] is None
    exact = [each.detach().double().requires_grad_() for each in leaves]
    expected = dense(*exact, None, None).sum()
    torch.testing.assert_close(values.sum().double(), expected, rtol=1e-5, atol=0)
    for grad, right in zip(grads, torch.autograd.grad(expected, exact), strict=True):
        torch.testing.assert_close(grad.double(), right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("temperature", [0.1, 0.02, 0.004])
def test_one_sweep_serves_both_directions_of_unit_rows(temperature, summed, monkeypatch):
    for name in ("forward", "gradients"):
        monkeypatch.setattr(both_apart, name, lambda *args: pytest.fail("both directions go at once"))
    tiny_tiles(monkeypatch)
    first = torch.randn(9, 6)
    first[1] = first[0] + 0.1 * torch.randn(6)  # nearly the same sample: a stranger as near as the positive
    rows = [F.normalize(first) / temperature, F.normalize(first + 0.3 * torch.randn(9, 6))]
    labels = VirtualLabels(0.5 + torch.rand(9) / 2, torch.randperm(9))
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [each.to(dtype).requires_grad_() for each in rows]
        if dtype == torch.float32:
            values = cross_entropy_of_both(*leaves, both_positives(9, labels, dtype), dtype=dtype, summed=summed).sum()
        else:
            values = dense(*leaves, labels, None).sum()
        results.append((values, *torch.autograd.grad(values, leaves)))
    for ours, exact in zip(*results, strict=True):
        assert (ours - exact).norm() <= 1e-6 / temperature * exact.norm()


def test_shares_have_a_gradient():
    query, key = torch.randn(2, 5, 4, dtype=torch.float64).unbind()
    partner = torch.randperm(5)

    def loss(lam):
        return cross_entropy_of_both(
            query, key, both_positives(5, VirtualLabels(lam, partner), torch.float64), dtype=torch.float64
        )

    torch.autograd.gradcheck(loss, torch.rand(5, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("lam", [1.0, 1 - 2**-24, 0.0])
@pytest.mark.parametrize("learnt", [False, True])
def test_both_directions_have_their_labels_in_the_same_entries(lam, learnt):
    labels = VirtualLabels(torch.tensor([1.0, lam, 0.5, 1.0]).requires_grad_(learnt), torch.tensor([1, 0, 3, 2]))
    entries = []
    for positives in (Positives.of(labels, torch.float32), Positives.of_keys(labels, torch.float32)):
        assert torch.equal(positives.shares.sum(1), torch.ones(4))
        entries.append({(i, j) for i, row in enumerate(positives.columns.tolist()) for j in row})
    assert entries[0] == {(i, j) for j, i in entries[1]}


def test_a_row_that_is_alone_loses_nothing():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for temperature in (0.01, 0.1):
            query = torch.randn(1, 24).to(dtype).requires_grad_()
            assert imix_clip_loss(query, (2 * query).detach().requires_grad_(), temperature=temperature).item() == 0


def test_the_dense_formula_of_this_file_is_that_of_the_reference():
    query, key, ids = torch.randn(6, 3).double(), torch.randn(6, 3).double(), torch.tensor([0, 0, 1, 1, 2, 3])
    one = Positives.own(6, torch.device("cpu"), torch.float64)
    forth = reference.soft_cross_entropy(query, key, None, one, LeftOut(None, ids, ids))
    back = reference.soft_cross_entropy(key, query, None, one, LeftOut(None, ids, ids))
    torch.testing.assert_close(dense(query, key, None, ids), (forth + back) / 2)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("tensor", [False, True])
def test_in_a_compiled_graph(reduction, tensor):
    query, key = (torch.randn(9, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    labels = VirtualLabels(torch.rand(9), torch.randperm(9))
    temperature = torch.tensor(0.1, dtype=torch.float64, requires_grad=tensor)
    how = {"temperature": temperature if tensor else 0.1, "reduction": reduction}
    compiled = torch.compile(imix_clip_loss, backend="aot_eager", fullgraph=True)
    leaves = [query, key, temperature] if tensor else [query, key]
    results = []
    for loss in (imix_clip_loss, compiled):
        value = loss(query, key, labels, **how)
        results.append((value.detach(), *torch.autograd.grad((value * torch.arange(1, 10)).sum(), leaves)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
