import io
from collections import namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_sequence
from torch.utils import _pytree as pytree

from imix_aug import IMix, InputMix, VirtualLabels
from imix_aug._mixing import draw as _draw

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-6, torch.float64: 1e-12}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def blended(x, labels):
    """The definition, row by row."""
    rows = [
        share * x[i].double() + (1 - share) * x[j].double()
        for i, (share, j) in enumerate(zip(labels.lam.double().tolist(), labels.partner.tolist(), strict=True))
    ]
    return torch.stack(rows)


@given(
    n=st.integers(1, 6),
    shape=st.lists(st.integers(1, 4), max_size=3),
    alpha=st.sampled_from([0.3, 1.0, 2, (0.5, 2.0)]),
    per_sample=st.sampled_from([None, True, False]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_mixup_is_the_definition(n, shape, alpha, per_sample, dtype, seed):
    x = torch.randn(n, *shape, generator=generator(seed)).to(dtype)
    mixed, labels = IMix(alpha, per_sample=per_sample, generator=generator(seed))(x)
    assert mixed.dtype == dtype
    assert isinstance(labels, VirtualLabels)
    assert labels.lam.shape == labels.partner.shape == (n,)
    assert labels.lam.dtype == torch.float32
    assert labels.partner.dtype == torch.int64
    assert ((labels.lam >= 0.5) & (labels.lam <= 1)).all()
    assert sorted(labels.partner.tolist()) == list(range(n))
    assert per_sample is not False or len(set(labels.lam.tolist())) == 1
    torch.testing.assert_close(mixed.double(), blended(x, labels), atol=4 * TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@given(
    n=st.integers(1, 6),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=2),
    alpha=st.sampled_from([0.2, 1.0, (3.0, 1.0)]),
    per_sample=st.sampled_from([None, True, False]),
    seed=st.integers(0, 999),
)
def test_cutmix_pastes_one_box_and_lam_is_the_share_that_is_left(n, sizes, alpha, per_sample, seed):
    # Every element names its row, so the mixed batch tells where each element came from.
    x = torch.arange(n).view(n, 1, *(1 for _ in sizes)).expand(n, 2, *sizes).double()
    mixed, labels = IMix(alpha, "cutmix", per_sample=per_sample, generator=generator(seed))(x)
    for i in range(n):
        partner = int(labels.partner[i])
        if partner == i:
            continue
        taken = mixed[i] == partner
        assert torch.equal(taken, ~(mixed[i] == i))
        assert torch.equal(taken[0], taken[1])
        share_left = 1 - taken[0].double().mean().item()
        assert labels.lam[i].item() == pytest.approx(share_left, abs=1e-6)
        inside = taken[0].nonzero()
        if len(inside):
            extents = inside.max(0).values - inside.min(0).values + 1
            assert extents.prod() == len(inside), "the taken elements must form a box"
    assert per_sample is True or len(set(labels.lam.tolist())) == 1


def test_cutmix_per_sample_draws_different_boxes():
    _, labels = IMix(1.0, "cutmix", per_sample=True, generator=generator())(torch.randn(64, 3, 32, 32))
    assert len(set(labels.lam.tolist())) > 32


def test_cutmix_leaves_alone_what_is_skipped_whatever_its_shape():
    images, ages = torch.rand(6, 3, 8, 8), torch.arange(6.0)
    batch, labels = IMix(mode="cutmix", skip="age", generator=generator())({"x": images, "age": ages})
    alone, same = IMix(mode="cutmix", generator=generator())(images)
    assert batch["age"] is ages
    assert torch.equal(batch["x"], alone)
    assert not torch.equal(alone, images)
    assert torch.equal(labels.lam, same.lam)


def test_cutmix_boxes_reach_every_pixel():
    bounds, _ = _draw.boxes(torch.rand(20000, generator=generator()) / 2 + 0.5, (5, 7), generator())
    position = torch.cartesian_prod(torch.arange(5), torch.arange(7))
    inside = (position[:, None] >= bounds[..., 0]) & (position[:, None] < bounds[..., 1])
    share = inside.all(-1).double().mean(dim=1)
    assert share.min() > 0.05
    assert torch.allclose(share.view(5, 7), share.view(5, 7).flip(1), atol=0.05)


def folded_cdf(a, b):
    """The distribution function of max(X, 1 - X) for X ~ Beta(a, b)."""
    beta = stats.beta(a, b)
    return lambda x: beta.cdf(x) - beta.cdf(1 - x)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 8.0, 100.0, (0.7, 3.0), (5.0, 1.0)])
