"""Across ranks: each promise of ``gather_distributed=True``, held against one process with the whole batch."""

import contextlib
import itertools

import dense
import pytest
import torch
import torch.distributed as dist
from ranks import ring
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from imix_aug import (
    IMix,
    NegativeQueue,
    VirtualLabels,
    imix_nce_loss,
    imix_ntxent_loss,
    imix_sigmoid_loss,
    imix_supcon_loss,
)
from imix_aug._keys import ranks as imix_distributed

KINDS = ("npair", "constant_keys", "moco", "ntxent", "supcon")
ROWS, WIDTH, EMBEDDING = 4, 5, 3


class Step(nn.Module):
    """Encoder, learnable temperature and loss, as a user would write them."""

    def __init__(self, kind, reduction="mean", group=None, *, dtype=torch.float64):
        super().__init__()
        self.kind, self.reduction, self.group = kind, reduction, group
        self.encoder = nn.Linear(WIDTH, EMBEDDING, dtype=dtype)
        self.log_temperature = nn.Parameter(torch.tensor([-1.0], dtype=dtype))  # fully_shard takes no 0-d one.

    def embed(self, batch):
        query = self.encoder(batch["mixed"]), self.encoder(batch["mixed_2"])
        with contextlib.nullcontext() if self.kind not in ("constant_keys", "moco") else torch.no_grad():
            return *query, self.encoder(batch["view"]), self.encoder(batch["view_2"])

    def forward(self, batch, gather=True):
        options = {
            "temperature": self.log_temperature[0].exp(),
            "reduction": self.reduction,
            "gather_distributed": gather,
            "process_group": self.group if gather else None,
        }
        query, query_2, key, key_2 = self.embed(batch)
        labels = VirtualLabels(batch["lam"], batch["partner"])
        if self.kind == "ntxent":
            return imix_ntxent_loss(query, query_2, key, key_2, labels, **options)
        if self.kind == "supcon":
            return imix_supcon_loss(query, key, batch["classes"], labels, **options)
        return imix_nce_loss(query, key, labels, negatives=batch["bank"] if self.kind == "moco" else None, **options)

    def dense(self, batch):
        query, query_2, key, key_2 = self.embed(batch)
        labels, options = VirtualLabels(batch["lam"], batch["partner"]), {"temperature": self.log_temperature[0].exp()}
        if self.kind == "ntxent":
            return dense.ntxent(query, query_2, key, key_2, labels, **options)
        if self.kind == "supcon":
            return dense.supcon(query, key, batch["classes"], labels, **options)
        return dense.nce(query, key, labels, negatives=batch["bank"] if self.kind == "moco" else None, **options)


def whole_batch(size, rows=ROWS, dtype=torch.float64, seed=1):
    """The same on every rank: rows of all ranks, each mixed with a partner of its own rank."""
    generator = torch.Generator().manual_seed(seed)
    n = size * rows
    views = {name: torch.randn(n, WIDTH, generator=generator, dtype=dtype) for name in ("view", "view_2", "mixed")}
    views["mixed_2"] = torch.randn(n, WIDTH, generator=generator, dtype=dtype)
    partner = torch.cat([rank * rows + torch.randperm(rows, generator=generator) for rank in range(size)])
    lam = 0.5 + 0.5 * torch.rand(n, generator=generator)
    classes = torch.randint(3, (n,), generator=generator)
    bank = torch.randn(6, EMBEDDING, generator=generator, dtype=dtype)
    return {**views, "lam": lam, "partner": partner, "classes": classes, "bank": bank}


def share(batch, rank, rows=ROWS):
    """What one rank sees of the whole batch."""
    own = {name: value if name == "bank" else value[rank * rows : (rank + 1) * rows] for name, value in batch.items()}
    return {**own, "partner": own["partner"] - rank * rows}


def oracle(kind, size, reduction="mean"):
    """Rows' losses and gradients of one process with the whole batch, by the dense formula."""
    torch.manual_seed(0)
    step = Step(kind)
    losses = step.dense(whole_batch(size))
    dense.reduce(losses, "mean" if reduction == "none" else reduction).backward()
    return losses.detach(), [parameter.grad for parameter in step.parameters()]


