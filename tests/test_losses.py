import functools
import warnings

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from largest import Largest
from torch.nn import functional as F

from imix_aug import (
    VirtualLabels,
    _contrast,
    imix_byol_loss,
    imix_clip_loss,
    imix_nce_loss,
    imix_ntxent_loss,
    imix_supcon_loss,
)
from imix_aug._cross_entropy import plain
from imix_aug._keys import keys

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def random_labels(n, generator):
    """Lambdas at and between their bounds, and partners that may repeat."""
    lam = torch.rand(n, generator=generator) / 2 + 0.5
    edge = torch.randint(4, (n,), generator=generator)
    lam = torch.where(edge == 0, 0.5, torch.where(edge == 1, 1.0, lam))
    return VirtualLabels(lam, torch.randint(n, (n,), generator=generator))


def assert_agree(value, expected, tolerance, scale=1.0):
    """Compare to a tolerance relative to the largest entry, or to the terms that cancelled in it."""
    scale = expected.abs().max().clamp_min(scale)
    torch.testing.assert_close(value.double() / scale, expected / scale, atol=tolerance, rtol=0)


def compare(fused, dense, inputs, dtype, reduction, scale=1.0):
    """Compare values and all gradients of a loss with those of the formula in float64."""
    leaves = {name: value.detach().clone().to(dtype).requires_grad_() for name, value in inputs.items()}
    exact = {name: value.detach().double().requires_grad_() for name, value in leaves.items()}
    loss, expected = fused(**leaves), oracle.reduce(dense(**exact), reduction)
    weight = torch.linspace(0.5, 2.0, expected.numel(), dtype=torch.float64).view(expected.shape)
    (loss * weight).sum().backward()
    (expected * weight).sum().backward()
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert loss.shape == expected.shape
    tolerance = TOLERANCE[dtype]
    assert_agree(loss, expected, tolerance)
    for name in leaves:
        if exact[name].grad is None:
            assert leaves[name].grad is None
            continue
        assert leaves[name].grad.dtype == dtype
        assert_agree(leaves[name].grad, exact[name].grad, tolerance, scale)


cases = given(
    n=st.sampled_from([1, 2, 3, 7, 16]),
    d=st.sampled_from([1, 2, 5, 32]),
    k=st.sampled_from([None, 0, 1, 9]),
    temperature=st.sampled_from([0.05, 0.2, 1.0, 10.0]),
    dtype=st.sampled_from(list(TOLERANCE)),
    normalize=st.booleans(),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    with_labels=st.booleans(),
    learn_temperature=st.booleans(),
    seed=st.integers(0, 1000),
)


def embeddings(n, d, dtype, generator):
    """Rows of length 1/2 to 2."""
    direction = F.normalize(torch.randn(n, d, generator=generator), dim=1)
    return (direction * 2 ** (2 * torch.rand(n, 1, generator=generator) - 1)).to(dtype)


