import doctest
import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import soft_labels
from torch.utils import _pytree as pytree
from torch.utils.data import default_collate

import imix_aug
from imix_aug import IMix, VirtualLabels


def random_labels(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return VirtualLabels(torch.rand(n, generator=generator) / 2 + 0.5, torch.randint(n, (n,), generator=generator))


@given(n=st.integers(1, 9), more=st.integers(0, 5), seed=st.integers(0, 99))
def test_dense_is_the_definition(n, more, seed):
    labels = random_labels(n, seed)
    torch.testing.assert_close(labels.dense(n + more).double(), soft_labels(*labels, n + more), atol=1e-7, rtol=0)
    assert labels.dense().shape == (n, n)
    assert labels.dense().dtype == torch.float32


def test_a_row_that_is_its_own_partner_has_all_its_weight():
    labels = VirtualLabels(torch.tensor([0.75, 0.5]), torch.tensor([0, 0]))
    assert labels.dense().tolist() == [[1.0, 0.0], [0.5, 0.5]]


def test_dense_refuses_too_few_classes():
    with pytest.raises(ValueError, match="num_classes must be at least the number of rows, 3, got 2"):
        random_labels(3).dense(2)


def test_gradients_flow_through_dense():
    lam = torch.tensor([0.6, 0.7], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[1.0, 2.0], [3.0, 5.0]], dtype=torch.float64)
    (VirtualLabels(lam, torch.tensor([1, 0])).dense() * weight).sum().backward()
    assert lam.grad.tolist() == [1.0 - 2.0, 5.0 - 3.0]


def test_identity():
    labels = VirtualLabels.identity(4)
    assert torch.equal(labels.dense(), torch.eye(4))
    assert (labels.lam.dtype, labels.partner.dtype) == (torch.float32, torch.int64)
    assert VirtualLabels.identity(2, device="meta").lam.device.type == "meta"


def test_unpacks_and_is_a_pytree():
    labels = random_labels(3)
    lam, partner = labels
    assert lam is labels.lam
    assert partner is labels.partner
    leaves, spec = pytree.tree_flatten({"labels": labels})
    rebuilt = pytree.tree_unflatten(leaves, spec)["labels"]
    assert isinstance(rebuilt, VirtualLabels)
    assert rebuilt.partner is partner


def test_survives_collating_and_pickling():
    collated = default_collate([random_labels(3, 0), random_labels(3, 1)])
    assert isinstance(collated, VirtualLabels)
    assert collated.lam.shape == (2, 3)
    copied = pickle.loads(pickle.dumps(random_labels(3)))
    assert isinstance(copied, VirtualLabels)
    assert torch.equal(copied.lam, random_labels(3).lam)


def test_to_moves_and_nothing_else():
    moved = random_labels(3).to("meta")
    assert isinstance(moved, VirtualLabels)
    assert (moved.lam.device.type, moved.partner.device.type) == ("meta", "meta")
    assert random_labels(3).to(device=torch.device("cpu")).partner.dtype == torch.int64
    with pytest.raises(TypeError, match="device must be"):
        random_labels(3).to(torch.float64)


WRONG = [
    (torch.rand(4), torch.arange(5), ValueError, r"lam and partner .*\(4,\) and \(5,\)"),
    (torch.rand(4, 1), torch.arange(4), ValueError, r"lam and partner .*\(4, 1\) and \(4,\)"),
    (torch.rand(4), torch.arange(4.0), TypeError, "partner must be int64, got torch.float32"),
    (torch.rand(4), torch.arange(4).int(), TypeError, "partner must be int64, got torch.int32"),
    (
        torch.ones(4).long(),
        torch.arange(4),
        TypeError,
        "lam must be floating-point, of 16 bits at least, got torch.int64",
    ),
    (torch.rand(4), torch.arange(4, device="meta"), ValueError, "on one device, got cpu and meta"),
    (torch.rand(4, device="meta"), torch.arange(5, device="meta"), ValueError, "one shape"),
    (torch.tensor([0.5, 1.5]), torch.arange(2), ValueError, "lam must be between 0 and 1, got 1.5"),
    (torch.tensor([0.5, -0.1]), torch.arange(2), ValueError, "lam must be between 0 and 1, got -0.1"),
    (torch.tensor([0.5, torch.nan]), torch.arange(2), ValueError, "lam must be between 0 and 1, got nan"),
    (torch.rand(2), torch.tensor([0, 2]), ValueError, "partner must be a row, 0 to 1, got 2"),
    (torch.rand(2), torch.tensor([-1, 0]), ValueError, "partner must be a row, 0 to 1, got -1"),
]


@pytest.mark.parametrize(("lam", "partner", "error", "message"), WRONG)
def test_wrong_labels_are_refused_where_they_are_made_and_where_they_are_used(lam, partner, error, message):
    with pytest.raises(error, match=message):
        VirtualLabels(lam, partner)
    with pytest.raises(error, match=message):
        VirtualLabels(lam=lam, partner=partner)
    labels = VirtualLabels._make((lam, partner))
    if lam.dim() == 1:
        for use in (labels.dense, lambda: labels.mix(torch.ones(2)), lambda: VirtualLabels.cat([labels])):
            with pytest.raises(error, match=message):
                use()


def test_a_pytree_may_hold_anything_until_it_is_used():
    labels = random_labels(3)
    for change in (lambda leaf: leaf.shape, lambda leaf: None, lambda leaf: leaf.tolist(), lambda leaf: 0):
        changed = pytree.tree_map(change, labels)
        assert isinstance(changed, VirtualLabels)
        with pytest.raises(TypeError, match="lam must be a tensor"):
            changed.dense()
    with pytest.raises(ValueError, match=r"lam must have shape \(N,\), got \(2, 3\)"):
        default_collate([labels, labels]).dense()
    rows = torch.func.vmap(lambda labels: labels.lam * labels.partner)(labels)
    torch.testing.assert_close(rows, labels.lam * labels.partner)


