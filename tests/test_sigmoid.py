"""imix_sigmoid_loss: against the formula in float64, transformers' and open_clip's SigLIP, and one process."""

import warnings

import pytest
import torch
from largest import Largest
from torch.nn import functional as F

from imix_aug import VirtualLabels, imix_sigmoid_loss
from imix_aug._cross_entropy import blocked

DOUBLE = {"dtype": torch.float64}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def label_matrix(labels, n):
    if labels is None:
        return torch.eye(n, **DOUBLE)
    eye, lam = torch.eye(n, **DOUBLE), labels.lam.double()[:, None]
    return lam * eye + (1 - lam) * eye[labels.partner]


def formula(query, key, labels, *, temperature, bias, negatives=None, hard_negatives=None, ids=None, negative_ids=None):
    """Rows' losses with whole matrices."""
    n = len(query)
    unit = lambda rows: F.normalize(rows.double(), dim=-1)  # noqa: E731
    label = label_matrix(labels, n)
    counts = [torch.ones(n, n, **DOUBLE) if ids is None else ((ids[:, None] != ids) | (label > 0)).double()]
    logits, shares = [unit(query) @ unit(key).T], [label]
    if negatives is not None:
        logits.append(unit(query) @ unit(negatives).T)
        known = negative_ids is not None
        counts.append((ids[:, None] != negative_ids).double() if known else torch.ones_like(logits[-1]))
    if hard_negatives is not None:
        logits.append(torch.einsum("nd,nhd->nh", unit(query), unit(hard_negatives)))
        counts.append(torch.ones_like(logits[-1]))
    shares += [torch.zeros_like(each) for each in logits[1:]]
    s, y = torch.cat(logits, 1) / temperature + bias, torch.cat(shares, 1)
    return -(torch.cat(counts, 1) * (y * F.logsigmoid(s) + (1 - y) * F.logsigmoid(-s))).sum(1)


def case(n, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, **DOUBLE).to(dtype)  # noqa: E731
    lam = torch.rand(n, generator=generator, **DOUBLE)
    labels = VirtualLabels(
        torch.where(lam > 0.8, 1.0, lam).to(torch.promote_types(dtype, torch.float32)),
        torch.randint(n, (n,), generator=generator),
    )
    ids, negative_ids = (torch.randint(4, (rows,), generator=generator) for rows in (n, 5))
    more = {"negatives": draw(5, 4), "hard_negatives": draw(n, 2, 4), "ids": ids, "negative_ids": negative_ids}
    return draw(n, 4), draw(n, 4), labels, more


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("n", [1, 2, 7, 300])
def test_equals_the_formula(n, mixed, dtype):
    query, key, labels, more = case(n, n, dtype)
    labels = labels if mixed else None
    for bias, given in ((-10.0, []), (0.5, ["negatives"]), (-2.0, ["ids", "hard_negatives"]), (-4.0, list(more))):
        how = {name: more[name] for name in given}
        wrt = ["query", "key", "temperature", "bias", *(name for name in given if "ids" not in name)]
        values = {"query": query, "key": key, **how}
        scalars = torch.promote_types(dtype, torch.float32)
        values |= {"temperature": torch.tensor(0.3, dtype=scalars), "bias": torch.tensor(bias, dtype=scalars)}
        leaves = {name: values[name].clone().requires_grad_(name in wrt) for name in values}
        exact = {name: each.detach().double() if name in wrt else each for name, each in leaves.items()}
        exact = {name: each.requires_grad_(name in wrt) for name, each in exact.items()}
        rows = formula(labels=labels, **exact)
        for reduction, wanted in (("none", rows), ("sum", rows.sum()), ("mean", rows.mean())):
            value = imix_sigmoid_loss(labels=labels, reduction=reduction, **leaves)
            assert value.dtype == torch.promote_types(dtype, torch.float32)
            grads = torch.autograd.grad(value.sum(), [leaves[name] for name in wrt])
            expected = torch.autograd.grad(wanted.sum(), [exact[name] for name in wrt], retain_graph=True)
            for name, ours, theirs in zip(["loss", *wrt], [value, *grads], [wanted, *expected], strict=True):
                scale = theirs.abs().max().clamp_min(1e-3 * n if dtype.itemsize < 8 else 1)
                error = (ours.double() - theirs).abs().max() / scale
                assert error <= 3 * TOLERANCE[dtype], (name, given, reduction)  # 300 rows cancel in a negative's