def test_lambda_is_a_folded_beta(alpha):
    _, labels = IMix(alpha, generator=generator())(torch.zeros(50_000, 1))
    a, b = alpha if isinstance(alpha, tuple) else (alpha, alpha)
    assert stats.kstest(labels.lam.double().numpy(), folded_cdf(a, b)).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [1e-3, 0.05, 0.2])
def test_small_alphas_neither_underflow_nor_leave_the_distribution(alpha):
    _, labels = IMix(alpha, generator=generator())(torch.zeros(50_000, 1))
    # Most lambdas round to 1 in float32, so the distribution function is compared below that only.
    cdf = folded_cdf(alpha, alpha)
    for x in (0.6, 0.8, 0.95, 0.999):
        assert (labels.lam <= x).double().mean().item() == pytest.approx(cdf(x), abs=0.006)


@pytest.mark.parametrize("shape", [0.1, 1.0, 2.5, 300.0])
def test_log_gamma(shape):
    draws = _draw.log_gamma(shape, 50_000, torch.device("cpu"), generator()).double().exp()
    assert stats.kstest(draws.numpy(), stats.gamma(shape).cdf).pvalue > 1e-3


def test_partners_are_uniform_permutations():
    counts = {}
    for seed in range(1200):
        _, labels = IMix(generator=generator(seed))(torch.zeros(3, 1))
        order = tuple(labels.partner.tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize("mode", ["mixup", "cutmix"])
@pytest.mark.parametrize("per_sample", [True, False])
def test_gradients_are_those_of_the_definition(mode, per_sample):
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64, requires_grad=True)

    def mix(x):
        return IMix(1.0, mode, per_sample=per_sample, generator=generator(3))(x)[0]

    assert torch.autograd.gradcheck(mix, x)
    assert torch.autograd.gradgradcheck(mix, x)
    assert mix(x.detach()).requires_grad is False


@pytest.mark.parametrize("mix", [IMix(), IMix(mode="cutmix"), InputMix(2)])
def test_memory_format_is_kept(mix):
    x = torch.randn(4, 3, 8, 8)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        mixed = mix(x.to(memory_format=memory_format))
        mixed = mixed[0] if isinstance(mixed, tuple) else mixed
        assert mixed.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("mix", [IMix(generator=None), IMix(mode="cutmix"), InputMix(2)])
def test_strided_inputs_mix_like_contiguous_ones(mix):
    x = torch.randn(6, 12, 10, 5).transpose(1, 3)[:, ::2, :, 1::3]
    assert not x.is_contiguous()
    results = []
    for batch in (x, x.contiguous()):
        torch.manual_seed(1)
        mixed = mix(batch)
        results.append(mixed[0] if isinstance(mixed, tuple) else mixed)
    torch.testing.assert_close(*results, atol=0, rtol=0)


Views = namedtuple("Views", "image mask")


@pytest.mark.parametrize("mode", ["mixup", "cutmix"])
def test_all_leaves_share_partners_and_lambdas(mode):
    image, mask = torch.randn(6, 3, 8, 8), torch.rand(6, 1, 8, 8)
    alone = {}
    for name, leaf in (("image", image), ("mask", mask)):
        alone[name], labels = IMix(mode=mode, generator=generator(5))(leaf)
    for batch in ({"image": image, "mask": mask}, [image, mask], (image, mask), Views(image, mask)):
        mixed, together = IMix(mode=mode, generator=generator(5))(batch)
        assert type(mixed) is type(batch)
        values = list(mixed.values()) if isinstance(mixed, dict) else list(mixed)
        assert torch.equal(values[0], alone["image"])
        assert torch.equal(values[1], alone["mask"])
        assert torch.equal(together.lam, labels.lam)
        assert torch.equal(together.partner, labels.partner)


