"""imix_supcon_loss in one batch: against the formula in float64, two public losses, and one process across ranks."""

import pytest
import torch
from ranks import ring
from torch.nn import functional as F

from imix_aug import VirtualLabels, imix_nce_loss, imix_supcon_loss

DOUBLE = {"dtype": torch.float64}


def formula(query, key, classes, labels=None, *, temperature=0.1, negatives=None, hard=None):
    """Rows' losses, one row and one of its two classes at a time."""
    n = len(query)
    lam, partner = (torch.ones(n, **DOUBLE), torch.arange(n)) if labels is None else labels
    query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
    rows = []
    for i in range(n):
        components = {i} if lam[i] == 1 else {i, int(partner[i])}
        others = [j for j in range(n) if j not in components]
        columns = [key[others]]
        if negatives is not None:
            columns.append(F.normalize(negatives, dim=1))
        if hard is not None:
            columns.append(F.normalize(hard[i], dim=1))
        log_p = (torch.cat(columns) @ query[i] / temperature).log_softmax(0)
        loss = 0 * query[i].sum()
        for of, share in ((i, lam[i]), (int(partner[i]), 1 - lam[i])):
            mates = [place for place, j in enumerate(others) if classes[j] == classes[of]]
            if mates and share > 0:
                loss = loss - share * log_p[mates].mean()
        rows.append(loss)
    return torch.stack(rows)


def batch(n, seed, classes=3):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, n, 5, generator=generator, **DOUBLE)
    lam = torch.rand(n, generator=generator, **DOUBLE)
    lam = torch.where(torch.rand(n, generator=generator) < 0.3, 1.0, lam)
    labels = VirtualLabels(lam, torch.randint(n, (n,), generator=generator))
    return *rows.unbind(), torch.randint(classes, (n,), generator=generator), labels


def same(actual, expected, leaves, tolerance=1e-10):
    """Compare values and gradients."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)
    weight = torch.linspace(0.5, 2, actual.numel(), **DOUBLE).view(actual.shape)
    found, wanted = (
        torch.autograd.grad((loss * weight).sum(), leaves, retain_graph=True, allow_unused=True)
        for loss in (actual, expected)
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n", [1, 2, 3, 5, 12])
def test_equals_the_formula(n, seed):
    query, key, classes, labels = batch(n, seed, classes=1 + seed % 5)
    generator = torch.Generator().manual_seed(seed)
    more = {
        "negatives": torch.randn(4, 5, generator=generator, **DOUBLE),
        "hard": torch.randn(n, 2, 5, generator=generator, **DOUBLE),
    }
    how = [{}, {"negatives": more["negatives"]}, more][seed % 3]
    ours = {"hard_negatives" if name == "hard" else name: each for name, each in how.items()}
    temperature = torch.tensor(0.3, requires_grad=True, **DOUBLE)
    lam = labels.lam.clone().requires_grad_(seed % 2 == 1 and bool((labels.lam < 1).all()))
    leaves = [query.requires_grad_(), key.requires_grad_(), temperature, *([lam] if lam.requires_grad else [])]
    weight = torch.rand(n, generator=generator, **DOUBLE)
    for given in (None, VirtualLabels(lam, labels.partner)):
        wrt = leaves if given is not None else leaves[:3]
        rows = formula(query, key, classes, given, temperature=temperature, **how)
        arguments = {"temperature": temperature, "same_view": True, **ours}
        for reduction, expected in (("none", rows), ("sum", rows.sum()), ("mean", rows.mean())):
            same(imix_supcon_loss(query, key, classes, given, reduction=reduction, **arguments), expected, wrt)
        weighed = imix_supcon_loss(query, key, classes, given, weight=weight, **arguments)
        same(weighed, (rows * weight).sum() / weight.sum(), wrt)


def test_without_key_the_queries_are_their_own():
    query, _, classes, _ = batch(9, 0)
    query.requires_grad_()
    same(imix_supcon_loss(query, None, classes), formula(query, query, classes).mean(), [query])


def khosla(features, classes, temperature, base_temperature):
    """SupContrast's loss for features (N, V, D), from the paper's equation 2: all views are anchors."""
    n, views, _ = features.shape
    rows = F.normalize(features, dim=2).transpose(0, 1).reshape(views * n, -1)
    logits = (rows @ rows.T / temperature).fill_diagonal_(-torch.inf)
    positive = (classes[:, None] == classes).repeat(views, views).fill_diagonal_(False)
    log_p = torch.where(positive, logits.log_softmax(1), 0).sum(1) / positive.sum(1)
    return -(temperature / base_temperature * log_p).mean()


@pytest.mark.parametrize("views", [2, 3])
def test_khoslas_loss_of_features_with_several_views(views):
    features = torch.randn(7, views, 5, requires_grad=True, **DOUBLE)
    classes = torch.randint(3, (7,))
    ours = imix_supcon_loss(features.flatten(0, 1), None, classes.repeat_interleave(views), temperature=0.1)
    same(0.1 / 0.07 * ours, khosla(features, classes, 0.1, 0.07), [features])


@pytest.mark.parametrize("views", [2, 3])
def test_mixed_views_of_one_batch(views):
    """All views mixed by the same labels; an anchor's components are those of its own view."""
    n = 6
    mixed, unmixed = torch.randn(2, views * n, 5, requires_grad=True, **DOUBLE).unbind()
    _, _, classes, labels = batch(n, 3)
    every = VirtualLabels.cat([labels] * views)
    ours = imix_supcon_loss(mixed, unmixed, classes.repeat(views), every, same_view=True, reduction="none")
    rows = F.normalize(mixed, dim=1) @ F.normalize(unmixed, dim=1).T / 0.1
    out = torch.zeros(views * n, views * n, dtype=torch.bool)
    for view in range(views):
        for i in range(n):
            out[view * n + i, view * n + i] = True
            if labels.lam[i] < 1:
                out[view * n + i, view * n + int(labels.partner[i])] = True
    log_p = rows.masked_fill(out, -torch.inf).log_softmax(1)
    mates = (classes.repeat(views)[:, None] == classes.repeat(views)).double()
    label = torch.zeros(views * n, views * n, **DOUBLE)
    for row, (lam, partner) in enumerate(zip(*every, strict=True)):
        for of, share in ((row, lam), (int(partner), 1 - lam)):
            spread = torch.where(out[row], 0, mates[of])
            label[row] += share * spread / spread.sum().clamp_min(1)
    torch.testing.assert_close(ours, -(label * torch.where(label > 0, log_p, 0)).sum(1), rtol=0, atol=1e-12)