def test_weights_and_their_mean():
    query, key, labels, _ = case(6, 1)
    weight = torch.rand(6, requires_grad=True, **DOUBLE)
    rows = formula(query, key, labels, temperature=0.2, bias=-3.0) * weight
    how = {"temperature": 0.2, "bias": -3.0, "weight": weight}
    for reduction, expected in (("none", rows), ("sum", rows.sum()), ("mean", rows.sum() / weight.sum())):
        value = imix_sigmoid_loss(query, key, labels, reduction=reduction, **how)
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
        one, other = (torch.autograd.grad(each.sum(), weight, retain_graph=True)[0] for each in (value, expected))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_is_transformers_siglip():
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.SiglipConfig(
        text_config=small | {"vocab_size": 16, "projection_size": 8},
        vision_config=small | {"image_size": 8, "patch_size": 4},
    )
    torch.manual_seed(0)
    model = transformers.SiglipModel(config).eval()
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-4.0)
        output = model(torch.randint(2, 16, (5, 6)), torch.rand(5, 3, 8, 8), return_loss=True)
        ours = imix_sigmoid_loss(
            output.image_embeds,
            output.text_embeds,
            temperature=1 / model.logit_scale[0].exp(),
            bias=model.logit_bias[0],
        )
    torch.testing.assert_close(ours, output.loss, rtol=1e-5, atol=1e-5)