def assert_like_one_process(rank, kind, size, reduction, loss, grads):
    losses, expected_grads = oracle(kind, size, reduction)
    own = losses[rank * ROWS : (rank + 1) * ROWS]
    torch.testing.assert_close(loss, dense.reduce(own, reduction), rtol=1e-12, atol=1e-12)
    for grad, expected in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-12)


def train_ddp(rank, size, kind, reduction, use_ring, compiled=False):
    torch.manual_seed(0)
    step = Step(kind, reduction)
    if compiled:
        torch._dynamo.reset()
        torch._dynamo.config.optimize_ddp = False  # In torch 2.4 it cannot split a graph with functions such as ours.
        step.forward = torch.compile(step.forward, fullgraph=True, dynamic=True, backend="aot_eager")
    with ring(use_ring):
        ddp = DistributedDataParallel(step)  # It must outlive the backward pass, or no gradient is averaged.
        loss = ddp(share(whole_batch(size), rank))
        (loss.mean() if reduction == "none" else loss).backward()
    # DDP averages over the ranks, which for a sum, as for any loss with that reduction, is the sum's share of a rank.
    factor = size if reduction == "sum" else 1
    grads = [factor * parameter.grad for parameter in step.parameters()]
    assert_like_one_process(rank, kind, size, reduction, loss.detach(), grads)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("use_ring", [False, True], ids=["gather", "ring"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_ddp_gradients_are_those_of_one_process(worlds, kind, reduction, use_ring, size):
    worlds[size].run(train_ddp, kind, reduction, use_ring)


ALL_OR_SLOW = [kind if kind == "npair" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


@pytest.mark.parametrize("use_ring", [False, True], ids=["gather", "ring"])
@pytest.mark.parametrize("kind", ALL_OR_SLOW)
def test_compiled_without_graph_break(worlds, kind, use_ring):
    worlds[2].run(train_ddp, kind, "mean", use_ring, True)


def train_fsdp2(rank, size, kind, use_ring):
    from torch.distributed._composable.fsdp import fully_shard
    from torch.distributed.device_mesh import init_device_mesh

    torch.manual_seed(0)
    step = fully_shard(Step(kind), mesh=init_device_mesh("cpu", (size,)))
    with ring(use_ring):
        loss = step(share(whole_batch(size), rank))
        loss.backward()
    grads = [parameter.grad.full_tensor() for parameter in step.parameters()]
    assert_like_one_process(rank, kind, size, "mean", loss.detach(), grads)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6), reason="this PyTorch's fully_shard needs a GPU"
)
@pytest.mark.parametrize("use_ring", [False, True], ids=["gather", "ring"])
@pytest.mark.parametrize("kind", KINDS)
def test_fsdp2_gradients_are_those_of_one_process(worlds, kind, use_ring):
    worlds[2].run(train_fsdp2, kind, use_ring)


def train_in_subgroup(rank, size, kind, use_ring):
    members = [0, 2]
    group = dist.new_group(members)
    if rank in members:
        torch.manual_seed(0)
        step, place = Step(kind, "mean", group), members.index(rank)
        with ring(use_ring):
            loss = step(share(whole_batch(2), place))
            loss.backward()
        for parameter in step.parameters():
            dist.all_reduce(parameter.grad, group=group)
            parameter.grad /= len(members)
        grads = [parameter.grad for parameter in step.parameters()]
        assert_like_one_process(place, kind, 2, "mean", loss.detach(), grads)
    dist.barrier()


@pytest.mark.parametrize("use_ring", [False, True], ids=["gather", "ring"])
@pytest.mark.parametrize("kind", KINDS)
def test_subgroup_keeps_to_itself(worlds, kind, use_ring):
    worlds[3].run(train_in_subgroup, kind, use_ring)


class Traffic:
    """Counts the elements that this rank receives from others, by wrapping what the package may call."""

    names = ("all_gather_into_tensor", "all_to_all_single", "reduce_scatter_tensor", "all_reduce", "all_gather")

    def __init__(self, size):
        self.size, self.elements, self.largest, self.calls = size, 0, 0, []

    def __enter__(self):
        self.kept = {name: getattr(dist, name) for name in (*self.names, "batch_isend_irecv")}
        for name in self.names:
            setattr(dist, name, self.collective(name))
        dist.batch_isend_irecv = self.peer_to_peer
        return self

    def __exit__(self, *_):
        for name, function in self.kept.items():
            setattr(dist, name, function)

    def count(self, name, elements):
        self.elements += elements
        self.largest = max(self.largest, elements)
        self.calls.append(name)

    def collective(self, name):
        def call(output, *args, **kwargs):
            whole = max(output.numel(), args[0].numel() if args and isinstance(args[0], torch.Tensor) else 0)
            self.count(name, whole * (self.size - 1) // self.size * (2 if name == "all_reduce" else 1))
            return self.kept[name](output, *args, **kwargs)

        return call

    def peer_to_peer(self, operations):
        self.count("ring", sum(each.tensor.numel() for each in operations if each.op is dist.irecv))
        return self.kept["batch_isend_irecv"](operations)


def measure_traffic(rank, size, kind, use_ring):
    torch.manual_seed(rank)
    n, d = 32, 7
    rows = torch.randn(4, n, d)
    query, query_2 = rows[0].requires_grad_(), rows[1].requires_grad_()
    needs_grad = kind != "constant_keys"
    key, key_2 = rows[2].clone().requires_grad_(needs_grad), rows[3].clone().requires_grad_(needs_grad)
    labels = VirtualLabels(torch.rand(n), torch.randperm(n))
    with ring(use_ring), torch.no_grad():
        imix_nce_loss(query, key, gather_distributed=True)  # The first time a ring learns of the nodes.
    with ring(use_ring), Traffic(size) as forward:
        if kind == "ntxent":
            loss = imix_ntxent_loss(query, query_2, key, key_2, labels, gather_distributed=True)
        elif kind == "supcon":
            loss = imix_supcon_loss(query, key, torch.randint(3, (n,)), labels, gather_distributed=True)
        else:
            loss = imix_nce_loss(query, key, labels, gather_distributed=True)
    with ring(use_ring), Traffic(size) as backward:
        loss.backward()
    rows_of_others = (2 if kind == "ntxent" else 1) * n * (size - 1)
    keys, fact = rows_of_others * d, size - 1
    classes = rows_of_others if kind == "supcon" else 0
    if not use_ring:
        assert forward.elements == keys + classes + fact
        assert backward.elements == (keys if needs_grad else 0)
    elif kind == "supcon":  # The classes' means go round on their own, with a column that counts the rows.
        assert forward.elements == 2 * keys + rows_of_others + classes + fact
        assert backward.elements == 2 * keys + rows_of_others + classes + keys + n * d
    else:
        own = rows_of_others // (size - 1) * d
        assert forward.elements == keys + fact
        assert backward.elements == (2 * keys + own if needs_grad else 0)
    assert backward.calls or not needs_grad
    return forward.elements, backward.elements


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("use_ring", [False, True], ids=["gather", "ring"])
@pytest.mark.parametrize("kind", ["npair", "constant_keys", "ntxent", "supcon"])
def test_keys_travel_once_each_way_and_logits_never(worlds, kind, use_ring, size):
    elements = worlds[size].run(measure_traffic, kind, use_ring)
    assert len(set(elements)) == 1


def peak_memory(function):
    """Bytes that are allocated at most at one time while the function runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [each for each in profile.profiler.kineto_results.events() if each.name() == "[memory]"]
    held = itertools.accumulate(each.nbytes() for each in sorted(events, key=lambda each: each.start_ns()))
    return max(held, default=0)


def measure_memory(rank, size, rows):
    n, d = rows, 256
    query, key = torch.randn(n, d, requires_grad=True), torch.randn(n, d, requires_grad=True)

    def step():
        imix_nce_loss(query, key, gather_distributed=True).backward()

    peaks = []
    for use_ring in (False, True):
        with ring(use_ring):
            step()
            query.grad = key.grad = None
            peaks.append(peak_memory(step) / (n * d * 4))
    return peaks


@pytest.mark.slow
def test_ring_holds_a_rank_s_share_however_many_ranks_there_are(worlds):
    """In blocks of (N / W, D): gathering holds W blocks of keys and W of their gradients, the ring the same few."""
    rows = 4096
    gathered_3, ring_3 = worlds[3].run(measure_memory, rows)[0]
    gathered_4, ring_4 = worlds[4].run(measure_memory, rows)[0]
    print(f"peak memory in blocks: gathered {gathered_3:.1f}, {gathered_4:.1f}, ring {ring_3:.1f}, {ring_4:.1f}")
    assert gathered_4 - gathered_3 > 1.5
    assert abs(ring_4 - ring_3) < 0.5


def use_uneven_batches(rank, size, use_ring, compiled):
    loss = (
        torch.compile(imix_nce_loss, fullgraph=True, dynamic=True, backend="aot_eager") if compiled else imix_nce_loss
    )
    rows = torch.randn(4 - (rank == size - 1), 3, requires_grad=True)
    expected = RuntimeError if compiled else ValueError
    with (
        ring(use_ring),
        pytest.raises(expected, match="gather_distributed=True needs equal batches on all ranks") as caught,
    ):
        loss(rows, rows, gather_distributed=True)
    if not compiled:
        counts = ", ".join(["4"] * (size - 1) + ["3"])
        assert f"got {counts} rows on ranks 0 to {size - 1}" in str(caught.value)
    with pytest.raises(ValueError, match="gather_distributed=True needs equal batches"):
        NegativeQueue(8, 3).enqueue(rows.detach(), gather_distributed=True)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("use_ring", [False, True], ids=["gather", "ring"])
def test_uneven_batches_are_refused_on_all_ranks(worlds, use_ring, size):
    worlds[size].run(use_uneven_batches, use_ring, False)


def test_uneven_batches_are_refused_in_a_compiled_graph(worlds):
    worlds[2].run(use_uneven_batches, False, True)


def use_other_widths_and_dtypes(rank, size):
    rows = torch.randn(4, 3 + (rank == 1))
    with pytest.raises(ValueError, match=r"embeddings of one width on all ranks, got 3, 4, 3 columns on ranks 0 to 2"):
        imix_nce_loss(rows, rows, gather_distributed=True)
    rows = torch.randn(4, 3, dtype=torch.float64 if rank == 2 else torch.float32)
    named = r"one dtype on all ranks, got torch.float32, torch.float32, torch.float64 on"
    with pytest.raises(ValueError, match=named):
        imix_nce_loss(rows, rows, gather_distributed=True)


def test_ranks_that_disagree_about_widths_and_dtypes_are_refused(worlds):
    worlds[3].run(use_other_widths_and_dtypes)


def want_gradients_on_one_rank(rank, size):
    query, key = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=rank == 0)
    with pytest.raises(ValueError, match=r"on all ranks or on none, got requires_grad True, False on ranks 0 to 1"):
        imix_nce_loss(query, key, gather_distributed=True)
    with torch.no_grad():
        imix_nce_loss(query, key, gather_distributed=True)


def test_ranks_that_disagree_about_gradients_are_refused(worlds):
    worlds[2].run(want_gradients_on_one_rank)


def enqueue_on_all_ranks(rank, size):
    queue, keys = NegativeQueue(10, 2), torch.arange(8.0).view(4, 2) + 100 * rank
    queue.enqueue(keys, gather_distributed=True)
    everyone = torch.cat([torch.arange(8.0).view(4, 2) + 100 * other for other in range(size)])
    assert torch.equal(queue.negatives, everyone[-10:] if size * 4 <= 10 else queue.negatives)
    kept = {tuple(row) for row in queue.negatives.tolist()}
    assert kept == {tuple(row) for row in everyone[-10:].tolist()}
    return queue.state_dict()["keys"]


@pytest.mark.parametrize("size", [2, 3])
def test_queue_holds_the_same_on_all_ranks(worlds, size):
    states = worlds[size].run(enqueue_on_all_ranks)
    assert all(torch.equal(state, states[0]) for state in states)


class WithQueue(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.queue = nn.Linear(2, 2), NegativeQueue(6, 2)

    def forward(self, keys):
        self.queue.enqueue(keys)
        return self.net(keys).sum()


def fill_inside_ddp(rank, size):
    model = DistributedDataParallel(WithQueue())
    keys = torch.full((4, 2), float(rank + 1))
    held = []
    for _ in range(3):
        model(keys).backward()
        held.append(model.module.queue.negatives.clone())
    for negatives, filled in zip(held, (4, 6, 6), strict=True):  # After the last collective, so that no rank waits.
        assert torch.equal(negatives, keys[:1].expand(filled, 2))


@pytest.mark.parametrize("size", [2, 3])
def test_each_rank_keeps_its_own_queue_inside_ddp(worlds, size):
    """DDP's defaults send rank 0's buffers to all ranks in each forward pass."""
    worlds[size].run(fill_inside_ddp)


def draw_on_each_rank(rank, size):
    dist_seed = torch.initial_seed() + rank
    _, labels = IMix(generator=torch.Generator().manual_seed(dist_seed))(torch.zeros(16, 2))
    _, again = IMix(generator=torch.Generator().manual_seed(dist_seed))(torch.zeros(16, 2))
    assert torch.equal(labels.lam, again.lam)
    return labels.lam


def test_draws_differ_between_ranks_with_their_own_seeds(worlds):
    lams = worlds[3].run(draw_on_each_rank)
    for one, other in itertools.combinations(lams, 2):
        assert not torch.equal(one, other)
        assert torch.corrcoef(torch.stack([one, other]))[0, 1].abs() < 0.8


def reduce_scatter_like_on_a_gpu(rank, size):
    """The branch for NCCL, on a gloo that knows the collective."""
    rows = torch.arange(size * 6.0).view(size * 2, 3) * (rank + 1)
    own = rows.new_empty(2, 3)
    try:
        dist.reduce_scatter_tensor(own, rows.contiguous())
    except RuntimeError:
        return False
    assert torch.equal(own, imix_distributed.reduce_scatter(rows, None))
    return True


def test_exchange_and_sum_is_a_reduce_scatter(worlds):
    worlds[3].run(reduce_scatter_like_on_a_gpu)


def test_one_process_without_torch_distributed_needs_no_group():
    query, key = torch.randn(4, 3), torch.randn(4, 3)
    for loss in (imix_nce_loss, imix_sigmoid_loss):
        assert torch.equal(loss(query, key, gather_distributed=True), loss(query, key))
    queue = NegativeQueue(8, 3)
    queue.enqueue(key, gather_distributed=True)
    assert torch.equal(queue.negatives, key)


def learn_keys_alone(rank, size):
    """A frozen query encoder: no gradient of the queries is computed in the ring, and the keys' is as ever."""
    rows = torch.randn(2, size * 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole_key = rows[1].clone().requires_grad_()
    dense.nce(rows[0], whole_key).sum().backward()
    own = slice(4 * rank, 4 * rank + 4)
    key = rows[1, own].clone().requires_grad_()
    with ring(True):
        loss = imix_nce_loss(rows[0, own], key, reduction="sum", gather_distributed=True)
        loss.backward()
    torch.testing.assert_close(key.grad, whole_key.grad[own], rtol=1e-10, atol=1e-12)


def test_ring_with_queries_that_need_no_gradient(worlds):
    worlds[2].run(learn_keys_alone)


def differentiate_twice(rank, size, use_ring):
    query, key = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    with ring(use_ring):
        loss = imix_nce_loss(query, key, gather_distributed=True)
        (first,) = torch.autograd.grad(loss, query, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            first.sum().backward()


@pytest.mark.parametrize("use_ring", [False, True], ids=["gather", "ring"])
def test_second_derivative_is_refused(worlds, use_ring):
    worlds[2].run(differentiate_twice, use_ring)