def test_same_generator_state_same_draw_and_the_global_one_is_left_alone():
    x = torch.randn(8, 3, 4, 4)
    for make in (lambda g: IMix(0.7, generator=g), lambda g: IMix(mode="cutmix", generator=g)):
        before = torch.get_rng_state()
        g = generator(9)
        state = g.get_state()
        first, second = make(g)(x), make(g)(x)
        g.set_state(state)
        again = make(g)(x)
        assert torch.equal(first[0], again[0])
        assert not torch.equal(first[1].lam, second[1].lam)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("imix", [IMix(alpha=0), IMix().eval(), IMix(0.0, "cutmix"), IMix(mode="cutmix").eval()])
def test_unmixed_is_the_input_itself(imix):
    x = torch.randn(4, 3, 5, 5)
    mixed, labels = imix(x)
    assert mixed is x
    assert torch.equal(labels.dense(), torch.eye(4))


def test_imix_is_a_module_without_state():
    model = nn.Sequential(nn.Linear(2, 2), IMix())
    assert len(list(IMix().parameters())) == 0
    assert model.state_dict().keys() == nn.Sequential(nn.Linear(2, 2)).state_dict().keys()
    assert repr(IMix((1, 2), "cutmix")) == "IMix(alpha=(1.0, 2.0), mode='cutmix', per_sample=False)"
    assert repr(IMix()) == "IMix(alpha=1.0, mode='mixup', per_sample=True)"
    assert repr(InputMix()) == "InputMix(num_aux=1, alpha=1.0, min_weight=0.5)"


def test_cutmix_takes_any_dtype():
    x = torch.randint(0, 255, (4, 3, 8, 8), dtype=torch.uint8)
    mixed, _ = IMix(mode="cutmix")(x)
    assert mixed.dtype == torch.uint8


@given(
    n=st.integers(1, 7),
    num_aux=st.integers(1, 4),
    min_weight=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
    seed=st.integers(0, 99),
)
def test_inputmix_keeps_the_input_and_mixes_distinct_others(n, num_aux, min_weight, seed):
    # One-hot rows: the mixed rows are the weights themselves.
    mixed = InputMix(num_aux, min_weight=min_weight, generator=generator(seed))(torch.eye(n, dtype=torch.float64))
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(n, dtype=torch.float64), atol=1e-6, rtol=0)
    assert (mixed >= 0).all()
    assert (mixed.diagonal() >= min_weight - 1e-6).all()
    if min_weight < 1:
        assert ((mixed > 0).sum(dim=1) == min(n, num_aux + 1)).all()


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_inputmix_weights_are_dirichlet(alpha):
    n = 4000
    mixed = InputMix(2, alpha, min_weight=0.5, generator=generator())(torch.eye(n, dtype=torch.float64))
    own = mixed.diagonal().numpy() * 2 - 1
    assert stats.kstest(own, stats.beta(alpha, 2 * alpha).cdf).pvalue > 1e-3


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_inputmix_adds_in_single_precision(dtype, autocast):
    x = torch.randn(6, 50, dtype=torch.float64).to(dtype)
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        mixed = InputMix(3, generator=generator(4))(x)
    weights = InputMix(3, generator=generator(4))(torch.eye(6, dtype=torch.float64))
    assert mixed.dtype == dtype
    # One rounding, that of the result: half a unit in the last place.
    half_unit = max(torch.finfo(dtype).eps / 2, 1e-6)
    torch.testing.assert_close(mixed.double(), weights @ x.double(), atol=half_unit / 4, rtol=1.01 * half_unit)


def test_inputmix_unmixed_in_eval_and_over_dicts():
    batch = {"a": torch.randn(4, 2), "b": torch.randn(4, 3)}
    assert InputMix().eval()(batch) is batch
    mixed = InputMix(generator=generator(2))(batch)
    alone = InputMix(generator=generator(2))(batch["b"])
    assert torch.equal(mixed["b"], alone)