def test_pytorch_metric_learnings_rows():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    reducers = pytest.importorskip("pytorch_metric_learning.reducers")
    rows, classes = torch.randn(12, 5, requires_grad=True, **DOUBLE), torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 3, 3, 3, 4])
    theirs = losses.SupConLoss(temperature=0.1, reducer=reducers.DoNothingReducer())(rows, classes)["loss"]["losses"]
    ours = imix_supcon_loss(rows, None, classes, reduction="none")
    same(ours, theirs, [rows])
    assert (ours == 0).tolist() == [each in (2, 4) for each in classes.tolist()]
    # Their mean is one of the rows that have a positive; as weights:
    averaged = losses.SupConLoss(temperature=0.1)(rows, classes)
    has_positive = (classes[:, None] == classes).sum(1).gt(1).double()
    same(imix_supcon_loss(rows, None, classes, weight=has_positive), averaged, [rows])


@pytest.mark.parametrize("own", [0.0, 0.6, 1.0])
def test_shares_between_a_rows_own_key_and_its_class_mates(own):
    """Losses are linear in their labels: a given share for the own key, the rest evenly over all of its id."""
    query, key, ids, labels = batch(8, 4)
    ours = own * imix_nce_loss(query, key, labels, temperature=0.1) + (1 - own) * imix_supcon_loss(
        query, key, ids, labels, temperature=0.1
    )
    mates = (ids[:, None] == ids).double()
    spread = own * torch.eye(8, **DOUBLE) + (1 - own) * mates / mates.sum(1, keepdim=True)
    log_p = (F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / 0.1).log_softmax(1)
    lam = labels.lam[:, None]
    expected = -((lam * spread + (1 - lam) * spread[labels.partner]) * log_p).sum(1).mean()
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_lambda_of_one_is_no_mixing_to_the_bit(dtype, reduction):
    query, key, classes, labels = batch(9, 5)
    query, key = query.to(dtype), key.to(dtype)
    labels = VirtualLabels(torch.ones(9), labels.partner)
    mixed, plain = (
        imix_supcon_loss(query, key, classes, each, same_view=True, reduction=reduction) for each in (labels, None)
    )
    assert torch.equal(mixed, plain)