def test_compiled_and_traced_labels_are_made_without_reading_values():
    def make(lam, partner):
        return VirtualLabels(lam.clone(), partner.clone())

    labels = random_labels(4)
    made = torch.compile(make, fullgraph=True, backend="eager")(*labels)
    assert isinstance(made, VirtualLabels)
    assert torch.equal(made.partner, labels.partner)


def definition(labels, x):
    column = (-1, *(1 for _ in x.shape[1:]))
    lam = labels.lam.to(x.dtype).view(column)
    return lam * x + (1 - lam) * torch.stack([x[j] for j in labels.partner.tolist()])


@given(n=st.integers(1, 6), shape=st.lists(st.integers(1, 3), max_size=3), seed=st.integers(0, 99))
def test_mix_is_the_definition(n, shape, seed):
    labels = random_labels(n, seed)  # Partners repeat: no permutation.
    x = torch.randn(n, *shape, dtype=torch.float64, requires_grad=True)
    lam = labels.lam.double().requires_grad_()
    wide = VirtualLabels(lam, labels.partner)
    torch.testing.assert_close(wide.mix(x), definition(wide, x))
    assert torch.autograd.gradcheck(lambda x, lam: VirtualLabels(lam, labels.partner).mix(x), (x, lam))
    batch = {"half": x.detach().bfloat16(), "pair": (x.detach(), x.detach().float())}
    mixed = labels.mix(batch)
    assert mixed["half"].dtype == torch.bfloat16
    torch.testing.assert_close(mixed["half"].double(), definition(labels, batch["half"].double()), atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(mixed["pair"][1].double(), definition(labels, batch["pair"][1].double()))


@pytest.mark.parametrize("per_sample", [True, False])
def test_mix_agrees_with_imix_and_with_dense(per_sample):
    x = torch.randn(6, 3, 4)
    mixed, labels = IMix(per_sample=per_sample)(x)
    torch.testing.assert_close(labels.mix(x), mixed)
    torch.testing.assert_close(labels.mix(torch.eye(6)), labels.dense())


MIX_REFUSED = [
    (torch.ones(4, 2), ValueError, r"a row for each of the 3 labels, got shape \(4, 2\)"),
    (torch.ones(3).long(), TypeError, "floating-point.*int64$"),
    ({"a": torch.ones(3), "b": torch.arange(3)}, TypeError, r"^x\['b'\] .*int64$"),
    ([torch.ones(3), None], TypeError, r"^x\[1\] must be a tensor .*NoneType$"),
    (torch.ones(3, device="meta"), ValueError, "labels' device, cpu, got meta"),
]


@pytest.mark.parametrize(("x", "error", "message"), MIX_REFUSED)
def test_mix_refuses(x, error, message):
    with pytest.raises(error, match=message):
        random_labels(3).mix(x)


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_cat_is_block_diagonal(sizes, seed):
    parts = [random_labels(n, seed + i) for i, n in enumerate(sizes)]
    joined = VirtualLabels.cat(parts)
    assert torch.equal(joined.dense(), torch.block_diag(*(part.dense() for part in parts)))
    x = [torch.randn(n, 2) for n in sizes]
    torch.testing.assert_close(
        joined.mix(torch.cat(x)), torch.cat([part.mix(each) for part, each in zip(parts, x, strict=True)])
    )


def test_cat_refuses():
    labels = random_labels(3)
    for parts, error, message in [
        ([], ValueError, "at least one"),
        (labels, TypeError, "list or tuple of VirtualLabels, got VirtualLabels"),
        ([labels, labels.lam], TypeError, r"parts\[1\] must be VirtualLabels, got Tensor"),
        ([labels, labels.to("meta")], ValueError, r"one device, got cpu and, in parts\[1\], meta"),
    ]:
        with pytest.raises(error, match=f"^parts.*{message}|^{message}"):
            VirtualLabels.cat(parts)


def test_public_names_say_where_they_live():
    for name in imix_aug.__all__:
        assert getattr(imix_aug, name).__module__ == "imix_aug"
    assert b"imix_aug\n" in pickle.dumps(random_labels(3), protocol=0)
    assert b"_mix" not in pickle.dumps(IMix(), protocol=0).replace(b"imix_aug\nIMix", b"")


def test_a_file_with_labels_loads_with_weights_only():
    file, labels = io.BytesIO(), random_labels(3)
    torch.save({"labels": labels}, file)
    file.seek(0)
    torch.serialization.add_safe_globals([VirtualLabels])
    try:
        loaded = torch.load(file, weights_only=True)["labels"]
    finally:
        torch.serialization.clear_safe_globals()
    assert isinstance(loaded, VirtualLabels)
    assert torch.equal(loaded.lam, labels.lam)
    assert torch.equal(loaded.partner, labels.partner)


@pytest.mark.parametrize("name", [name for name in imix_aug.__all__ if isinstance(getattr(imix_aug, name), type)])
def test_the_examples_of_methods_run(name):
    """pytest's own collection misses them: a method's module is the private one, its class's is not."""
    tests = doctest.DocTestFinder(exclude_empty=True).find(
        getattr(imix_aug, name), name, module=False, globs={**vars(imix_aug), "torch": torch}
    )
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0
    if name == "VirtualLabels":
        assert {"VirtualLabels.mix", "VirtualLabels.cat", "VirtualLabels.identity"} <= {test.name for test in tests}