REFUSED_SETTINGS = [
    (lambda: IMix(-1), ValueError, "alpha"),
    (lambda: IMix(float("nan")), ValueError, "alpha"),
    (lambda: IMix(float("inf")), ValueError, "alpha"),
    (lambda: IMix("1"), TypeError, "alpha"),
    (lambda: IMix(True), TypeError, "alpha"),
    (lambda: IMix((1, 2, 3)), ValueError, "alpha"),
    (lambda: IMix((0, 1)), ValueError, "alpha"),
    (lambda: IMix(mode="mix"), ValueError, "mode"),
    (lambda: IMix(mode=None), TypeError, "mode"),
    (lambda: IMix(per_sample=1), TypeError, "per_sample"),
    (lambda: IMix(generator=0), TypeError, "generator"),
    (lambda: IMix(dims=(1,)), ValueError, "dims"),
    (lambda: IMix(mode="cutmix", dims=1), TypeError, "dims"),
    (lambda: IMix(mode="cutmix", dims=(1.0,)), TypeError, "dims"),
    (lambda: IMix(mode="cutmix", dims=()), ValueError, "dims"),
    (lambda: IMix(mode="cutmix", dims=(0, 1)), ValueError, "dims"),
    (lambda: IMix(mode="cutmix", dims=(2, 2)), ValueError, "dims"),
    (lambda: IMix(only=1.5), TypeError, "only"),
    (lambda: IMix(skip=()), ValueError, "skip"),
    (lambda: IMix(only="a", skip="b"), ValueError, "skip"),
    (lambda: InputMix(skip=torch.zeros(1)), TypeError, "skip"),
    (lambda: InputMix(0), ValueError, "num_aux"),
    (lambda: InputMix(1.0), TypeError, "num_aux"),
    (lambda: InputMix(alpha=0), ValueError, "alpha"),
    (lambda: InputMix(min_weight=1.5), ValueError, "min_weight"),
    (lambda: InputMix(min_weight="half"), TypeError, "min_weight"),
]


@pytest.mark.parametrize(("call", "error", "argument"), REFUSED_SETTINGS)
def test_refused_settings(call, error, argument):
    with pytest.raises(error, match=f"^{argument}"):
        call()


REFUSED_INPUTS = [
    (IMix(), torch.tensor(1.0), ValueError, "0-d"),
    (IMix(), torch.zeros(0, 3), ValueError, "at least one row"),
    (IMix(), torch.zeros(3, 2, dtype=torch.int64), TypeError, "int64"),
    (IMix(), [[1.0, 2.0]], TypeError, "float; only= or skip=0 leaves it as it is$"),
    (IMix(), {}, ValueError, "empty dict"),
    (IMix(), None, TypeError, "got NoneType$"),
    (IMix(), "text", TypeError, "str"),
    (IMix(), (torch.zeros(3, 2), torch.zeros(4, 2)), ValueError, r"have as many rows as x\[0\], 3, got shape \(4, 2\)"),
    (IMix(), (torch.zeros(3, 2), torch.zeros(3, 2, device="meta")), ValueError, r"device of x\[0\], cpu, got meta$"),
    (IMix(mode="cutmix"), torch.zeros(3, 2), ValueError, r"\(3, 2\)"),
    (IMix(mode="cutmix"), torch.zeros(3, 2, 4, 5, 6), ValueError, r"\(3, 2, 4, 5, 6\)"),
    (
        IMix(mode="cutmix"),
        (torch.zeros(3, 1, 4), torch.zeros(3, 1, 5)),
        ValueError,
        r"size of x\[0\] .*\(4,\), got \(5,\)",
    ),
    (InputMix(), torch.zeros(3, 2, dtype=torch.uint8), TypeError, "uint8"),
    (IMix(mode="cutmix", dims=(2,)), torch.zeros(3, 2), ValueError, r"dims=\(2,\).*\(3, 2\)"),
    (IMix(mode="cutmix", dims=(-2,)), torch.zeros(3, 2), ValueError, r"dims=\(-2,\).*\(3, 2\)"),
    (IMix(mode="cutmix", dims=(1, -1)), torch.zeros(3, 2), ValueError, r"once each"),
    (IMix(mode="cutmix", dims=(1,)), torch.zeros(3, 0, 2), ValueError, r"empty where it is cut, got \(3, 0, 2\)"),
    (IMix(), {"x": torch.zeros(3, 2), "age": torch.zeros(3).long()}, TypeError, "int64; only= or skip='age'"),
    (IMix(), {"x": torch.zeros(3, 2), "name": "abc"}, TypeError, "got str; only= or skip='name'"),
    (IMix(), {"x": torch.zeros(3, 2), "y": torch.zeros(2, 2), "name": "abc"}, TypeError, "got str"),
    (IMix(skip="x"), {"x": torch.zeros(3, 2)}, ValueError, "at least one tensor to mix"),
    (IMix(), pack_sequence([torch.zeros(3), torch.zeros(2)]), TypeError, "PackedSequence"),
    (IMix(), (torch.zeros(2, 3), pack_sequence([torch.zeros(3)])), TypeError, "PackedSequence"),
    (IMix(), torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)]), TypeError, "nested"),
    (IMix(), torch.zeros(3, 2).to_sparse(), TypeError, "sparse_coo"),
    (IMix(mode="cutmix"), torch.zeros(3, 2, 2).to_sparse(), TypeError, "sparse_coo"),
    (IMix(), torch.ones(3, 2).to_sparse_csr(), TypeError, "sparse_csr"),
    (IMix(), torch.quantize_per_tensor(torch.ones(3, 2), 0.1, 0, torch.qint8), TypeError, "quantized"),
    (IMix(), torch.zeros(3, 2).to(torch.float8_e5m2), TypeError, "float8_e5m2"),
]