def contrast_case(names, n, d, k, temperature, dtype, learn_temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = {name: embeddings(n, d, dtype, generator) for name in names}
    labels = random_labels(n, generator)
    negatives = None if k is None else embeddings(k, d, dtype, generator)
    if learn_temperature:
        inputs["temperature"] = torch.tensor(temperature)
    return inputs, labels, negatives


@cases
def test_nce(n, d, k, temperature, dtype, normalize, reduction, with_labels, learn_temperature, seed):
    if dtype.itemsize == 2:  # Lower temperatures magnify the rounding of the inputs themselves.
        temperature = max(temperature, 0.2)
    inputs, labels, negatives = contrast_case(["query", "key"], n, d, k, temperature, dtype, learn_temperature, seed)
    given_labels = labels if with_labels else None
    settings = {"negatives": negatives, "normalize": normalize}
    if not learn_temperature:
        settings["temperature"] = temperature
    labels = labels if with_labels else VirtualLabels.identity(n)
    compare(
        functools.partial(imix_nce_loss, labels=given_labels, reduction=reduction, **settings),
        functools.partial(oracle.nce, labels=labels, **settings),
        inputs,
        dtype,
        reduction,
        1 / temperature,
    )


@cases
def test_ntxent(n, d, k, temperature, dtype, normalize, reduction, with_labels, learn_temperature, seed):
    if dtype.itemsize == 2:  # Lower temperatures magnify the rounding of the inputs themselves.
        temperature = max(temperature, 0.2)
    names = ["query_1", "query_2", "key_1", "key_2"]
    inputs, labels, negatives = contrast_case(names, n, d, k, temperature, dtype, learn_temperature, seed)
    settings = {"negatives": negatives, "normalize": normalize}
    if not learn_temperature:
        settings["temperature"] = temperature
    given_labels = labels if with_labels else None
    labels = labels if with_labels else VirtualLabels.identity(n)
    compare(
        functools.partial(imix_ntxent_loss, labels=given_labels, reduction=reduction, **settings),
        functools.partial(oracle.ntxent, labels=labels, **settings),
        inputs,
        dtype,
        reduction,
        1 / temperature,
    )


@cases
def test_supcon(n, d, k, temperature, dtype, normalize, reduction, with_labels, learn_temperature, seed):
    if dtype.itemsize == 2:  # Lower temperatures magnify the rounding of the inputs themselves.
        temperature = max(temperature, 0.2)
    inputs, labels, negatives = contrast_case(["query", "key"], n, d, k, temperature, dtype, learn_temperature, seed)
    classes = torch.randint(-2, 3, (n,), generator=torch.Generator().manual_seed(seed))
    settings = {"negatives": negatives, "normalize": normalize, "classes": classes}
    if not learn_temperature:
        settings["temperature"] = temperature
    given_labels = labels if with_labels else None
    labels = labels if with_labels else VirtualLabels.identity(n)
    compare(
        functools.partial(imix_supcon_loss, labels=given_labels, reduction=reduction, **settings),
        functools.partial(oracle.supcon, labels=labels, **settings),
        inputs,
        dtype,
        reduction,
        1 / temperature,
    )


@given(
    n=st.sampled_from([1, 2, 7]),
    d=st.sampled_from([1, 5, 32]),
    dtype=st.sampled_from(list(TOLERANCE)),
    normalize=st.booleans(),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    seed=st.integers(0, 1000),
)
def test_byol(n, d, dtype, normalize, reduction, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = {name: embeddings(n, d, dtype, generator) for name in ("prediction", "target")}
    labels = random_labels(n, generator)
    compare(
        functools.partial(imix_byol_loss, labels=labels, normalize=normalize, reduction=reduction),
        functools.partial(oracle.byol, labels=labels, normalize=normalize),
        inputs,
        dtype,
        reduction,
    )


CONTRASTIVE = {
    "nce": lambda q, k, labels, **settings: imix_nce_loss(q, k, labels, **settings),
    "ntxent": lambda q, k, labels, **settings: imix_ntxent_loss(q, q.flip(1), k, k.flip(1), labels, **settings),
    "supcon": lambda q, k, labels, **settings: imix_supcon_loss(
        q, k, torch.arange(len(q), device=q.device) // 2, labels, **settings
    ),
}
AND_CLIP = CONTRASTIVE | {"clip": lambda q, k, labels, **settings: imix_clip_loss(q, k, labels, **settings)}
ALL = CONTRASTIVE | {"byol": lambda p, z, labels, **settings: imix_byol_loss(p, z, labels, **settings)}


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(loss, reduction):
    q, k = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    k = k.detach() if loss == "byol" else k
    labels = random_labels(4, torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda q, k: ALL[loss](q, k, labels, reduction=reduction), (q, k))


@pytest.mark.parametrize("loss", AND_CLIP)
@pytest.mark.parametrize("temperature", [0.2, torch.tensor(0.2, requires_grad=True)])
def test_a_second_derivative_is_refused(loss, temperature):
    q, k = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    value = AND_CLIP[loss](q, k, VirtualLabels.identity(4), temperature=temperature)
    for wrt in (q, k):
        (grad,) = torch.autograd.grad(value, wrt, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            grad.square().sum().backward(retain_graph=True)


@pytest.mark.parametrize("n", [9, 300])
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("loss", ["nce", "supcon", "byol"])
def test_lambda_of_one_is_no_mixing_to_the_bit(loss, dtype, requires_grad, n):
    q, k = (torch.randn(n, 5).to(dtype).requires_grad_(requires_grad) for _ in range(2))
    labels = VirtualLabels(torch.ones(n), torch.randperm(n))
    for reduction in ("mean", "none"):
        mixed, plain = (ALL[loss](q, k, each, reduction=reduction) for each in (labels, None))
        assert torch.equal(mixed, plain)


@pytest.mark.parametrize("loss", ALL)
def test_identity_labels_are_no_labels_to_the_bit(loss):
    q, k = torch.randn(9, 5), torch.randn(9, 5)
    assert torch.equal(ALL[loss](q, k, VirtualLabels.identity(9)), ALL[loss](q, k, None))


@pytest.mark.parametrize("loss", ["nce", "supcon", "byol"])
def test_linear_in_the_labels(loss):
    q, k = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    partner = torch.randperm(6)
    values = [
        ALL[loss](q, k, VirtualLabels(torch.full((6,), lam, dtype=torch.float64), partner), reduction="none")
        for lam in (0.0, 0.25, 1.0)
    ]
    torch.testing.assert_close(values[1], 0.75 * values[0] + 0.25 * values[2], atol=1e-12, rtol=0)


@pytest.mark.parametrize("loss", ["nce", "byol"])
def test_invariant_under_a_permutation_of_the_batch(loss):
    q, k = torch.randn(8, 4, dtype=torch.float64), torch.randn(8, 4, dtype=torch.float64)
    lam, partner = random_labels(8, torch.Generator().manual_seed(2))
    order = torch.randperm(8)
    moved = VirtualLabels(lam[order], order.argsort()[partner[order]])
    torch.testing.assert_close(
        ALL[loss](q[order], k[order], moved, reduction="none"),
        ALL[loss](q, k, VirtualLabels(lam, partner), reduction="none")[order],
        atol=1e-12,
        rtol=0,
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_npair_is_torchs_cross_entropy(reduction):
    q, k = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    logits = F.cosine_similarity(q[:, None], k[None], dim=2) / 0.3
    torch.testing.assert_close(
        imix_nce_loss(q, k, temperature=0.3, reduction=reduction),
        F.cross_entropy(logits, torch.arange(7), reduction=reduction),
    )


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_ntxent_is_lightlys(temperature):
    loss = pytest.importorskip("lightly.loss")
    a, b = torch.randn(8, 16, requires_grad=True), torch.randn(8, 16, requires_grad=True)
    value = imix_ntxent_loss(a, b, a, b, VirtualLabels.identity(8), temperature=temperature)
    expected = loss.NTXentLoss(temperature=temperature)(a, b)
    torch.testing.assert_close(value, expected)
    for ours, theirs in zip(torch.autograd.grad(value, (a, b)), torch.autograd.grad(expected, (a, b)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_supcon_is_pytorch_metric_learnings_between_two_views():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    q, k, classes = torch.randn(8, 5), torch.randn(8, 5), torch.randint(3, (8,))
    expected = losses.SupConLoss(temperature=0.1)(q, classes, ref_emb=k, ref_labels=classes.clone())
    torch.testing.assert_close(imix_supcon_loss(q, k, classes), expected)


def test_byol_by_hand():
    labels = VirtualLabels(torch.tensor([0.75, 0.5]), torch.tensor([1, 0]))
    losses = imix_byol_loss(3 * torch.eye(2), 5 * torch.eye(2), labels, reduction="none")
    assert losses.tolist() == [0.5, 1.0]


def test_a_constant_costs_no_gradient_and_a_target_gets_none():
    q, k, negatives = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4), torch.randn(5, 4)
    imix_nce_loss(q, k, negatives=negatives).backward()
    assert q.grad is not None
    assert k.grad is negatives.grad is None
    target = torch.randn(3, 4, requires_grad=True)
    imix_byol_loss(q, target).backward()
    assert target.grad is None


@pytest.mark.parametrize("loss", CONTRASTIVE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_matrix_products_take_the_dtype_of_the_embeddings_or_of_autocast(loss, dtype, monkeypatch):
    """Rows are scaled in float32, and yet the products are to be as fast as the embeddings' own dtype."""
    taken = []
    original = keys.soft_cross_entropy
    monkeypatch.setattr(
        keys, "soft_cross_entropy", lambda *rows, **how: taken.append(how["dtype"]) or original(*rows, **how)
    )
    q, k, negatives = (torch.randn(4, 3).to(dtype) for _ in range(3))
    for reduction in ("mean", "none"):
        CONTRASTIVE[loss](q, k, None, negatives=negatives, reduction=reduction)
        with torch.autocast("cpu", torch.float16):
            CONTRASTIVE[loss](q, k, None, negatives=negatives, reduction=reduction)
    # Autocast leaves float64 alone, as it does everywhere in PyTorch.
    assert taken == [dtype, torch.float64 if dtype == torch.float64 else torch.float16] * 2


def test_a_plain_batch_goes_through_the_single_node_and_nothing_else_does(monkeypatch):
    q, k, labels = *torch.randn(2, 4, 3, requires_grad=True).unbind(), VirtualLabels.identity(4)
    answer = torch.tensor(42.0)
    monkeypatch.setattr(plain, "nce_loss", lambda *args: answer)
    assert imix_nce_loss(q, k, labels, temperature=0.25) is answer
    monkeypatch.setattr(plain, "nce_loss", lambda *args: pytest.fail("this is no plain batch"))
    options = (
        {"temperature": torch.tensor(0.25)},
        {"normalize": False},
        {"negatives": k},
        {"gather_distributed": True},
        {"ids": torch.arange(4)},
        {"weight": torch.ones(4)},
        {"hard_negatives": k[:, None]},
        {"reduction": "none"},
    )
    for each in options:
        assert (imix_nce_loss(q, k, labels, **each) != 42).all()
    compiled = torch.compile(imix_nce_loss, fullgraph=True, backend="eager")
    assert compiled(q, k, labels) != 42


@pytest.mark.parametrize("loss", CONTRASTIVE)
def test_the_keys_of_the_group_that_was_given_are_asked_for(loss, monkeypatch):
    asked, group, choose = [], object(), _contrast.choose_keys
    monkeypatch.setattr(_contrast, "choose_keys", lambda keys, *how: asked.append(how) or choose(keys, False, None))
    CONTRASTIVE[loss](torch.randn(4, 3), torch.randn(4, 3), None, gather_distributed=True, process_group=group)
    assert [each[:2] for each in asked] == [(True, group)]


def test_no_gradient_at_all():
    with torch.no_grad():
        value = imix_nce_loss(torch.randn(3, 4, requires_grad=True), torch.randn(3, 4))
    assert not value.requires_grad


def test_memory_does_not_grow_with_the_logits():
    """The largest tensor that a step makes is far below N x M."""
    n, d = 3000, 8
    q, k = torch.randn(n, d, requires_grad=True), torch.randn(n, d, requires_grad=True)
    for reduction in ("mean", "none"):
        with Largest() as largest:
            imix_nce_loss(q, k, random_labels(n, None), reduction=reduction).sum().backward()
        assert n * d <= largest.elements < n * n / 4


LABELS = VirtualLabels.identity(3)
X, Y = torch.randn(3, 4), torch.randn(3, 4)
REFUSED = [
    ({"query": None}, TypeError, "query must be a tensor"),
    ({"query": X[0]}, ValueError, r"query must have shape \(N, D\), got \(4,\)"),
    ({"query": X.long()}, TypeError, "query must be floating-point"),
    ({"query": X[:0]}, ValueError, "query must have at least one row"),
    ({"key": Y.tolist()}, TypeError, "key must be a tensor"),
    ({"key": Y[:2]}, ValueError, r"key must have the shape of query, \(3, 4\), got \(2, 4\)"),
    ({"key": Y[:, :3]}, ValueError, "key must have as many columns"),
    ({"key": Y[:1]}, ValueError, r"key must have the shape of query, \(3, 4\), got \(1, 4\)"),
    ({"key": Y.double()}, TypeError, "key must have the dtype of query"),
    ({"key": Y.to("meta")}, ValueError, "key must be on the device of query, cpu, got meta"),
    ({"labels": VirtualLabels.identity(2)}, ValueError, r"labels.lam must have shape \(3,\)"),
    (
        {"labels": VirtualLabels._make((torch.ones(()), torch.arange(3)))},
        ValueError,
        r"labels.lam must have shape \(3,\)",
    ),
    ({"labels": torch.eye(3)}, TypeError, "labels must be VirtualLabels or None, got Tensor"),
    ({"labels": VirtualLabels._make((torch.ones(3), torch.ones(3)))}, TypeError, "labels.partner must be int64"),
    (
        {"labels": VirtualLabels._make((torch.ones(3).long(), torch.arange(3)))},
        TypeError,
        "labels.lam must be floating",
    ),
    ({"labels": LABELS.to("meta")}, ValueError, "labels.lam must be on the device"),
    ({"labels": VirtualLabels._make(([1.0], torch.arange(3)))}, TypeError, "labels.lam must be a tensor"),
    ({"temperature": 0}, ValueError, "temperature must be positive and finite, got 0"),
    ({"temperature": -0.1}, ValueError, "temperature must be positive"),
    ({"temperature": float("nan")}, ValueError, "temperature must be positive"),
    ({"temperature": "0.1"}, TypeError, "temperature must be a number"),
    ({"temperature": True}, TypeError, "temperature must be a number"),
    ({"temperature": torch.ones(1)}, ValueError, r"temperature must be a float or a 0-d tensor, got shape \(1,\)"),
    ({"temperature": torch.tensor(1)}, TypeError, "temperature must be floating-point"),
    ({"temperature": torch.tensor(-1.0)}, ValueError, "temperature must be positive"),
    ({"temperature": torch.ones((), device="meta")}, ValueError, "temperature must be on the device of query, cpu, or"),
    ({"negatives": torch.randn(5, 3)}, ValueError, "negatives must have as many columns as query, 4"),
    ({"negatives": torch.randn(4)}, ValueError, "negatives must have shape"),
    ({"negatives": torch.randn(5, 4).double()}, TypeError, "negatives must have the dtype of query"),
    ({"negatives": torch.randn(5, 4, device="meta")}, ValueError, "negatives must be on the device of query"),
    ({"negatives": object()}, TypeError, "negatives must be a tensor"),
    ({"normalize": 1}, TypeError, "normalize must be a bool"),
    ({"reduction": "avg"}, ValueError, "reduction must be one of"),
    ({"reduction": None}, TypeError, "reduction must be a str"),
    ({"gather_distributed": "yes"}, TypeError, "gather_distributed must be a bool"),
    ({"process_group": object()}, ValueError, "process_group must be None unless"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), REFUSED)
def test_refusals(wrong, error, message):
    with pytest.raises(error, match=f"^{message}"):
        imix_nce_loss(**({"query": X, "key": Y, "labels": LABELS} | wrong))


@pytest.mark.parametrize(("wrong", "error", "message"), REFUSED[10:])
def test_the_other_losses_refuse_alike(wrong, error, message):
    with pytest.raises(error, match=f"^{message}"):
        imix_supcon_loss(**({"query": X, "key": Y, "classes": torch.arange(3), "labels": LABELS} | wrong))
    message = message.replace("query", "query_1") if "dtype of" in message or "device of" in message else message
    with pytest.raises(error):
        imix_ntxent_loss(X, X, Y, Y, **({"labels": LABELS} | wrong))


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        (torch.arange(2), ValueError, r"classes must have shape \(3,\)"),
        (torch.randn(3), TypeError, "classes must have an integer dtype"),
        ([0, 1, 2], TypeError, "classes must be a tensor"),
        (torch.arange(3, device="meta"), ValueError, "classes must be on the device"),
    ],
)
def test_refused_classes(classes, error, message):
    with pytest.raises(error, match=f"^{message}"):
        imix_supcon_loss(X, Y, classes)


@pytest.mark.parametrize("position", range(1, 4))
@pytest.mark.parametrize("wrong", [X[:2], X.double(), X.tolist()])
def test_ntxent_names_the_wrong_view(position, wrong):
    views = [X, X, Y, Y]
    views[position] = wrong
    like = "" if isinstance(wrong, list) else ".* of query_1, "
    name = ["query_1", "query_2", "key_1", "key_2"][position]
    with pytest.raises((ValueError, TypeError), match=f"^{name} must{like}"):
        imix_ntxent_loss(*views, LABELS)


def test_byol_names_its_own_arguments():
    with pytest.raises(ValueError, match=r"^target must have the shape of prediction"):
        imix_byol_loss(X, Y[:1])
    with pytest.raises(TypeError, match=r"^prediction must be floating-point"):
        imix_byol_loss(X.long(), Y)
    with pytest.raises(ValueError, match=r"^reduction must be one of"):
        imix_byol_loss(X, Y, reduction="max")


# Arguments of the contrastive losses beyond the paper's, each against the dense formula.


def dense_extended(loss, q, k, labels, *, temperature, negatives, ids, negative_ids, hard, weight, reduction):
    """The formulas in float64 with whole matrices, from the words of the docstrings."""
    n, eye = len(q), torch.eye(len(q), dtype=torch.float64)
    label = (
        eye
        if labels is None
        else labels.lam.double()[:, None] * eye + (1 - labels.lam.double())[:, None] * eye[labels.partner]
    )
    unit = lambda rows: F.normalize(rows, dim=-1)  # noqa: E731

    def cross_entropy(query, keys, label, left_out):
        logits = unit(query) @ unit(keys).T / temperature
        same = torch.zeros(logits.shape, dtype=torch.bool)
        if ids is not None:
            times = logits.shape[1] // n
            same = ids[:, None] == ids.repeat(times)[None]
        logits = logits.masked_fill((same & (label == 0)) | left_out, -torch.inf)
        parts = [logits]
        if negatives is not None:
            more = unit(query) @ unit(negatives).T / temperature
            if ids is not None and negative_ids is not None:
                more = more.masked_fill(ids[:, None] == negative_ids, -torch.inf)
            parts.append(more)
        if hard is not None:
            parts.append(torch.einsum("nd,nhd->nh", unit(query), unit(hard)) / temperature)
        log_p = torch.cat(parts, 1).log_softmax(1)[:, : label.shape[1]]
        return -(label * torch.where(label > 0, log_p, 0)).sum(1)

    nothing = torch.zeros(n, n, dtype=torch.bool)
    if loss == "nce":
        rows = cross_entropy(q, k, label, nothing)
    elif loss == "ntxent":
        own = label > 0
        if labels is not None:  # the partner is left out whatever its share
            own = own | (eye[labels.partner] > 0) | (eye > 0)
        keys = torch.cat([q.flip(0), k])
        one = cross_entropy(q, keys, torch.cat([0 * label, label], 1), torch.cat([own, nothing], 1))
        two = cross_entropy(k.flip(0), keys, torch.cat([label, 0 * label], 1), torch.cat([nothing, own], 1))
        rows = (one + two) / 2
    else:
        held = label.T / label.sum(0)[:, None]
        rows = (cross_entropy(q, k, label, nothing) + cross_entropy(k, q, held, nothing)) / 2
    if weight is not None:
        rows = rows * weight
    if reduction == "none":
        return rows
    return rows.sum() / (1 if reduction == "sum" else n if weight is None else weight.sum())


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["nce", "ntxent", "clip"]),
    st.integers(1, 9),
    st.sampled_from(["mean", "sum", "none"]),
    st.lists(st.booleans(), min_size=6, max_size=6),
    st.integers(0, 2**31),
)
def test_ids_hard_negatives_and_weights_are_the_dense_formula(loss, n, reduction, wanted, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()  # noqa: E731
    mixed, with_negatives, with_ids, with_negative_ids, with_hard, with_weight = wanted
    with_negatives, with_hard = with_negatives and loss != "clip", with_hard and loss != "clip"
    q, k = draw(n, 4), draw(n, 4)
    negatives, hard = draw(5, 4) if with_negatives else None, draw(n, 2, 4) if with_hard else None
    ids = torch.randint(3, (n,), generator=generator) if with_ids else None
    negative_ids = None
    if with_ids and with_negatives and with_negative_ids:
        negative_ids = torch.randint(3, (5,), generator=generator)
    weight = torch.rand(n, generator=generator, dtype=torch.float64) + 0.1 if with_weight else None
    labels = None
    if mixed:
        labels = VirtualLabels(
            torch.rand(n, generator=generator, dtype=torch.float64) / 2 + 0.5, torch.randperm(n, generator=generator)
        )
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    how = {"temperature": temperature, "reduction": reduction, "ids": ids, "weight": weight}
    more = {"negatives": negatives, "negative_ids": negative_ids, "hard_negatives": hard}
    if loss == "nce":
        actual = imix_nce_loss(q, k, labels, **how, **more)
    elif loss == "ntxent":
        actual = imix_ntxent_loss(q, k.flip(0), q.flip(0), k, labels, **how, **more)
    else:
        actual = imix_clip_loss(q, k, labels, **how)
    more["hard"] = more.pop("hard_negatives")
    expected = dense_extended(loss, q, k, labels, **how, **more)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    if expected.sum() == 0:  # nothing to tell apart
        return
    leaves = [each for each in (q, k, temperature, negatives, hard) if each is not None]
    grads = (torch.autograd.grad(each.sum(), leaves, allow_unused=True) for each in (actual, expected))
    for grad, right in zip(*grads, strict=True):
        torch.testing.assert_close(grad, torch.zeros_like(grad) if right is None else right, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("loss", AND_CLIP)
def test_transforms_of_torch_func(loss):
    q, k = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    labels = VirtualLabels(torch.rand(5, dtype=torch.float64) / 2 + 0.5, torch.randperm(5))

    def value(q):
        return AND_CLIP[loss](q, k, labels)

    leaf = q.clone().requires_grad_()
    torch.testing.assert_close(torch.func.grad(value)(q), torch.autograd.grad(value(leaf), leaf)[0])
    stacked = torch.stack([q, 2 * q, -q])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch says that it runs one after the other
        torch.testing.assert_close(torch.func.vmap(value)(stacked), torch.stack([value(each) for each in stacked]))
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(value, (q,), (q,))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.func.grad(lambda q: torch.func.grad(value)(q).sum())(q)
    by_row = lambda key: AND_CLIP[loss](q, key, labels, reduction="none").square().sum()  # noqa: E731
    keys = k.clone().requires_grad_()  # whose gradient is a sweep of its own then
    torch.testing.assert_close(torch.func.grad(by_row)(k), torch.autograd.grad(by_row(keys), keys)[0])
    rows = AND_CLIP[loss](leaf, k.clone().requires_grad_(), labels, reduction="none")
    with pytest.raises(RuntimeError, match="no batch of gradients"):
        torch.autograd.grad(rows, leaf, torch.eye(len(rows), dtype=torch.float64), is_grads_batched=True)


@pytest.mark.parametrize("loss", AND_CLIP)
def test_forward_mode_elsewhere_is_none_of_a_loss_s_business(loss):
    q, k = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.randn(5, 4, dtype=torch.float64)
    expected = AND_CLIP[loss](q, k, None)
    with torch.autograd.forward_ad.dual_level():
        actual = AND_CLIP[loss](q, k, None)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(*(torch.autograd.grad(each, q)[0] for each in (actual, expected)))


@pytest.mark.parametrize("loss", AND_CLIP)
def test_tensors_without_values_have_shapes(loss):
    from torch.fx.experimental.proxy_tensor import make_fx

    q, k = torch.randn(5, 4, device="meta", requires_grad=True), torch.randn(5, 4, device="meta", requires_grad=True)
    labels = VirtualLabels.identity(5, device="meta")
    for reduction, shape in (("mean", ()), ("none", (5,))):
        value = AND_CLIP[loss](q, k, labels, reduction=reduction)
        assert value.shape == shape
        assert torch.autograd.grad(value.sum(), q)[0].shape == q.shape
    real = torch.randn(5, 4), torch.randn(5, 4)
    traced = make_fx(lambda q, k: AND_CLIP[loss](q, k, None))(*real)
    torch.testing.assert_close(traced(*real), AND_CLIP[loss](*real, None))


def test_supcon_takes_no_ids():
    """A class-mate with the row's id is a positive: to leave it out would make losses negative."""
    q, k, classes = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    with pytest.raises(TypeError, match="ids"):
        imix_supcon_loss(q, k, classes, ids=classes)


def test_a_lambda_that_is_learnt_has_a_gradient_at_one_too():
    query, key = torch.randn(2, 4, 3, dtype=torch.float64).unbind()
    lam, partner = torch.tensor([1.0, 0.5, 1.0, 0.0], dtype=torch.float64, requires_grad=True), torch.arange(4).roll(1)
    imix_nce_loss(query, key, VirtualLabels(lam, partner), temperature=0.5, reduction="sum").backward()
    log_p = (F.normalize(query) @ F.normalize(key).T / 0.5).log_softmax(1)
    torch.testing.assert_close(lam.grad, log_p[torch.arange(4), partner] - log_p.diagonal())


def test_a_weight_that_is_learnt_gets_the_gradient_of_the_weighted_mean():
    q, k, weight = torch.randn(4, 3), torch.randn(4, 3), torch.rand(4, requires_grad=True)
    (grad,) = torch.autograd.grad(imix_nce_loss(q, k, weight=weight, temperature=0.2), weight)
    rows = imix_nce_loss(q, k, temperature=0.2, reduction="none")
    torch.testing.assert_close(grad, (rows - (rows * weight).sum() / weight.sum()) / weight.sum())
