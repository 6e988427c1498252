"""Random calls of every public function: each agrees with the dense formula, or is refused by naming an argument."""

import dense
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imix_aug import (
    IMix,
    IMixLoss,
    InputMix,
    NegativeQueue,
    VirtualLabels,
    imix_byol_loss,
    imix_nce_loss,
    imix_ntxent_loss,
    imix_supcon_loss,
)

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}
DTYPES = st.sampled_from(list(TOLERANCE))
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def strided(draw, rows):
    """The same values in another layout."""
    layout = draw(st.sampled_from(["contiguous", "transposed", "every other row", "part of wider rows"]))
    if layout == "transposed":
        return rows.t().contiguous().t()
    if layout == "every other row":
        return rows.repeat_interleave(2, dim=0)[::2]
    if layout == "part of wider rows":
        return torch.cat([rows, rows], dim=1)[:, : rows.shape[1]]
    return rows


def matrix(draw, generator, n, d, dtype, device):
    kind = draw(st.sampled_from(["normal", "normal", "short", "long", "alike", "with zeros"]))
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64)
    if kind == "short":
        rows *= 1e-2
    elif kind == "long":
        rows *= 1e2
    elif kind == "alike":
        rows = rows[:1].expand(n, d)
    elif kind == "with zeros":
        rows[torch.rand(n, generator=generator) < 0.3] = 0
    return strided(draw, rows.to(dtype).to(device))


def draw_labels(draw, generator, n, device):
    kind = draw(st.sampled_from(["none", "identity", "mixed", "mixed", "one lambda"]))
    if kind == "none":
        return None
    if kind == "identity":
        return VirtualLabels.identity(n, device)
    lam = 0.5 + 0.5 * torch.rand(n if kind == "mixed" else 1, generator=generator)
    return VirtualLabels(lam.expand(n), torch.randperm(n, generator=generator)).to(device)


def assert_close(ours, wanted, bound, what):
    """Elementwise, up to ``bound``; where float64 is not finite neither is ours."""
    ours, wanted = ours.detach().cpu().double(), wanted.detach().cpu()
    assert ours.shape == wanted.shape, what
    assert ours.isfinite().all(), what
    assert ((ours - wanted).abs() <= bound).all(), (what, (ours - wanted).abs().max().item())


CONTRASTS = {"npair": 2, "ntxent": 4, "supcon": 2, "byol": 2}


def contrast(name, rows, classes, labels, options):
    if name == "npair":
        return imix_nce_loss(*rows, labels, **options)
    if name == "ntxent":
        return imix_ntxent_loss(*rows, labels, **options)
    if name == "supcon":
        return imix_supcon_loss(*rows, classes, labels, **options)
    return imix_byol_loss(*rows, labels, **options)


def dense_contrast(name, rows, classes, labels, options):
    options = {**options}
    reduction = options.pop("reduction")
    if name == "supcon":
        losses = dense.supcon(*rows, classes, labels, **options)
    else:
        losses = {"npair": dense.nce, "ntxent": dense.ntxent, "byol": dense.byol}[name](*rows, labels, **options)
    return dense.reduce(losses, reduction)