@pytest.mark.parametrize(("mix", "x", "error", "message"), REFUSED_INPUTS)
@pytest.mark.parametrize("training", [True, False])
def test_refused_inputs(mix, x, error, message, training):
    with pytest.raises(error, match=rf"^x(\[.*\])* must .*{message}"):
        mix.train(training)(x)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch asks DTensor before it makes a jagged tensor")
def test_a_jagged_tensor_is_refused():
    jagged = torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)], layout=torch.jagged)
    with pytest.raises(TypeError, match=r"^x\[1\] must .*nested"):
        IMix()((torch.zeros(3), jagged))


@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    count=st.integers(1, 3),
    negative=st.booleans(),
    per_sample=st.booleans(),
    seed=st.integers(0, 999),
)
def test_cutmix_cuts_the_dimensions_that_it_is_told(shape, count, negative, per_sample, seed):
    dims = torch.randperm(len(shape) - 1, generator=generator(seed))[:count].add(1).tolist()
    x = torch.arange(shape[0]).view(-1, *(1 for _ in shape[1:])).expand(shape).double()
    named = tuple(dim - len(shape) if negative else dim for dim in dims)
    imix = IMix(1.0, "cutmix", per_sample=per_sample, dims=named, generator=generator(seed))
    mixed, labels = imix(x)
    for i, partner in enumerate(labels.partner.tolist()):
        if partner == i:
            continue
        taken = mixed[i] == partner
        assert labels.lam[i].item() == pytest.approx(1 - taken.double().mean().item(), abs=1e-6)
        # A box in the named dimensions, whole in all others.
        wanted = torch.ones_like(taken)
        for dim in range(len(shape) - 1):
            along = taken.movedim(dim, 0).reshape(taken.shape[dim], -1).any(dim=1)
            if dim + 1 not in dims:
                assert along.all() or not along.any()
            places = along.nonzero().flatten()
            assert len(places) == 0 or len(places) == places.max() - places.min() + 1
            wanted &= along.view([-1 if axis == dim else 1 for axis in range(len(shape) - 1)])
        assert torch.equal(taken, wanted)


def test_series_with_time_first_are_cut_along_time():
    series = torch.randn(8, 50, 3)
    turned, labels = IMix(mode="cutmix", generator=generator(3))(series.transpose(1, 2))
    mixed, same = IMix(mode="cutmix", dims=(1,), generator=generator(3))(series)
    assert torch.equal(mixed, turned.transpose(1, 2))
    assert torch.equal(same.lam, labels.lam)
    assert repr(IMix(mode="cutmix", dims=(1,))).endswith("per_sample=False, dims=(1,))")