def test_is_open_clips_siglip():
    loss = pytest.importorskip("open_clip.loss")
    images, texts = (F.normalize(torch.randn(6, 4, **DOUBLE)).requires_grad_() for _ in range(2))
    scale, bias = (torch.tensor(value, requires_grad=True, **DOUBLE) for value in (10.0, -10.0))
    theirs = loss.SigLipLoss()(images, texts, scale, bias)
    ours = imix_sigmoid_loss(images, texts, temperature=1 / scale, bias=bias, normalize=False)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    leaves = [images, texts, scale, bias]
    for one, other in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_linear_in_the_labels_and_a_lambda_of_one_is_no_mixing_to_the_bit():
    query, key, labels, _ = case(6, 2)
    value = lambda lam: imix_sigmoid_loss(  # noqa: E731
        query, key, VirtualLabels(torch.full((6,), lam, **DOUBLE), labels.partner), reduction="none"
    )
    torch.testing.assert_close(value(0.25), 0.75 * value(0.0) + 0.25 * value(1.0), rtol=0, atol=1e-12)
    assert torch.equal(value(1.0), imix_sigmoid_loss(query, key, reduction="none"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [-10.0, -4.0, 0.0])
def test_half_precision_is_never_worse_than_the_dense_formula(dtype, bias):
    first = torch.randn(96, 64, generator=torch.Generator().manual_seed(0))
    second = first + 0.4 * torch.randn(96, 64, generator=torch.Generator().manual_seed(1))
    grads = {}
    for name in ("exact", "dense", "ours"):
        leaves = [each.to(torch.float64 if name == "exact" else torch.float32) for each in (first, second)]
        leaves = [each.requires_grad_() for each in leaves]
        with torch.autocast("cpu", dtype, enabled=name != "exact"):
            if name == "ours":
                loss = imix_sigmoid_loss(*leaves, temperature=0.1, bias=bias)
            else:
                s = F.normalize(leaves[0]) @ F.normalize(leaves[1]).T / 0.1 + bias
                loss = -F.logsigmoid((2 * torch.eye(96) - 1) * s).sum() / 96
        grads[name] = torch.cat(torch.autograd.grad(loss, leaves))
    error = {name: (grads[name] - grads["exact"]).norm() / grads["exact"].norm() for name in ("dense", "ours")}
    assert error["ours"] <= 1.05 * error["dense"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_units", [False, True])
def test_half_precision_multiplies_in_the_units_that_there_are(dtype, has_units, monkeypatch):
    monkeypatch.setattr(blocked, "_HAS_BFLOAT16_UNITS", has_units)
    taken, tiles = set(), blocked.Tiles
    monkeypatch.setattr(
        blocked, "Tiles", lambda query, key, *rest: taken.update((query.dtype, key.dtype)) or tiles(query, key, *rest)
    )
    query, key = torch.randn(2, 5, 4).to(dtype).unbind()
    imix_sigmoid_loss(query.requires_grad_(), key.requires_grad_()).backward()
    assert taken == {torch.bfloat16 if has_units and dtype == torch.bfloat16 else torch.float32}


@pytest.mark.parametrize("wants", [(True, False), (False, True), (False, False)])
def test_few_rows_at_a_time_and_what_is_frozen(wants, monkeypatch):
    """Many tiles, the last one not whole; and nobody computes a gradient that nobody asks for."""
    for name, value in {"MAX_ROWS": 5, "MIN_ROWS": 2, "KEY_TILE": 35}.items():
        monkeypatch.setattr(blocked, name, value)
    query, key, labels, more = case(13, 4)
    query, key = (each.requires_grad_(needs) for each, needs in zip((query, key), wants, strict=True))
    bias = torch.tensor(-2.0, requires_grad=True, **DOUBLE)
    leaves = [each for each in (query, key, bias) if each.requires_grad]
    rows = imix_sigmoid_loss(query, key, labels, temperature=0.3, bias=bias, ids=more["ids"], reduction="none")
    expected = formula(query, key, labels, temperature=0.3, bias=bias, ids=more["ids"])
    weight = torch.rand(13, **DOUBLE)
    torch.testing.assert_close(rows, expected, rtol=1e-10, atol=1e-12)
    for one, other in zip(
        *(torch.autograd.grad((each * weight).sum(), leaves) for each in (rows, expected)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_hard_cases_stay_finite():
    rows = torch.eye(3, **DOUBLE).repeat(1, 1)
    for temperature, bias in ((1e-3, -10.0), (1e-3, 1000.0), (1e3, -1e4)):
        leaf = rows.clone().requires_grad_()
        loss = imix_sigmoid_loss(leaf, rows, temperature=temperature, bias=bias)
        torch.testing.assert_close(loss, formula(rows, rows, None, temperature=temperature, bias=bias).mean())
        assert loss >= 0
        assert torch.autograd.grad(loss, leaf)[0].isfinite().all()


def test_memory_does_not_grow_with_the_logits():
    n, d = 3000, 8
    query, key = torch.randn(2, n, d, requires_grad=True).unbind()
    with Largest() as largest:
        imix_sigmoid_loss(query, key).backward()
    assert n * d <= largest.elements < n * n / 4


def test_compiles_whole_for_any_batch_size():
    torch._dynamo.reset()

    def loss(query, key, lam, partner, temperature, bias, ids):
        labels = VirtualLabels(lam, partner)
        return imix_sigmoid_loss(query, key, labels, temperature=temperature, bias=bias, ids=ids)

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (6, 9):
        query, key, labels, more = case(n, n)
        leaves = [query, key, torch.tensor(0.3, **DOUBLE), torch.tensor(-2.0, **DOUBLE)]
        leaves = [each.requires_grad_() for each in leaves]
        arguments = (*leaves[:2], *labels, *leaves[2:], more["ids"])
        values = [each(*arguments) for each in (loss, compiled)]
        torch.testing.assert_close(*values, rtol=0, atol=1e-12)
        for one, other in zip(*(torch.autograd.grad(each, leaves) for each in values), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    torch._dynamo.reset()


def test_transforms_of_torch_func():
    query, key, labels, _ = case(5, 3)
    value = lambda query: imix_sigmoid_loss(query, key, labels)  # noqa: E731
    leaf = query.clone().requires_grad_()
    torch.testing.assert_close(torch.func.grad(value)(query), torch.autograd.grad(value(leaf), leaf)[0])
    stacked = torch.stack([query, 2 * query, -query])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch says that it runs one after the other
        torch.testing.assert_close(torch.func.vmap(value)(stacked), torch.stack([value(each) for each in stacked]))
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(value, (query,), (query,))
    (grad,) = torch.autograd.grad(value(leaf), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.square().sum().backward()
    rows = imix_sigmoid_loss(leaf, key, labels, reduction="none")
    with pytest.raises(RuntimeError, match="no batch of gradients"):
        torch.autograd.grad(rows, leaf, torch.eye(5, **DOUBLE), is_grads_batched=True)
    for dtype in (torch.float32, torch.float16):
        on_meta = torch.randn(5, 4, dtype=dtype, device="meta", requires_grad=True)
        shapes = imix_sigmoid_loss(on_meta, on_meta.detach().clone(), reduction="none")
        assert (shapes.shape, shapes.dtype) == ((5,), torch.float32)
        assert torch.autograd.grad(shapes.sum(), on_meta)[0].shape == (5, 4)


def contrast(rank, size):
    n = 4
    query, key, labels, more = case(size * n, 5)
    partner = torch.cat([each * n + torch.arange(n).roll(1) for each in range(size)])
    labels = VirtualLabels(labels.lam, partner)
    own = slice(rank * n, (rank + 1) * n)
    weight = torch.linspace(0.5, 2, size * n, **DOUBLE)
    for mean_of in (None, weight):
        scalars = {"temperature": 0.3, "bias": -2.0}
        leaves = {"query": query, "key": key, "negatives": more["negatives"]}
        leaves |= {name: torch.tensor(value, **DOUBLE) for name, value in scalars.items()}
        exact = {name: each.clone().requires_grad_() for name, each in leaves.items()}
        rows = formula(labels=labels, ids=more["ids"], negative_ids=more["negative_ids"], **exact)
        total = rows.mean() if mean_of is None else (rows * mean_of).sum() / mean_of.sum()
        wanted = torch.autograd.grad(total, list(exact.values()))
        mine = {name: each[own] if name in ("query", "key") else each for name, each in leaves.items()}
        mine = {name: each.clone().requires_grad_() for name, each in mine.items()}
        value = imix_sigmoid_loss(
            labels=VirtualLabels(labels.lam[own], partner[own] - rank * n),
            ids=more["ids"][own],
            negative_ids=more["negative_ids"],
            weight=None if mean_of is None else mean_of[own],
            gather_distributed=True,
            **mine,
        )
        value.backward()
        torch.distributed.all_reduce(value.detach())
        torch.testing.assert_close(value.detach() / size, total.detach(), rtol=0, atol=1e-10)
        for name, grad in zip(exact, wanted, strict=True):
            found = mine[name].grad
            if name in ("query", "key"):
                grad = grad[own]
            else:
                torch.distributed.all_reduce(found)
            torch.testing.assert_close(
                found / size, grad, rtol=0, atol=1e-10, msg=lambda text, at=name: f"{at}: {text}"
            )
    with pytest.raises(ValueError, match="equal batches on all ranks"):
        imix_sigmoid_loss(query[: n - rank], key[: n - rank], gather_distributed=True)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_give_the_gradients_of_one_process(worlds, size):
    worlds[size].run(contrast)


X, Y = torch.randn(3, 4), torch.randn(3, 4)
REFUSED = [
    ({"bias": "0"}, TypeError, "bias must be a number"),
    ({"bias": True}, TypeError, "bias must be a number"),
    ({"bias": None}, TypeError, "bias must be a number"),
    ({"bias": float("nan")}, ValueError, "bias must be finite, got nan"),
    ({"bias": float("inf")}, ValueError, "bias must be finite"),
    ({"bias": torch.zeros(1)}, ValueError, r"bias must be a float or a 0-d tensor, got shape \(1,\)"),
    ({"bias": torch.tensor(1)}, TypeError, "bias must be floating-point"),
    ({"bias": torch.tensor(0.0, device="meta")}, ValueError, "bias must be on the device of query, cpu, or the CPU"),
    ({"bias": torch.tensor(float("nan"))}, ValueError, "bias must be finite"),
    ({"query": X.long()}, TypeError, "query must be floating-point"),
    ({"key": Y[:1]}, ValueError, "key must have the shape of query"),
    ({"labels": torch.eye(3)}, TypeError, "labels must be VirtualLabels"),
    ({"temperature": 0.0}, ValueError, "temperature must be positive"),
    ({"negatives": Y[:, :2]}, ValueError, "negatives must have as many columns"),
    ({"normalize": 1}, TypeError, "normalize must be a bool"),
    ({"reduction": "max"}, ValueError, "reduction must be one of"),
    ({"gather_distributed": 1}, TypeError, "gather_distributed must be a bool"),
    ({"process_group": object()}, ValueError, "process_group must be None"),
    ({"ids": torch.arange(2)}, ValueError, "ids must have shape"),
    ({"negative_ids": torch.arange(3)}, ValueError, "negative_ids must be None unless"),
    ({"hard_negatives": Y}, ValueError, "hard_negatives must have shape"),
    ({"weight": torch.arange(3)}, TypeError, "weight must be floating-point"),
    (
        {"key": X, "labels": VirtualLabels(torch.full((3,), 0.5), torch.tensor([1, 2, 0]))},
        ValueError,
        "key must be embeddings of unmixed rows",
    ),
]


@pytest.mark.parametrize(("wrong", "error", "message"), REFUSED)
def test_refusals(wrong, error, message):
    with pytest.raises(error, match=message):
        imix_sigmoid_loss(**{"query": X, "key": Y, **wrong})
