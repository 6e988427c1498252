import copy
import io
import pickle
from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

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


def test_a_users_own_product_says_that_the_queue_changed():
    queue, query = NegativeQueue(4, 2), torch.randn(3, 2, requires_grad=True)
    queue.enqueue(torch.randn(4, 2))
    loss = (query @ queue.negatives.T).sum()
    queue.enqueue(torch.randn(3, 2))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class MoCo(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.queue = nn.Linear(3, 2), NegativeQueue(5, 2)


def test_the_state_is_tensors_of_lasting_shape():
    model = MoCo()
    empty = {name: value.shape for name, value in model.state_dict().items()}
    model.queue.enqueue(torch.randn(7, 2))
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in state.items()} == empty
    assert set(state) == {"net.weight", "net.bias", "queue.keys", "queue.seen"}
    twin = MoCo()
    assert not any(twin.load_state_dict(state))
    keys = torch.randn(2, 2)
    for each in (model, twin):
        each.queue.enqueue(keys)
    assert torch.equal(model.queue.negatives, twin.queue.negatives)


def test_moving_averages_over_the_state_run():
    model = MoCo()
    average = copy.deepcopy(model)
    for _ in range(3):
        model.queue.enqueue(torch.randn(2, 2))
        for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            kept.copy_(0.9 * kept + 0.1 * new)
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    averaged.update_parameters(model)


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model, twin = MoCo(), MoCo()
    model.queue.enqueue(torch.randn(3, 2))
    safetensors.save_file(model.state_dict(), tmp_path / "moco.safetensors")
    twin.load_state_dict(safetensors.load_file(tmp_path / "moco.safetensors"))
    assert torch.equal(twin.queue.negatives, model.queue.negatives)


def test_loading_replaces_another_fill():
    fuller, emptier = NegativeQueue(4, 2), NegativeQueue(4, 2)
    fuller.enqueue(torch.randn(6, 2))
    emptier.enqueue(torch.randn(1, 2))
    wanted = emptier.negatives.clone()
    fuller.load_state_dict(emptier.state_dict())
    assert torch.equal(fuller.negatives, wanted)
    emptier.enqueue(torch.randn(1, 2))
    assert fuller.negatives.shape == (1, 2)


def test_states_that_do_not_fit_are_refused_strict_or_not():
    model = MoCo()
    state = model.state_dict()
    old = {"_extra_state": {"filled": 1, "position": 1}, "keys": torch.zeros(5, 2)}
    with pytest.raises(RuntimeError, match=r"_extra_state.* is of an older NegativeQueue"):
        NegativeQueue(5, 2).load_state_dict(old, strict=False)
    with pytest.raises(RuntimeError, match="size mismatch"):
        NegativeQueue(4, 2).load_state_dict({"keys": torch.zeros(5, 2), "seen": torch.tensor(1)}, strict=False)
    seen = state.pop("queue.seen")
    with pytest.raises(RuntimeError, match=r'Missing key.* "queue.seen"'):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r'Unexpected key.* "queue.more"'):
        model.load_state_dict({**state, "queue.seen": seen, "queue.more": seen})


@pytest.mark.parametrize("batches", [(), (3,), (3, 4)])
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda queue: pickle.loads(pickle.dumps(queue)), lambda queue: copy.deepcopy(queue).double()],
    ids=["deepcopy", "pickle", "double"],
)
def test_copies_go_on_by_themselves(batches, copied):
    queue = NegativeQueue(5, 2)
    for n in batches:
        queue.enqueue(torch.randn(n, 2))
    twin, before = copied(queue), queue.negatives.clone()
    keys = torch.randn(2, 2)
    twin.enqueue(keys.to(twin.negatives.dtype))
    assert torch.equal(queue.negatives, before)
    queue.enqueue(keys)
    assert torch.equal(twin.negatives.float(), queue.negatives)


def test_made_on_the_meta_device():
    with torch.device("meta"):
        queue = NegativeQueue(4, 2)
    queue.to_empty(device="cpu")
    keys = torch.randn(3, 2)
    queue.enqueue(keys)
    assert torch.equal(queue.negatives, keys)


@pytest.mark.parametrize("rows", [3, 9])
def test_all_of_it_moves_and_stays_on_another_device(rows):
    queue = NegativeQueue(4, 2)
    queue.enqueue(torch.randn(rows, 2))
    queue.to("meta").enqueue(torch.randn(rows, 2, device="meta"))
    held = [each for each in vars(queue).values() if isinstance(each, torch.Tensor)]
    assert {each.device.type for each in held} == {"meta"}
    assert queue.negatives.shape == (4, 2)


def test_the_count_of_a_queue_that_is_not_full_outlives_fresh_memory():
    queue = NegativeQueue(4, 2)
    queue.enqueue(torch.randn(3, 2))
    queue._apply(lambda each: torch.full_like(each, 9))  # what ``to_empty`` may find there
    assert queue.seen == 3
    assert queue.negatives.tolist() == [[9, 9]] * 3


def test_what_is_added_to_it_moves_and_is_saved_as_in_any_module():
    queue = NegativeQueue(4, 2)
    queue.head = nn.Linear(2, 2, bias=False)
    queue.register_buffer("scale", torch.ones(1))
    assert queue.to_empty(device="meta", recurse=False).head.weight.device.type == "cpu"
    assert queue.double().head.weight.dtype == torch.float64
    assert set(queue.state_dict()) == {"keys", "seen", "scale", "head.weight"}


def test_a_state_is_copied_unless_it_is_to_be_assigned():
    source, copied = NegativeQueue(4, 2), NegativeQueue(4, 2)
    assigned = NegativeQueue(4, 2).to("meta")
    source.enqueue(torch.randn(3, 2))
    copied.load_state_dict(source.state_dict())
    assigned.load_state_dict(source.state_dict(), assign=True)
    wanted = source.negatives.clone()
    assert torch.equal(assigned.negatives, wanted)
    source.enqueue(torch.randn(4, 2))
    assert torch.equal(copied.negatives, wanted)


def test_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        queue = NegativeQueue(4, 2)
        queue.enqueue(torch.randn(3, 2))
        assert queue.negatives.shape == (3, 2)
        queue.enqueue(torch.randn(3, 2))
        assert queue.negatives.shape == (4, 2)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("rows", [6, 70])
def test_a_compiled_step_takes_few_graphs_from_empty_to_full(rows, dynamic):
    """The step reads the queue, takes the loss and fills the queue; eager mode follows with a queue of its own."""
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")

    def step(query, key, queue):
        loss = imix_nce_loss(query, key, negatives=queue.negatives)
        queue.enqueue(key)
        return loss

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=graphs)
    queue, twin = NegativeQueue(64, 8), NegativeQueue(64, 8)
    for _ in range(14):
        query, key = torch.randn(rows, 8, requires_grad=True), torch.randn(rows, 8)
        loss, expected = compiled(query, key, queue), step(query, key, twin)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, query), torch.autograd.grad(expected, query))
        assert torch.equal(queue.negatives, twin.negatives)
    assert queue.negatives.shape == (64, 8)
    assert graphs.frame_count <= 3


REFUSED = [
    (lambda: NegativeQueue(2, 64).enqueue(torch.randn(3, 2)), ValueError, r".*NegativeQueue\(size=2, dim=64\)"),
    (lambda: NegativeQueue(4, 2).half().enqueue(torch.randn(3, 2)), TypeError, "keys must have the dtype of the queue"),
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