@pytest.mark.parametrize("mix", [IMix, InputMix])
def test_only_and_skip_refuse_keys_that_are_not_there(mix):
    for name in ("only", "skip"):
        with pytest.raises(ValueError, match=f"^{name} must name keys of x, got 'aeg', x has 'age', 'x'$"):
            mix(**{name: ("x", "aeg")})({"age": 1, "x": torch.zeros(3, 2)})


@pytest.mark.parametrize("mix", [IMix, InputMix])
def test_only_and_skip_leave_the_rest_as_it_is(mix):
    batch = {"image": torch.randn(4, 3), "more": {"age": torch.arange(4), "name": "abcd", "wave": torch.randn(4, 5)}}
    for settings, kept in (
        ({"skip": ("age", "name")}, {"age", "name"}),
        ({"skip": "more"}, {"age", "name", "wave"}),
        ({"only": ["image", "wave"]}, {"age", "name"}),
        ({"only": "wave"}, {"age", "name", "image"}),
    ):
        result = mix(generator=generator(1), **settings)(batch)
        mixed = result[0] if mix is IMix else result
        before, after = ({"image": each["image"], **each["more"]} for each in (batch, mixed))
        assert {name for name in before if after[name] is before[name]} == kept
        wanted = mix(generator=generator(1))([before[name] for name in before if name not in kept])
        wanted = wanted[0] if mix is IMix else wanted
        for ours, theirs in zip((after[name] for name in before if name not in kept), wanted, strict=True):
            assert torch.equal(ours, theirs)
    pair = torch.randn(4, 3), torch.arange(4)
    result = mix(skip=1)(pair)
    assert (result[0] if mix is IMix else result)[1] is pair[1]
    views = Views(torch.randn(4, 3), None)
    result = mix(only="image")(views)
    assert (result[0] if mix is IMix else result).mask is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_default_dtype_does_not_matter(dtype):
    x = torch.randn(2000, 3, 7, 9, dtype=torch.float32)[:, :, :7, :9]
    draws = []
    for default in (torch.float32, dtype):
        torch.set_default_dtype(default)
        try:
            draws.append(
                [
                    *IMix(0.2, generator=generator())(x)[1],
                    *IMix(mode="cutmix", per_sample=True, generator=generator())(x)[1],
                    InputMix(generator=generator())(x),
                    InputMix(3, generator=generator())(x),
                    *VirtualLabels.identity(5),
                ]
            )
        finally:
            torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(*draws, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    lam = draws[1][0]
    assert lam.dtype == torch.float32
    assert len(lam[lam < 0.99].unique()) > 0.99 * (lam < 0.99).sum()


def test_the_default_device_does_not_matter():
    x = torch.randn(5, 3, 6)
    with torch.device("meta"):
        for mix in (IMix(0.5), IMix(mode="cutmix"), InputMix(2), InputMix()):
            result = mix(x)
            mixed = result[0] if isinstance(result, tuple) else result
            assert mixed.device.type == "cpu"
        mixed, labels = IMix()(x)
        assert labels.mix(x).device.type == labels.dense().device.type == "cpu"


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("min_weight", [0.5, 0.0, 0.8])
def test_inputmix_with_one_other_row_folds_beta_as_the_authors_do(alpha, min_weight):
    n = 4000
    mixed = InputMix(1, alpha, min_weight=min_weight, generator=generator())(torch.eye(n, dtype=torch.float64))
    own = (mixed.diagonal().numpy() - min_weight) / (1 - min_weight) / 2 + 0.5
    assert stats.kstest(own, folded_cdf(alpha, alpha)).pvalue > 1e-3
    if (alpha, min_weight) == (0.5, 0.5):  # E max(b, 1 - b) for the arcsine law: 1/2 + 1/pi.
        assert mixed.diagonal().mean().item() == pytest.approx(0.5 + 1 / torch.pi, abs=0.01)


TRANSFORMED = {
    "mixup": lambda g: IMix(0.7, generator=g),
    "one lambda": lambda g: IMix(per_sample=False, generator=g),
    "cutmix": lambda g: IMix(mode="cutmix", generator=g),
    "cutmix per row": lambda g: IMix(mode="cutmix", per_sample=True, dims=(1,), generator=g),
    "inputmix": lambda g: InputMix(2, generator=g),
}


def matrix_of(mix, x):
    """The mix is linear: its matrix, by mixing each unit vector alone."""
    columns = []
    for place in range(x.numel()):
        unit = torch.zeros(x.numel(), dtype=x.dtype)
        unit[place] = 1
        columns.append(mix(unit.view_as(x)).flatten())
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transforms_of_torch_func(name):
    x, tangent = torch.randn(2, 4, 4, 4, dtype=torch.float64)

    def mix(x):
        result = TRANSFORMED[name](generator(1))(x)
        return result[0] if isinstance(result, tuple) else result

    matrix = matrix_of(mix, x)
    assert not torch.equal(matrix, torch.eye(x.numel(), dtype=x.dtype))
    mixed, pushed = torch.func.jvp(mix, (x,), (tangent,))
    torch.testing.assert_close(mixed.flatten(), matrix @ x.flatten())
    torch.testing.assert_close(pushed.flatten(), matrix @ tangent.flatten())
    with torch.autograd.forward_ad.dual_level():
        dual = mix(torch.autograd.forward_ad.make_dual(x, tangent))
        pushed = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(pushed.flatten(), matrix @ tangent.flatten())
    grad = torch.func.grad(lambda x: (mix(x) * tangent).sum())(x)
    torch.testing.assert_close(grad.flatten(), matrix.T @ tangent.flatten())
    jacobian = torch.func.jacrev(mix)(x).reshape(x.numel(), x.numel())
    torch.testing.assert_close(jacobian, matrix)


@pytest.mark.parametrize("mode", ["mixup", "cutmix"])
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap(mode, randomness):
    x = (
        torch.arange(12.0).view(4, 1, 1, 3).expand(4, 1, 7, 3).movedim(3, 0).contiguous()
    )  # (3, 4, 1, 7): every row unlike
    mixed, labels = torch.func.vmap(lambda x: tuple(IMix(mode=mode)(x)), randomness=randomness)(x)
    lams = labels.lam
    assert lams.shape == (3, 4)
    assert torch.equal(lams[0], lams[1]) == (randomness == "same")
    for group in range(3):
        one = VirtualLabels(lams[group], labels.partner[group])
        torch.testing.assert_close(mixed[group].mean(dim=(1, 2)), blended(x[group].mean(dim=(1, 2)), one).float())


class Mixing(nn.Module):
    def __init__(self, mix):
        super().__init__()
        self.mix = mix

    def forward(self, x):
        return self.mix(x)


@pytest.mark.parametrize("mode", ["mixup", "cutmix"])
def test_export_keeps_the_labels_a_named_tuple(mode):
    x = torch.randn(6, 2, 5)
    file = io.BytesIO()
    torch.export.save(torch.export.export(Mixing(IMix(0.5, mode)), (x,)), file)
    file.seek(0)
    mixed, labels = torch.export.load(file).module()(x)
    assert isinstance(labels, VirtualLabels)
    if mode == "mixup":
        torch.testing.assert_close(mixed, blended(x, labels).float())


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("mix", [IMix(0.5), IMix(mode="cutmix", per_sample=True)])
def test_make_fx(mix, tracing_mode):
    x = torch.randn(6, 2, 5)
    mixed, lam, partner = make_fx(lambda x: pytree.tree_leaves(mix(x)), tracing_mode=tracing_mode)(x)(x)
    if mix.mode == "mixup":
        torch.testing.assert_close(mixed, blended(x, VirtualLabels(lam, partner)).float())


def test_fake_and_meta_tensors():
    with FakeTensorMode():
        x = torch.randn(6, 2, 5)
        for mix in (IMix(), IMix(mode="cutmix", dims=(1,)), InputMix(2)):
            result = mix(x)
            assert (result[0] if isinstance(result, tuple) else result).shape == x.shape
        labels = VirtualLabels(torch.rand(3), torch.arange(3))
        assert labels.dense().shape == (3, 3)
    mixed, labels = IMix(mode="cutmix")(torch.empty(6, 2, 5, device="meta"))
    assert mixed.device.type == labels.lam.device.type == labels.mix(mixed).device.type == "meta"