@pytest.mark.parametrize(("dtype", "times"), [(torch.float32, 2), (torch.bfloat16, 1.05), (torch.float16, 1.05)])
@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5])
def test_pairs_told_apart_keep_their_digits(dtype, times, temperature):
    """Two views as one batch: NT-Xent, against the dense formula under the same autocast."""
    first = torch.randn(48, 128, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([first, first + 0.3 * torch.randn(48, 128, generator=torch.Generator().manual_seed(1))])
    classes = torch.arange(48).repeat(2)

    def dense(rows, exact):
        logits = (F.normalize(rows) @ F.normalize(rows).T / temperature).masked_fill(torch.eye(96).bool(), -torch.inf)
        own = logits.gather(1, torch.arange(96).roll(48)[:, None])
        if not exact:
            return (logits.float().logsumexp(1) - own[:, 0].float()).mean()
        rest = logits.scatter(1, torch.arange(96).roll(48)[:, None], -torch.inf).logsumexp(1)
        return F.softplus(rest - own[:, 0], threshold=200).mean()

    grads = {}
    for name, kind in (("exact", torch.float64), ("dense", torch.float32), ("ours", torch.float32)):
        leaf = rows.to(kind).requires_grad_()
        with torch.autocast("cpu", dtype, enabled=name != "exact" and dtype != torch.float32):
            loss = (
                imix_supcon_loss(leaf, None, classes, temperature=temperature)
                if name == "ours"
                else dense(leaf, name == "exact")
            )
        assert loss >= 0
        (grads[name],) = torch.autograd.grad(loss, leaf)
    error = {name: (grads[name] - grads["exact"]).norm() / grads["exact"].norm() for name in ("dense", "ours")}
    assert error["ours"] <= max(times * error["dense"], 4e-6)


def test_compiles_whole():
    query, key, classes, labels = batch(9, 6)
    query.requires_grad_()

    def loss(query):
        return imix_supcon_loss(query, key, classes, labels, same_view=True)

    one, other = (
        torch.autograd.grad(each(query), query)[0]
        for each in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager"))
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def contrast(rank, size, use_ring):
    """Mates are on any rank; the classes of 0 to 4 leave some rows without one."""
    n = 4
    for seed in range(6):
        query, key, classes, _ = batch(size * n, seed, classes=1 + seed)
        own = slice(rank * n, (rank + 1) * n)
        partner = torch.cat([each * n + torch.arange(n).roll(1) for each in range(size)])
        lam = torch.linspace(0.4, 1, size * n, **DOUBLE)
        for labels in (None, VirtualLabels(lam, partner)):
            leaves = [each.clone().requires_grad_() for each in (query, key)]
            rows = formula(*leaves, classes, labels)
            wanted = torch.autograd.grad(rows.mean(), leaves)
            for reduction in ("mean", "none"):
                mine = [each[own].clone().requires_grad_() for each in (query, key)]
                with ring(use_ring):
                    value = imix_supcon_loss(
                        *mine,
                        classes[own],
                        None if labels is None else VirtualLabels(lam[own], partner[own] - rank * n),
                        gather_distributed=True,
                        reduction=reduction,
                        same_view=True,
                    )
                    value.mean().backward()
                torch.testing.assert_close(value.detach().mean(), rows.detach()[own].mean(), rtol=0, atol=1e-10)
                for leaf, grad in zip(mine, wanted, strict=True):
                    torch.testing.assert_close(leaf.grad / size, grad[own], rtol=0, atol=1e-10)
    with ring(use_ring), pytest.raises(ValueError, match="query must have more than 1 rows per rank"):
        imix_supcon_loss(query[:1], None, classes[:1], gather_distributed=True)


@pytest.mark.parametrize("use_ring", [False, True], ids=["gather", "ring"])
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_give_the_gradients_of_one_process(worlds, size, use_ring):
    worlds[size].run(contrast, use_ring)


def test_refusals():
    query, key, classes, labels = batch(4, 7)
    with pytest.raises(ValueError, match="labels must be None without key"):
        imix_supcon_loss(query, None, classes, labels)
    with pytest.raises(TypeError, match="same_view must be a bool, got 1"):
        imix_supcon_loss(query, key, classes, same_view=1)
    with pytest.raises(ValueError, match="key must be embeddings of unmixed rows"):
        imix_supcon_loss(query, query, classes, VirtualLabels(labels.lam / 2, labels.partner), same_view=True)
