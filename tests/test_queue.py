import io
from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imix_aug import NegativeQueue, imix_nce_loss


@given(size=st.integers(1, 12), batches=st.lists(st.integers(1, 30), max_size=8))
def test_it_holds_the_last_keys(size, batches):
    queue, expected, count = NegativeQueue(size, 1), deque(maxlen=size), 0
    assert queue.negatives.shape == (0, 1)
    for n in batches:
        keys = torch.arange(count, count + n).float()[:, None]
        count += n
        queue.enqueue(keys)
        expected.extend(keys.flatten().tolist())
        assert sorted(queue.negatives.flatten().tolist()) == sorted(expected)
        assert len(queue.keys) == size


def test_state_dict_round_trip_goes_on_where_it_was():
    queue, other = NegativeQueue(5, 2), NegativeQueue(5, 2)
    queue.enqueue(torch.randn(3, 2))
    file = io.BytesIO()
    torch.save(queue.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.negatives, queue.negatives)
    keys = torch.randn(4, 2)
    queue.enqueue(keys)
    other.enqueue(keys)
    assert torch.equal(other.negatives, queue.negatives)
    assert keys[-1].tolist() in other.negatives.tolist()


def test_no_gradient_and_no_alias():
    keys = torch.randn(3, 2, requires_grad=True)
    queue = NegativeQueue(4, 2)
    queue.enqueue(keys)
    assert not queue.negatives.requires_grad
    with torch.no_grad():
        keys.zero_()
    assert queue.negatives.abs().sum() > 0


def test_in_a_moco_step():
    queue = NegativeQueue(8, 4)
    query = torch.randn(4, 4, requires_grad=True)
    for _ in range(3):
        key = torch.randn(4, 4)
        loss = imix_nce_loss(query, key, negatives=queue.negatives)
        queue.enqueue(key)  # Before the backward pass even: keys without gradient are not kept for it.
        loss.backward()
    assert query.grad.abs().sum() > 0


def test_dtype_follows_to():
    queue = NegativeQueue(4, 2).to(torch.bfloat16)
    queue.enqueue(torch.randn(3, 2, dtype=torch.bfloat16))
    assert queue.negatives.dtype == torch.bfloat16
    assert repr(queue) == "NegativeQueue(size=4, dim=2, filled=3)"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keys_are_widened(dtype):
    keys, queue = torch.randn(3, 2).to(dtype), NegativeQueue(4, 2)
    queue.enqueue(keys)
    assert queue.negatives.dtype == torch.float32
    assert torch.equal(queue.negatives, keys.float())


REFUSED = [
    (lambda: NegativeQueue(4, 2).enqueue(torch.ones(3, 2, dtype=torch.int64)), TypeError, "keys must be floating"),
    (lambda: NegativeQueue(0, 2), ValueError, "size must be at least 1"),
    (lambda: NegativeQueue(4.0, 2), TypeError, "size must be an int"),
    (lambda: NegativeQueue(4, -2), ValueError, "dim must be at least 1"),
    (lambda: NegativeQueue(4, 2).enqueue(torch.randn(3, 3)), ValueError, "keys must have as many columns as the queue"),
    (lambda: NegativeQueue(4, 2).enqueue(torch.randn(2)), ValueError, "keys must have shape"),
    (lambda: NegativeQueue(4, 2).enqueue([[1.0, 2.0]]), TypeError, "keys must be a tensor"),
    (
        lambda: NegativeQueue(4, 2).enqueue(torch.randn(3, 2).double()),
        TypeError,
        "keys must have the dtype of the queue",
    ),
    (lambda: NegativeQueue(4, 2).enqueue(torch.randn(3, 2, device="meta")), ValueError, "keys must be on the device"),
    (lambda: NegativeQueue(4, 2).enqueue(torch.randn(3, 2), gather_distributed=1), TypeError, "gather_distributed"),
    (lambda: NegativeQueue(4, 2).enqueue(torch.randn(3, 2), process_group=1), ValueError, "process_group must be None"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_refusals(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_enqueueing_before_the_backward_pass_changes_no_gradient(normalize, reduction):
    gradients = []
    for early in (False, True):
        generator = torch.Generator().manual_seed(0)
        query, key = (torch.randn(8, 4, generator=generator).requires_grad_() for _ in range(2))
        queue = NegativeQueue(16, 4)
        queue.enqueue(torch.randn(16, 4, generator=generator))
        loss = imix_nce_loss(
            query, key, temperature=0.2, negatives=queue.negatives, normalize=normalize, reduction=reduction
        )
        if early:
            queue.enqueue(torch.randn(16, 4, generator=generator))
        gradients.append(torch.autograd.grad(loss.sum(), (query, key)))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
