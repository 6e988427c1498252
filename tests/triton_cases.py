"""The Triton kernels under Triton's interpreter, on CPU; ``test_triton.py`` runs this file in a process of its own.

The oracle is the dense formula in float64. Matrix products in the interpreter are exact products of what a kernel
passes them, so float32 stands for itself and for TF32.
"""

import itertools
import os

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")

import reference  # noqa: E402
from pairs import in_pairs  # noqa: E402

from imix_aug import VirtualLabels, _backend  # noqa: E402
from imix_aug._cross_entropy import blocked, both, both_at_once, operator, triton_blocks, triton_sweep  # noqa: E402
from imix_aug._cross_entropy import triton as kernels  # noqa: E402
from imix_aug._cross_entropy.columns import NOTHING, LeftOut, Positives  # noqa: E402
from imix_aug._cross_entropy.triton_tiles import BlockTile, Tile  # noqa: E402
from imix_aug._mixing import triton as mix_triton  # noqa: E402

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="run by test_triton.py")

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch):
    """Let the interpreter multiply bfloat16: as it is, it multiplies the bit patterns."""
    from triton.runtime import interpreter

    original = interpreter.InterpreterBuilder.create_dot

    def create_dot(self, a, b, *rest):
        if a.dtype == triton.language.bfloat16:
            a, b = (self.cast_impl(operand, triton.language.float32) for operand in (a, b))
        return original(self, a, b, *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(previous)


@pytest.fixture
def small_tiles(monkeypatch):
    """Sweep in many steps, and in blocks of a few rows."""
    for choice in ("tiles_for_keys", "tiles_for_queries"):
        monkeypatch.setattr(triton_sweep, choice, lambda *card: [Tile(16, 32, 4, 1)])
    monkeypatch.setattr(triton_blocks, "tiles_for_blocks", lambda card: [BlockTile(16, 32, 32, 4, 1)])
    monkeypatch.setattr(triton_blocks, "_BLOCK_BYTES", 4096)


def rows(n, d, dtype=torch.float32, scale=1.0):
    return (scale * torch.randn(n, d)).to(dtype)


def dense(query, key, negatives, left_out, weight):
    """The dense formula in float64: the values, and the gradients of their sum and of their weighted sum."""
    query, key = (x.double().requires_grad_() for x in (query, key))
    negatives = None if negatives is None else negatives.double()
    lse = reference.row_logsumexp(query, key, negatives, left_out)
    gradients = torch.autograd.grad(lse.sum(), (query, key), retain_graph=True)
    return lse.detach(), *gradients, torch.autograd.grad((lse * weight).sum(), key)[0]


def both_sweeps(query, key, negatives=None, left_out=NOTHING):
    """The log-sum-exp, and the gradients of its sum."""
    lse, mean = kernels.sweep_keys(query, key, negatives, left_out, True)
    return lse, mean, kernels.sweep_queries(query, key, left_out, lse, torch.ones(len(query)))


def relative_error(result, wanted):
    return ((result.double() - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()


def agree(query, key, negatives=None, left_out=NOTHING, tolerance=None):
    """Compare both sweeps with the dense formula, by the norm of the difference."""
    weight = torch.randn(len(query))
    tolerance = tolerance or TOLERANCE[query.dtype]
    lse, mean, key_grad = both_sweeps(query, key, negatives, left_out)
    results = [lse, mean, key_grad, kernels.sweep_queries(query, key, left_out, lse, weight)]
    wanted = [*dense(query, key, negatives, left_out, weight)]
    names = ["lse", "query", "key", "weighted key"]
    logits = [query.double() @ keys.double().T for keys in (key, negatives) if keys is not None]
    if torch.cat(logits, 1).abs().max() <= blocked.SAFE_LOGIT:
        results += kernels.sweep_keys(query, key, negatives, left_out, True, bounded=True)
        wanted, names = wanted + wanted[:2], [*names, "bounded lse", "bounded query"]
    for name, result, want in zip(names, results, wanted, strict=True):
        assert result.dtype == torch.float32
        assert result.shape == want.shape, name
        error = (result.double() - want).norm() / want.norm().clamp_min(1e-6)
        assert error <= tolerance, f"{name}: relative error {error:.1e}"


def some_columns(n, m, count):
    return LeftOut(torch.randint(m, (n, count)))


@pytest.mark.parametrize(
    ("n", "m", "k", "d", "left_out"),
    [
        (1, 1, None, 1, 0),
        (2, 17, 0, 3, 1),
        (17, 2, 1, 16, 0),
        (65, 130, 33, 64, 2),
        (130, 65, None, 100, 3),
        (17, 65, 130, 129, 6),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sweep(n, m, k, d, left_out, dtype):
    negatives = None if k is None else rows(k, d, dtype)
    without = some_columns(n, max(1, m - 1), left_out) if left_out else NOTHING
    agree(rows(n, d, dtype, 3 / d**0.5), rows(m, d, dtype), negatives, without)


@in_pairs(
    d=[20, 300], dtype=[torch.float32, torch.bfloat16], negatives=["none", "without ids", "with ids"], columns=[0, 2]
)
def test_ids(d, dtype, negatives, columns, small_tiles):
    n, m, k = 37, 70, 45
    row_ids, key_ids, negative_ids = (torch.randint(-5, 5, (count,)) * 2**40 for count in (n, m, k))
    left_out = LeftOut(
        torch.randint(m, (n, columns)) if columns else None,
        *(row_ids, key_ids, negative_ids if negatives == "with ids" else None),
    )
    more = None if negatives == "none" else rows(k, d, dtype)
    agree(rows(n, d, dtype, 3 / d**0.5), rows(m, d, dtype), more, left_out)


def test_columns_of_a_larger_matrix(small_tiles):
    """On several ranks a row's own columns may begin far into the keys, and all stand in one step of them."""
    query, key = rows(33, 20, scale=0.3), rows(200, 20)
    own = torch.arange(33) + 100
    agree(query, key, rows(50, 20), LeftOut(torch.stack([own, own.flip(0)], 1)))


@pytest.mark.parametrize("seed", range(6))
def test_random_sizes_in_many_steps(seed, small_tiles, monkeypatch):
    torch.manual_seed(seed)
    n, m, k = (int(size) for size in torch.randint(1, 140, (3,)))
    d = int(torch.randint(1, 50, ()))
    dtype = (torch.float32, torch.float16)[seed % 2]
    # The more processors there are, the more programs share one sweep, and merge their results.
    monkeypatch.setattr(triton_sweep, "multiprocessors", lambda device: 1 + 13 * seed)
    agree(rows(n, d, dtype, 2 / d**0.5), rows(m, d, dtype), rows(k, d, dtype), some_columns(n, m, 2))


def test_splits_fill_the_last_wave():
    assert triton_sweep._splits(128, 128, 132) == 1
    assert triton_sweep._splits(32, 512, 132) == 4
    assert triton_sweep._splits(64, 64, 132) == 2
    assert triton_sweep._splits(1, 1, 132) == 1
    for tiles, steps in itertools.product((1, 7, 33, 79, 157, 1000), (1, 2, 30, 999)):
        splits = triton_sweep._splits(tiles, steps, 132)
        assert 1 <= splits <= steps
        assert splits == 1 or tiles * splits <= 4 * 132


@pytest.mark.parametrize("d", [257, 520])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_long_rows_go_in_blocks(d, dtype, small_tiles):
    agree(rows(19, d, dtype, 3 / d**0.5), rows(67, d, dtype), rows(35, d, dtype), some_columns(19, 60, 2))
    agree(rows(3, d, dtype, 3 / d**0.5), rows(40, d, dtype))


def test_full_float32_goes_in_blocks(small_tiles, monkeypatch):
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(triton_sweep, "sweep_keys", None)
    monkeypatch.setattr(triton_sweep, "sweep_queries", None)
    agree(rows(19, 24), rows(67, 24), rows(35, 24), some_columns(19, 60, 2))


def test_float64_stays_exact():
    query, key, weight = torch.randn(5, 8).double(), torch.randn(7, 8).double(), torch.randn(5).double()
    lse, mean = kernels.sweep_keys(query, key, None, NOTHING, True)
    results = lse, mean, kernels.sweep_queries(query, key, NOTHING, lse, weight)
    wanted = dense(query, key, None, NOTHING, weight)
    for result, want in zip(results, (*wanted[:2], wanted[-1]), strict=True):
        torch.testing.assert_close(result, want, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("d", [20, 300])
def test_strides(d, small_tiles):
    query = rows(d, 40).T
    key = rows(2 * 50, 3 * d)[::2, d : 2 * d]
    negatives = rows(1, d).expand(9, d)
    excluded = torch.randint(50, (3, 40)).T
    agree(query * 0.2, key, negatives, LeftOut(excluded))
    agree(query.T.contiguous().T, key[:, :].flip(0))


@pytest.mark.parametrize("d", [20, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_key_is_computed_if_wanted(d, dtype, small_tiles):
    query, key = rows(9, d, dtype, d**-0.5), rows(40, d, dtype)
    lse, mean = kernels.sweep_keys(query, key, None, NOTHING, True)
    alone, none = kernels.sweep_keys(query, key, None, NOTHING, False)
    torch.testing.assert_close(alone, lse)
    assert none is None
    assert mean.shape == query.shape


@pytest.mark.parametrize("d", [8, 300])
@pytest.mark.parametrize("scale", [1e-6, 60.0, 1e4])
def test_any_temperature(d, scale, small_tiles):
    # Rows of unit length divided by a temperature from a million down to 1e-4: a softmax from flat to one-hot.
    query, key = (torch.nn.functional.normalize(rows(n, d)) for n in (33, 70))
    agree(query * scale, key, tolerance=1e-5 if scale < 1e3 else 2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bounded_logits_up_to_the_bound(dtype, small_tiles):
    """Each row has one logit of 32 and one of minus 32, among keys and negatives."""
    key = torch.nn.functional.normalize(rows(33, 8))
    query = (key * blocked.SAFE_LOGIT).to(dtype)
    agree(query, key.to(dtype), -key.to(dtype))
    agree(query, -key.to(dtype), None, LeftOut(torch.arange(33)[:, None]))


def test_what_is_said_to_be_bounded_is_not_looked_at(small_tiles):
    query, key = rows(5, 8), rows(40, 8)
    lse, _ = kernels.sweep_keys(100 * query, key, None, NOTHING, False, bounded=True)
    assert (lse == torch.inf).any()


@in_pairs(d=[8, 300], dtype=[torch.float32, torch.bfloat16], where=["query", "key", "negatives"])
def test_nan_in_is_nan_out(d, dtype, where, small_tiles):
    inputs = {"query": rows(5, d, dtype), "key": rows(40, d, dtype), "negatives": rows(40, d, dtype)}
    inputs[where][3, -1] = torch.nan
    lse, query_grad, key_grad = both_sweeps(*inputs.values())
    touched = torch.arange(5) == 3 if where == "query" else torch.ones(5, dtype=torch.bool)
    assert torch.equal(lse.isnan(), touched)
    assert query_grad[touched].isnan().any(dim=1).all()
    assert key_grad.isnan().all()


@pytest.mark.parametrize("d", [8, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_that_leaves_out_every_column(d, dtype, small_tiles):
    query, key = rows(3, d, dtype), rows(2, d, dtype)
    left_out = LeftOut(torch.tensor([[0, 1], [0, 0], [1, 1]]))
    lse, mean = kernels.sweep_keys(query, key, None, left_out, True)
    assert lse[0] == -torch.inf
    assert (mean[0] == 0).all()
    # The other rows have one column each, so their softmax is one.
    torch.testing.assert_close(mean[1:], key.float().flip(0))
    level = torch.where(lse.isinf(), 1.0, lse)  # that of its positives
    key_grad = kernels.sweep_queries(query, key, left_out, level, torch.ones(3))
    torch.testing.assert_close(key_grad, query[1:].float().flip(0))
    assert (kernels.sweep_queries(query, key, left_out, level, torch.zeros(3)) == 0).all()


@pytest.mark.parametrize("d", [8, 300])
@pytest.mark.parametrize(("negatives", "n"), [(None, 3), (0, 3), (20, 3)])
def test_no_keys(d, negatives, n, small_tiles):
    query, key = rows(n, d), rows(0, d)
    more = None if negatives is None else rows(negatives, d)
    lse, mean = kernels.sweep_keys(query, key, more, NOTHING, True)
    if negatives:
        wanted = reference.row_logsumexp(query.double(), more.double())
        assert relative_error(lse, wanted) < 1e-5
    else:
        assert (lse == -torch.inf).all()
        assert (mean == 0).all()
    assert kernels.sweep_queries(query, key, NOTHING, torch.ones(n), torch.ones(n)).shape == (0, d)


def test_infinite_logits(small_tiles):
    query, key = rows(2, 4).abs(), rows(40, 4)
    key[20] = torch.inf
    lse, _ = kernels.sweep_keys(query, key, None, NOTHING, False)
    assert (lse == torch.inf).all()


@in_pairs(d=[8, 300], dtype=[torch.float16, torch.bfloat16, torch.float32], below=[0.0, 7.0, 14.0])
def test_small_softmax_values_keep_their_digits(d, dtype, below, small_tiles):
    """A sample well told apart leaves other columns a millionth; weights may be as small as one over the batch."""
    query, key = rows(33, d, dtype, 0.3 / d**0.5), rows(65, d, dtype)
    left_out, weight = some_columns(33, 65, 1), torch.rand(33) / 65536
    level = reference.row_logsumexp(query.double(), key.double(), None, left_out) + below
    logits = reference.logits_of(query.double(), key.double(), None, left_out)
    wanted = (weight[:, None] * (logits - level[:, None]).exp()).T @ query.double()
    result = kernels.sweep_queries(query, key, left_out, level.float(), weight)
    assert relative_error(result, wanted) < TOLERANCE[dtype]


@pytest.mark.parametrize("scale", [1e-9, 0.0])
def test_tiny_weights_survive_float16(scale, small_tiles):
    query, key, weight = rows(33, 8, torch.float16), rows(65, 8, torch.float16), torch.rand(33) * scale
    lse, _ = kernels.sweep_keys(query, key, None, NOTHING, False)
    wanted = dense(query, key, None, NOTHING, weight)[-1]
    assert relative_error(kernels.sweep_queries(query, key, NOTHING, lse, weight), wanted) < 2e-3


@in_pairs(d=[64, 300], dtype=[torch.bfloat16, torch.float16], temperature=[0.2, 0.05], mixed=[False, True])
def test_the_gradient_of_samples_told_apart(d, dtype, temperature, mixed, small_tiles, monkeypatch):
    """The whole primitive over the kernels; at 0.05 a row's own key has all but a millionth of the softmax."""
    for module in (_backend, operator):
        monkeypatch.setattr(module, "runs_triton", lambda device: True)
    monkeypatch.setattr(operator.blocked, "product_dtype", lambda kind: kind)
    n = 40
    key = torch.nn.functional.normalize(rows(n, d))
    near = torch.nn.functional.normalize(key + 0.3 * torch.nn.functional.normalize(rows(n, d)))
    query = (near / temperature).to(dtype)
    key, positives = key.to(dtype), Positives.own(n, query.device, torch.float32)
    if mixed:
        positives = Positives.of(VirtualLabels(torch.rand(n), torch.randperm(n)), torch.float32)
    weight = torch.rand(n)
    for summed in (True, False):
        leaves = [each.float().requires_grad_() for each in (query, key)]
        got = operator.soft_cross_entropy(*leaves, None, positives, dtype=dtype, summed=summed)
        exact = [each.double().requires_grad_() for each in (query, key)]
        wanted = reference.soft_cross_entropy(*exact, None, positives)
        scale = torch.ones(()) if summed else weight
        assert relative_error(got.detach(), wanted.sum() if summed else wanted) < 1e-4
        gradients = torch.autograd.grad((got * scale).sum(), leaves)
        for gradient, want in zip(gradients, torch.autograd.grad((wanted * scale).sum(), exact), strict=True):
            assert relative_error(gradient, want) < TOLERANCE[dtype]


@in_pairs(d=[20, 64, 300], dtype=[torch.float32, torch.bfloat16, torch.float16], ids=[False, True])
def test_keys_with_levels_of_their_own(d, dtype, ids, small_tiles):
    """Each logit counts by its row's softmax and by its column's."""
    n = 40
    query, key, weight = rows(n, d, dtype, 3 / d**0.5), rows(n, d, dtype), torch.randn(n) / 1000
    query[:, 0], key[7] = 3, 0
    key[7, 0] = -100  # What is beyond the last row has a logit of zero, far above the level of this column.
    numbers = torch.randint(20, (n,)) if ids else None
    left_out = LeftOut(torch.randint(n, (n, 2)), numbers, numbers)
    logits = reference.logits_of(query.double(), key.double(), None, left_out)
    level, key_level = (logits.logsumexp(dim) + torch.randint(9, (n,)) for dim in (1, 0))
    softmax = weight[:, None] * (logits - level[:, None]).exp() + weight * (logits - key_level).exp()
    wanted = softmax.T @ query.double()
    result = kernels.sweep_queries(query, key, left_out, level.float(), weight, key_level.float())
    assert relative_error(result, wanted) < TOLERANCE[dtype]


@in_pairs(
    d=[64, 300], dtype=[torch.float32, torch.bfloat16, torch.float16], temperature=[0.2, 0.05], mixed=[False, True]
)
def test_both_directions(d, dtype, temperature, mixed, small_tiles, monkeypatch):
    monkeypatch.setattr(_backend, "runs_triton", lambda device: True)
    monkeypatch.setattr(both, "product_dtype", lambda kind: kind)
    for name in ("forward", "gradients"):  # which tensors on the CPU would go to
        monkeypatch.setattr(both_at_once, name, lambda *args: None)
    n = 40
    key = torch.nn.functional.normalize(rows(n, d))
    near = torch.nn.functional.normalize(key + 0.3 * torch.nn.functional.normalize(rows(n, d)))
    query, key = (near / temperature).to(dtype), key.to(dtype)
    one = Positives.own(n, query.device, torch.float32)
    forth, back = one, one
    if mixed:
        labels = VirtualLabels(torch.rand(n), torch.randperm(n))
        forth, back = Positives.of(labels, torch.float32), Positives.of_keys(labels, torch.float32)
    positives = Positives(*(torch.cat(each) for each in zip(forth, back, strict=True)))
    weight, ids = torch.rand(n), torch.randint(30, (n,))
    for how in ({"summed": True}, {"summed": True, "weight": weight, "ids": ids}, {"ids": ids}):
        leaves = [each.float().requires_grad_() for each in (query, key)]
        got = both.cross_entropy_of_both(*leaves, positives, dtype=dtype, **how)
        exact = [each.double().requires_grad_() for each in (query, key)]
        without = LeftOut(None, how.get("ids"), how.get("ids"))
        wanted = reference.soft_cross_entropy(*exact, None, forth, without)
        wanted = (wanted + reference.soft_cross_entropy(*exact[::-1], None, back, without)) / 2
        scale = torch.ones(()) if how == {"summed": True} else weight
        wanted = (wanted * scale).sum()
        got = got if "summed" in how else (got * scale).sum()
        assert relative_error(got.detach(), wanted.detach()) < 1e-4
        gradients = torch.autograd.grad(got, leaves)
        for gradient, want in zip(gradients, torch.autograd.grad(wanted, exact), strict=True):
            assert relative_error(gradient, want) < TOLERANCE[dtype]


@pytest.mark.parametrize("d", [24, 300])
def test_autocast_stays_out_of_the_operators(d, small_tiles, monkeypatch):
    for module in (_backend, operator):
        monkeypatch.setattr(module, "runs_triton", lambda device: True)
    leaves = [rows(n, d, scale=0.5).requires_grad_() for n in (19, 40)]
    positives = Positives.own(19, leaves[0].device, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        losses = operator.soft_cross_entropy(*leaves, None, positives, dtype=torch.float32)
        gradients = torch.autograd.grad(losses.sum(), leaves)
    exact = [each.detach().double().requires_grad_() for each in leaves]
    wanted = reference.soft_cross_entropy(*exact, None, positives)
    assert relative_error(losses.detach(), wanted) < 1e-5
    for gradient, want in zip(gradients, torch.autograd.grad(wanted.sum(), exact), strict=True):
        assert relative_error(gradient, want) < 1e-5


def test_the_next_tile_is_taken_where_shared_memory_does_not_suffice():
    from imix_aug._triton_launch import first_that_fits

    tried = []

    def launch(tile):
        tried.append(tile)
        if tile > 8:
            raise triton.OutOfResources(tile, 8, "shared memory")
        return -tile

    assert [first_that_fits(launch, [32, 16, 8, 4], "a card") for _ in range(2)] == [-8, -8]
    assert tried == [32, 16, 8, 8]
    with pytest.raises(triton.OutOfResources):
        first_that_fits(launch, [32, 16], "another card")


MIXED = [
    ((5, 3, 8, 8), torch.channels_last, torch.float32),
    ((5, 3, 7, 9), torch.contiguous_format, torch.float64),
    ((3, 4, 5, 260), torch.channels_last, torch.float16),
    ((6, 2, 50), torch.contiguous_format, torch.float16),
    ((3, 2, 3000), torch.contiguous_format, torch.bfloat16),
    ((4, 2, 9), torch.contiguous_format, torch.complex64),
    ((3, 2, 5), torch.contiguous_format, torch.complex128),
    ((9, 54), torch.contiguous_format, torch.float32),
    ((4,), torch.contiguous_format, torch.float32),
]


def batch(shape, memory_format, dtype):
    x = torch.randn(shape, dtype=torch.promote_types(dtype, torch.float64)).to(dtype)
    return x.contiguous(memory_format=memory_format)


def close(result, wanted, dtype):
    # The interpreter truncates to bfloat16 where the hardware rounds, so that format may be off by a unit.
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-6, torch.complex64: 1e-6}
    bound = tolerance.get(dtype, 1e-14)
    torch.testing.assert_close(result.to(wanted.dtype), wanted, atol=bound, rtol=bound)


@pytest.mark.parametrize(("shape", "memory_format", "dtype"), MIXED)
@pytest.mark.parametrize("per_sample", [True, False])
def test_blend(shape, memory_format, dtype, per_sample):
    x, n = batch(shape, memory_format, dtype), shape[0]
    partner, own, other = torch.randperm(n), *torch.rand(2, n if per_sample else 1)
    result = torch.full_like(x, torch.nan)
    mix_triton.blend(x, partner, own, other, result)
    wide = x.to(torch.promote_types(dtype, torch.float64))
    column = (-1, *(1 for _ in shape[1:]))
    close(result, own.double().view(column) * wide + other.double().view(column) * wide[partner], dtype)


@pytest.mark.parametrize(("shape", "memory_format", "dtype"), [case for case in MIXED if len(case[0]) > 2])
@pytest.mark.parametrize("per_sample", [True, False])
def test_paste(shape, memory_format, dtype, per_sample):
    x, n, partner = batch(shape, memory_format, dtype), shape[0], torch.randperm(shape[0])
    # The last case is the default of cutmix; the others are what dims= can ask for.
    every = [dims for count in (1, 2) for dims in itertools.combinations(range(1, len(shape)), count)]
    for dims in [*every, tuple(range(2, len(shape)))[:2]]:
        taken, given = (random_boxes(n if per_sample else 1, [shape[dim] for dim in dims]) for _ in range(2))
        check_paste(x, partner, taken, given, dims, memory_format)


def check_paste(x, partner, taken, given, dims, memory_format):
    dtype = x.dtype
    for kind in (dtype, torch.bool, torch.uint8, torch.int64):
        value = x.abs().mul(9).to(kind) if kind == torch.uint8 and not dtype.is_complex else x.real.to(kind)
        value = x if kind == dtype else value.contiguous(memory_format=memory_format)
        result = torch.full_like(value, 7)
        mix_triton.paste(value, partner, taken, None, result, dims)
        assert torch.equal(result, cut_and_paste(value, partner, taken, taken, dims))
    result = torch.full_like(x, 7)
    mix_triton.paste(x, partner, taken, given, result, dims)
    close(result, cut_and_paste(x, partner, taken, given, dims), dtype)


def random_boxes(count, sizes):
    starts = torch.stack([torch.randint(size, (count,)) for size in sizes], dim=1)
    lengths = torch.stack([torch.randint(size + 1, (count,)) for size in sizes], dim=1)
    return torch.stack([starts, torch.minimum(starts + lengths, torch.tensor(sizes))], dim=2)


def cut_and_paste(x, partner, taken, given, dims):
    """Cut one box out of each row and add what its partner has in another, slice by slice."""
    result = x.clone()
    for i in range(len(x)):
        box, other = (
            tuple(
                slice(*bounds[i % len(bounds)][dims.index(dim)].tolist()) if dim in dims else slice(None)
                for dim in range(1, x.dim())
            )
            for bounds in (taken, given)
        )
        result[i][box] = 0
        result[i][other] += x[partner[i]][other]
    return result


def test_rows_without_elements_need_no_kernel():
    x, partner, one = torch.empty(3, 2, 0), torch.arange(3), torch.ones(3)
    mix_triton.blend(x, partner, one, one, torch.empty_like(x))
    mix_triton.paste(x, partner, torch.zeros(1, 1, 2, dtype=torch.int64), None, torch.empty_like(x), (2,))
