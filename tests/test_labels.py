import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import soft_labels
from torch.utils import _pytree as pytree
from torch.utils.data import default_collate

from imix_aug import VirtualLabels


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