def fuzz_contrast(draw):
    """A loss, its value and all its gradients."""
    name, dtype, device = draw(st.sampled_from(list(CONTRASTS))), draw(DTYPES), draw(st.sampled_from(DEVICES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    n, d = draw(st.integers(1, 40)), draw(st.integers(1, 20))
    normalize = draw(st.booleans())
    rows = [matrix(draw, generator, n, d, dtype, device) for _ in range(CONTRASTS[name])]
    labels = draw_labels(draw, generator, n, device)
    classes = torch.randint(-3, 4, (n,), generator=generator)
    classes = classes.to(draw(st.sampled_from([torch.int64, torch.int32, torch.int8]))).to(device)
    options = {"normalize": normalize, "reduction": draw(st.sampled_from(["mean", "sum", "none"]))}
    if not normalize:  # Logits as a trained encoder has them.
        rows = [(each.double() / each.double().abs().max().clamp_min(1e-6) / d**0.5).to(dtype) for each in rows]
    temperature = 1.0
    if name != "byol":
        is_half = dtype in (torch.float16, torch.bfloat16)
        temperature = draw(st.floats(0.2 if is_half else 0.02, 5.0))
        learnt = draw(st.booleans())
        options["temperature"] = torch.tensor(temperature, requires_grad=True) if learnt else temperature
        temperature = float(torch.as_tensor(options["temperature"]).detach())
        if draw(st.booleans()):
            k = draw(st.integers(0 if name == "npair" else 1, 60))
            options["negatives"] = matrix(draw, generator, k, d, dtype, device) if k else rows[0][:0]
            if not normalize:
                options["negatives"] = (options["negatives"].double() / 1e3).to(dtype)
    needs = [draw(st.booleans()) for _ in rows]
    rows = [each.detach().requires_grad_(need) for each, need in zip(rows, needs, strict=True)]

    loss = contrast(name, rows, classes, labels, options)
    twins = [each.detach().cpu().double().requires_grad_(each.requires_grad) for each in rows]
    twin_options = {
        key: value.detach().cpu().double() if isinstance(value, torch.Tensor) else value
        for key, value in options.items()
    }
    learnt = isinstance(options.get("temperature"), torch.Tensor)
    if learnt:
        twin_options["temperature"].requires_grad_()
    wanted = dense_contrast(name, twins, classes.cpu(), labels and labels.to("cpu"), twin_options)

    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = TOLERANCE[dtype]
    terms = n if options["reduction"] == "sum" else 1
    scale = 4 if name == "byol" else 1 / temperature
    assert_close(loss, wanted, tolerance * (wanted.detach().abs() + terms * scale), name)

    inputs, twin_inputs = [each for each in rows if each.requires_grad], [each for each in twins if each.requires_grad]
    if learnt:
        inputs.append(options["temperature"])
        twin_inputs.append(twin_options["temperature"])
    if not wanted.requires_grad:
        assert not loss.requires_grad
        return
    assert loss.requires_grad
    weight = torch.rand(loss.shape, generator=generator, dtype=torch.float64)
    grads = torch.autograd.grad(loss, inputs, weight.to(loss.dtype).to(loss.device), allow_unused=True)
    weight = weight.to(loss.dtype).double()
    twin_grads = torch.autograd.grad(wanted, twin_inputs, weight, allow_unused=True)
    share = 1 / n if options["reduction"] == "mean" else 1
    for each, grad, expected in zip(inputs, grads, twin_grads, strict=True):
        if expected is None:
            assert grad is None or not grad.any()
            continue
        if each.dim() == 0:
            size = n * share * scale / temperature
        else:  # What one row of the loss can at most do to this row, times the rows that see it.
            length = each.detach().cpu().double().norm(dim=1, keepdim=True).clamp_min(1e-12)
            size = n * share * scale / (length if normalize else 1)
        bound = 3 * max(tolerance, 10 * torch.finfo(each.dtype).eps) * (expected.abs() + size * (1 + scale))
        if dtype == torch.float16:  # Its own subnormal numbers.
            bound = bound + 1e-7
            grad = grad.clamp(-65504, 65504)
            expected = expected.clamp(-65504, 65504)
        assert grad.dtype == each.dtype
        assert_close(grad, expected, bound, (name, "gradient", options["reduction"]))


def fuzz_imix(draw):
    """Mixed rows are what their labels say."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    dtype = draw(DTYPES)
    shape = draw(st.lists(st.integers(1, 5), max_size=3))
    x = strided(draw, torch.randn(draw(st.integers(1, 12)), 5, generator=generator).to(dtype))
    if shape:
        x = torch.randn(len(x), *shape, generator=generator).to(dtype)
        if draw(st.booleans()) and len(shape) == 3:
            x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_(draw(st.booleans()))
    alpha = draw(st.one_of(st.floats(1e-3, 20), st.tuples(st.floats(0.01, 5), st.floats(0.01, 5))))
    imix = IMix(alpha, per_sample=draw(st.sampled_from([None, True, False])), generator=generator)
    mixed, (lam, partner) = imix(x)
    assert mixed.shape == x.shape
    assert mixed.dtype == x.dtype
    assert mixed.requires_grad == x.requires_grad
    assert lam.dtype == torch.float32
    assert ((lam >= 0.5) & (lam <= 1)).all()
    assert sorted(partner.tolist()) == list(range(len(x)))
    matrix_of_labels = dense.label_matrix(VirtualLabels(lam, partner), len(x))
    wanted = (matrix_of_labels @ x.detach().double().flatten(1)).view(x.shape)
    tolerance = max(TOLERANCE[dtype], 2e-7)  # Lambda is float32.
    assert_close(mixed, wanted, tolerance * (1 + wanted.abs()), "imix")
    if x.requires_grad:
        weight = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(dtype)
        (grad,) = torch.autograd.grad(mixed, x, weight)
        expected = (matrix_of_labels.T @ weight.double().flatten(1)).view(x.shape)
        assert_close(grad, expected, 2 * tolerance * (1 + expected.abs()), "imix gradient")


def fuzz_cutmix(draw):
    """Every value is the row's or the partner's, and lambda counts the row's."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    n = draw(st.integers(1, 6))
    grid = draw(st.lists(st.integers(1, 9), min_size=1, max_size=2))
    dtype = draw(st.sampled_from([*TOLERANCE, torch.uint8, torch.int64]))
    x = torch.arange(n).view(n, *(1 for _ in [0, *grid])).expand(n, 2, *grid).to(dtype)
    per_sample = draw(st.sampled_from([None, True]))
    mixed, (lam, partner) = IMix(draw(st.floats(0.1, 5)), "cutmix", per_sample=per_sample, generator=generator)(x)
    own = torch.arange(n).view(-1, 1).expand(n, mixed[0].numel())
    values = mixed.flatten(1).double()
    is_own = values == own
    assert (is_own | (values == partner[:, None])).all()
    moved = partner != torch.arange(n)
    torch.testing.assert_close(is_own.double().mean(1)[moved], lam.double()[moved], rtol=0, atol=1e-6)


def fuzz_inputmix(draw):
    """Columns of the identity matrix show the weights."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    n, num_aux = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    min_weight = draw(st.floats(0, 1))
    mix = InputMix(num_aux, draw(st.floats(0.05, 9)), min_weight=min_weight, generator=generator)
    weights = mix(torch.eye(n, dtype=torch.float64))
    torch.testing.assert_close(weights.sum(1), torch.ones(n, dtype=torch.float64), rtol=0, atol=1e-6)
    assert (weights >= 0).all()
    assert (weights.diag() >= min_weight - 1e-6).all()
    assert ((weights > 0).sum(1) <= num_aux + 1).all()


def fuzz_labels(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    n = draw(st.integers(1, 12))
    labels = draw_labels(draw, generator, n, "cpu") or VirtualLabels.identity(n)
    columns = draw(st.one_of(st.none(), st.integers(n, n + 5)))
    matrix_of_labels = labels.dense(columns)
    assert matrix_of_labels.shape == (n, columns or n)
    wanted = torch.cat([dense.label_matrix(labels, n), torch.zeros(n, (columns or n) - n, dtype=torch.float64)], 1)
    assert_close(matrix_of_labels, wanted, 1e-6, "dense")


def fuzz_queue(draw):
    """A list that drops its oldest entries does the same."""
    size, dim = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    queue, kept, number = NegativeQueue(size, dim), [], 0
    for n in draw(st.lists(st.integers(1, 30), max_size=6)):
        keys = torch.arange(number, number + n, dtype=torch.float32)[:, None].expand(n, dim)
        queue.enqueue(keys)
        number += n
        kept = [*kept, *keys[:, 0].tolist()][-size:]
    assert queue.negatives.shape == (len(kept), dim)
    assert sorted(queue.negatives[:, 0].tolist()) == kept


def fuzz_wrapper(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    n, m = draw(st.integers(1, 9)), draw(st.integers(0, 5))
    labels = draw_labels(draw, generator, n, "cpu")
    a = torch.randn(n, n + m, generator=generator, dtype=torch.float64)
    matrix_of_labels = dense.label_matrix(labels, n)
    if draw(st.booleans()):
        reduction = draw(st.sampled_from(["mean", "sum", "none"]))
        criterion = torch.nn.CrossEntropyLoss(reduction=reduction)
        outcome = IMixLoss(criterion, on="logits", extra_columns=m > 0)(a, labels)
        wanted = dense.reduce(dense.soft_cross_entropy(a, matrix_of_labels), reduction)
    else:
        b = torch.randn(n, n + m, generator=generator, dtype=torch.float64)
        outcome = IMixLoss(lambda a, b: (a - b).square().sum(1))(a, b, labels)
        wanted = (matrix_of_labels * (a[:, None] - b[None]).square().sum(2)).sum(1)
    assert_close(outcome, wanted, 1e-6 * (1 + wanted.abs()), "wrapper")


WRONG = {
    "width of key": ("key", lambda q: {"key": torch.randn(len(q), q.shape[1] + 1).to(q)}),
    "rows of key": ("key", lambda q: {"key": torch.randn(len(q) + 1, q.shape[1]).to(q)}),
    "dtype of key": ("key", lambda q: {"key": torch.zeros(q.shape, dtype=torch.int64)}),
    "dimensions of query": ("query", lambda q: {"query": q[None]}),
    "no rows": ("query", lambda q: {"query": q[:0], "key": q[:0]}),
    "type of query": ("query", lambda q: {"query": q.tolist()}),
    "rows of labels": ("labels", lambda q: {"labels": VirtualLabels.identity(len(q) + 1)}),
    "type of labels": ("labels", lambda q: {"labels": torch.eye(len(q))}),
    "temperature": ("temperature", lambda q: {"temperature": 0.0}),
    "negative temperature": ("temperature", lambda q: {"temperature": -0.1}),
    "temperature of no number": ("temperature", lambda q: {"temperature": float("nan")}),
    "temperatures": ("temperature", lambda q: {"temperature": torch.ones(len(q))}),
    "width of negatives": ("negatives", lambda q: {"negatives": torch.randn(3, q.shape[1] + 1).to(q)}),
    "dimensions of negatives": ("negatives", lambda q: {"negatives": torch.randn(q.shape[1]).to(q)}),
    "normalize": ("normalize", lambda q: {"normalize": 1}),
    "reduction": ("reduction", lambda q: {"reduction": "average"}),
    "gather_distributed": ("gather_distributed", lambda q: {"gather_distributed": "yes"}),
}


def fuzz_refusals(draw):
    name, wrong = WRONG[draw(st.sampled_from(list(WRONG)))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    q = matrix(draw, generator, draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(DTYPES), "cpu")
    arguments = {"query": q, "key": q, **wrong(q)}
    with pytest.raises((ValueError, TypeError), match=name):
        imix_nce_loss(**arguments)
    if "classes" not in arguments:
        with pytest.raises((ValueError, TypeError), match=name):
            imix_supcon_loss(classes=torch.zeros(len(q), dtype=torch.int64), **arguments)


TARGETS = [
    fuzz_contrast,
    fuzz_contrast,
    fuzz_contrast,
    fuzz_imix,
    fuzz_cutmix,
    fuzz_inputmix,
    fuzz_labels,
    fuzz_queue,
    fuzz_wrapper,
    fuzz_refusals,
]
HEALTH = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=HEALTH)
@given(st.data())
def test_public_functions(data):
    data.draw(st.sampled_from(TARGETS))(data.draw)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, derandomize=False, database=None, suppress_health_check=HEALTH)
@given(st.data())
def test_public_functions_at_length(data):
    data.draw(st.sampled_from(TARGETS))(data.draw)
