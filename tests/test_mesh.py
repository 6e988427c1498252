"""Device meshes as process groups, and DTensors as embeddings and temperatures, against one process."""

import dense
import pytest
import torch
import torch.distributed as dist
from ranks import ring
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn import functional as F

from imix_aug import (
    NegativeQueue,
    VirtualLabels,
    imix_byol_loss,
    imix_clip_loss,
    imix_nce_loss,
    imix_ntxent_loss,
    imix_supcon_loss,
)
from imix_aug._keys.dtensors import takes_dtensors

LOSSES = {
    "nce": lambda q, k, classes, **how: imix_nce_loss(q, k, **how),
    "ntxent": lambda q, k, classes, **how: imix_ntxent_loss(q, k, k, q, **how),
    "clip": lambda q, k, classes, **how: imix_clip_loss(q, k, **how),
    "supcon": lambda q, k, classes, **how: imix_supcon_loss(q, k, classes, **how),
}
ROWS, WIDTH = 4, 3
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
needs_dtensor = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 5), reason="this PyTorch's DTensors are not public"
)


def whole_batch(size, dtype=torch.float64):
    """The same on every rank; partners are of the row's own rank."""
    generator = torch.Generator().manual_seed(size)
    n = size * ROWS
    rows = torch.randn(2, n, WIDTH, generator=generator, dtype=dtype)
    partner = torch.cat([rank * ROWS + torch.randperm(ROWS, generator=generator) for rank in range(size)])
    lam = 0.5 + 0.5 * torch.rand(n, generator=generator, dtype=dtype)
    return rows[0], rows[1], torch.randint(3, (n,), generator=generator), VirtualLabels(lam, partner)


def own_labels(labels, rank):
    own = slice(rank * ROWS, (rank + 1) * ROWS)
    return VirtualLabels(labels.lam[own], labels.partner[own] - rank * ROWS)


def clip(query, key, labels, temperature):
    """Both directions, a key's label being what its queries hold of it."""
    label = dense.label_matrix(labels, len(key))
    back = dense.soft_cross_entropy(
        dense.unit(key, True) @ dense.unit(query, True).T / temperature, label.T / label.sum(0)[:, None]
    )
    return (dense.nce(query, key, labels, temperature=temperature) + back) / 2


def one_process(loss, query, key, classes, labels, temperature):
    """The dense formula's rows."""
    if loss == "nce":
        return dense.nce(query, key, labels, temperature=temperature)
    if loss == "ntxent":
        return dense.ntxent(query, key, key, query, labels, temperature=temperature)
    if loss == "clip":
        return clip(query, key, labels, temperature)
    return dense.supcon(query, key, classes, labels, temperature=temperature)


def expected(loss, size, dtype):
    """Rows' losses, and the gradients of their mean in query, key and temperature, of one process in float64."""
    query, key, classes, labels = whole_batch(size, dtype)
    leaves = [each.double().requires_grad_() for each in (query, key, torch.tensor(0.3, dtype=dtype))]
    rows = one_process(loss, *leaves[:2], classes, labels, leaves[2])
    return rows.detach(), torch.autograd.grad(rows.mean(), leaves)


def assert_close(actual, wanted, dtype):
    torch.testing.assert_close(actual.double(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def contrast_on_mesh(rank, size, shape, dtype, use_ring):
    """A mesh of one dimension, or one dimension of two: each rank's gradients, averaged over the mesh as DDP does."""
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("dp", "tp")[: len(shape)])
    mesh = mesh["dp"]
    place, ranks = mesh.get_local_rank(), mesh.size()
    query, key, classes, labels = whole_batch(ranks, dtype)
    own = slice(place * ROWS, (place + 1) * ROWS)
    for loss, call in LOSSES.items():
        rows, (query_grad, key_grad, temperature_grad) = expected(loss, ranks, dtype)
        leaves = [query[own].clone(), key[own].clone(), torch.tensor(0.3, dtype=dtype)]
        leaves = [each.requires_grad_() for each in leaves]
        how = {"temperature": leaves[2], "gather_distributed": True, "process_group": mesh}
        with ring(use_ring):
            value = call(*leaves[:2], classes[own], labels=own_labels(labels, place), **how)
            value.backward()
        dist.all_reduce(leaves[2].grad, group=mesh.get_group())
        assert_close(value.detach(), rows[own].mean(), dtype)
        assert_close(leaves[0].grad / ranks, query_grad[own], dtype)
        assert_close(leaves[1].grad / ranks, key_grad[own], dtype)
        assert_close(leaves[2].grad / ranks, temperature_grad, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("use_ring", [False, True], ids=["gather", "ring"])
@pytest.mark.parametrize("shape", [(2,), (4,), (2, 2)])
def test_a_mesh_is_a_group_in_every_loss(worlds, shape, use_ring, dtype):
    worlds[torch.Size(shape).numel()].run(contrast_on_mesh, shape, dtype, use_ring)


def compile_with_group(rank, size):
    query, key, _, labels = whole_batch(size)
    own = slice(rank * ROWS, (rank + 1) * ROWS)
    query, key, labels = query[own].requires_grad_(), key[own], own_labels(labels, rank)
    for group in (dist.new_group(list(range(size))), init_device_mesh("cpu", (size,))):
        torch._dynamo.reset()

        def loss(query, group=group):
            return imix_nce_loss(query, key, labels, gather_distributed=True, process_group=group)

        eager, compiled = (
            torch.autograd.grad(each(query), query)[0]
            for each in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager"))
        )
        torch.testing.assert_close(compiled, eager, rtol=1e-12, atol=1e-12)


def test_a_group_and_a_mesh_compile(worlds):
    worlds[2].run(compile_with_group)


def enqueue_on_mesh(rank, size):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    queue = NegativeQueue(8, 1)
    queue.enqueue(torch.full((2, 1), float(rank)), gather_distributed=True, process_group=mesh["dp"])
    partners = [rank % 2, rank % 2 + 2]
    assert queue.negatives[:, 0].tolist() == [float(each) for each in partners for _ in range(2)]
    with pytest.raises(ValueError, match="process_group must be a group or a mesh of one dimension, got one of 2"):
        queue.enqueue(torch.zeros(2, 1), gather_distributed=True, process_group=mesh)
    for name, call in LOSSES.items():
        rows = torch.randn(4, 3)
        with pytest.raises(ValueError, match="a mesh of one dimension, got one of 2") as caught:
            call(rows, rows.clone(), torch.zeros(4, dtype=torch.int64), gather_distributed=True, process_group=mesh)
        assert "\n" not in str(caught.value), name


def test_a_queue_takes_a_mesh_and_two_dimensions_are_refused(worlds):
    worlds[4].run(enqueue_on_mesh)


def use_what_is_no_group_of_this_rank(rank, size):
    rows, group = torch.randn(4, 3), dist.new_group([0])
    for wrong in ("dp", 3, *([group] if rank else [])):
        with pytest.raises(TypeError, match=r"process_group must be a group or a mesh .* that holds this rank, got"):
            imix_nce_loss(rows, rows.clone(), gather_distributed=True, process_group=wrong)
    dist.barrier()


def test_a_group_without_this_rank_is_refused(worlds):
    worlds[2].run(use_what_is_no_group_of_this_rank)


def contrast_dtensors(rank, size, dtype, use_ring):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (size,))
    query, key, classes, labels = whole_batch(size, dtype)
    own = slice(rank * ROWS, (rank + 1) * ROWS)
    for loss, call in LOSSES.items():
        rows, grads = expected(loss, size, dtype)
        leaves = [
            distribute_tensor(query, mesh, [Shard(0)]),
            distribute_tensor(key, mesh, [Shard(0)]),
            distribute_tensor(torch.tensor(0.3, dtype=dtype), mesh, [Replicate()]),
        ]
        leaves = [each.detach().requires_grad_() for each in leaves]
        for group in (None, mesh, mesh.get_group()):
            how = {"temperature": leaves[2], "gather_distributed": True, "process_group": group}
            with ring(use_ring):
                value = call(
                    *leaves[:2], distribute_tensor(classes, mesh, [Shard(0)]), labels=own_labels(labels, rank), **how
                )
                actual = torch.autograd.grad(value, leaves)
            assert type(value) is torch.Tensor
            assert_close(value.detach(), rows[own].mean(), dtype)
            for leaf, grad, wanted in zip(leaves, actual, grads, strict=True):
                assert grad.placements == leaf.placements
                assert_close(grad.full_tensor(), wanted, dtype)


@needs_dtensor
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("use_ring", [False, True], ids=["gather", "ring"])
@pytest.mark.parametrize("size", [2, 4, *(pytest.param(size, marks=pytest.mark.slow) for size in (3, 8))])
def test_dtensors_get_the_gradients_of_one_process(worlds, size, use_ring, dtype):
    worlds[size].run(contrast_dtensors, dtype, use_ring)


def contrast_dtensors_of_some_ranks(rank, size):
    """The rows of a DTensor meet those of its own mesh's ranks, two of four here, without a word about the group."""
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))["dp"]
    place = mesh.get_local_rank()
    query, key, _, labels = whole_batch(2)
    rows, grads = expected("nce", 2, torch.float64)
    leaves = [distribute_tensor(each, mesh, [Shard(0)]).detach().requires_grad_() for each in (query, key)]
    value = imix_nce_loss(*leaves, own_labels(labels, place), temperature=0.3, gather_distributed=True)
    assert_close(value.detach(), rows[place * ROWS : (place + 1) * ROWS].mean(), torch.float64)
    for grad, wanted in zip(torch.autograd.grad(value, leaves), grads[:2], strict=True):
        assert_close(grad.full_tensor(), wanted, torch.float64)


@needs_dtensor
def test_dtensors_of_some_ranks_meet_no_others(worlds):
    worlds[4].run(contrast_dtensors_of_some_ranks)


def agree_with_torch(rank, size):
    """PyTorch's own loss of a DTensor gives its rows the same gradient, through a replicated weight too."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (size,))
    batch, key, classes, _ = whole_batch(size)
    weight = torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    alone = weight.clone().requires_grad_()
    dense.nce(batch @ alone, key @ alone, temperature=0.3).mean().backward()
    shard = lambda rows: distribute_tensor(rows, mesh, [Shard(0)])  # noqa: E731
    spread = distribute_tensor(weight, mesh, [Replicate()]).requires_grad_()
    imix_nce_loss(shard(batch) @ spread, shard(key) @ spread, temperature=0.3, gather_distributed=True).backward()
    torch.testing.assert_close(spread.grad.full_tensor(), alone.grad, rtol=1e-12, atol=1e-12)
    alone.grad = spread.grad = None
    F.cross_entropy(batch @ alone, classes).backward()
    F.cross_entropy(shard(batch) @ spread, shard(classes)).backward()
    torch.testing.assert_close(spread.grad.full_tensor(), alone.grad, rtol=1e-12, atol=1e-12)


@needs_dtensor
def test_a_replicated_weight_gets_the_gradient_of_one_process_as_under_torch_s_own_loss(worlds):
    worlds[2].run(agree_with_torch)


def learn_with_replicated_scalars(rank, size, gather):
    """Plain rows beside a replicated temperature and negatives: the mean over the ranks' losses."""
    from torch.distributed.tensor import Replicate, distribute_tensor

    mesh = init_device_mesh("cpu", (size,))
    query, key, _, labels = whole_batch(size)
    bank = torch.randn(5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    own, leaves = slice(rank * ROWS, (rank + 1) * ROWS), [torch.tensor(0.3, dtype=torch.float64), bank]
    leaves = [each.requires_grad_() for each in leaves]
    unit = lambda rows: F.normalize(rows, dim=1)  # noqa: E731
    losses = []
    for each in [slice(None)] if gather else [slice(r * ROWS, (r + 1) * ROWS) for r in range(size)]:
        of = labels if gather else own_labels(labels, each.start // ROWS)
        logits = unit(query[each]) @ torch.cat([unit(key[each]), unit(leaves[1])]).T / leaves[0]
        losses.append(dense.soft_cross_entropy(logits, dense.label_matrix(of, len(query[each]))).mean())
    wanted = torch.autograd.grad(torch.stack(losses).mean(), leaves)
    spread = [distribute_tensor(each.detach(), mesh, [Replicate()]).requires_grad_() for each in leaves]
    how = {"temperature": spread[0], "negatives": spread[1], "gather_distributed": gather}
    imix_nce_loss(query[own], key[own], own_labels(labels, rank), **how).backward()
    for leaf, grad in zip(spread, wanted, strict=True):
        assert leaf.grad.placements == leaf.placements
        torch.testing.assert_close(leaf.grad.to_local(), grad, rtol=1e-12, atol=1e-12)
    how = {name: each.detach() for name, each in how.items() if name != "gather_distributed"}  # None wants a gradient.
    value = imix_nce_loss(query[own], key[own], own_labels(labels, rank), gather_distributed=gather, **how)
    dist.all_reduce(value)
    torch.testing.assert_close(value / size, torch.stack(losses).mean().detach(), rtol=1e-12, atol=1e-12)


@needs_dtensor
@pytest.mark.parametrize("gather", [True, False])
def test_a_replicated_temperature_and_negatives_get_the_mean_gradient(worlds, gather):
    worlds[2].run(learn_with_replicated_scalars, gather)


def scale_outside_of_fsdp(rank, size, use_ring):
    """A log scale that FSDP2 keeps in shards, read outside of the module's forward pass."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
            self.log_scale = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))

        def forward(self, x):
            return self.encoder(x)

    torch.manual_seed(0)
    alone = Net()
    query, key, _, labels = whole_batch(size)
    dense.nce(
        alone(query), alone(key), labels, temperature=1 / alone.log_scale[0].exp().clamp(max=100)
    ).mean().backward()
    torch.manual_seed(0)
    net = Net()
    fully_shard(net.encoder, mesh=init_device_mesh("cpu", (size,)))
    fully_shard(net, mesh=init_device_mesh("cpu", (size,)), reshard_after_forward=False)
    own = slice(rank * ROWS, (rank + 1) * ROWS)
    both = net(torch.cat([query[own], key[own]]))
    net.reshard()
    scale = net.log_scale.redistribute(placements=[Replicate()])[0]
    with ring(use_ring):
        how = {"temperature": 1 / scale.exp().clamp(max=100), "gather_distributed": True}
        imix_nce_loss(*both.chunk(2), own_labels(labels, rank), **how).backward()
    for one, other in zip(alone.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(other.grad.full_tensor(), one.grad, rtol=1e-12, atol=1e-12)


def scale_inside_of_fsdp(rank, size):
    """The documented pattern: the scale is a vector of one entry, read where the module computes its loss."""
    from torch.distributed.fsdp import fully_shard

    class Net(torch.nn.Module):
        def __init__(self, start):
            super().__init__()
            self.encoder = torch.nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
            self.log_scale = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))

        def forward(self, query, key, labels, **how):
            scale = self.log_scale[0].exp().clamp(max=100)
            return imix_nce_loss(self.encoder(query), self.encoder(key), labels, temperature=1 / scale, **how)

    query, key, _, labels = whole_batch(size)
    own = slice(rank * ROWS, (rank + 1) * ROWS)
    for start in (1.0, 5.0):  # below the clamp and above it
        torch.manual_seed(0)
        alone = Net(start)
        scale = alone.log_scale[0].exp().clamp(max=100)
        dense.nce(alone.encoder(query), alone.encoder(key), labels, temperature=1 / scale).mean().backward()
        torch.manual_seed(0)
        net = Net(start)
        fully_shard(net, mesh=init_device_mesh("cpu", (size,)))
        net(query[own], key[own], own_labels(labels, rank), gather_distributed=True).backward()
        for one, other in zip(alone.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(other.grad.full_tensor(), one.grad, rtol=1e-12, atol=1e-12)
        assert bool(alone.log_scale.grad == 0) == (start == 5.0)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6), reason="this PyTorch's fully_shard needs a GPU"
)
def test_the_documented_scale_under_fsdp2(worlds):
    worlds[2].run(scale_inside_of_fsdp)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6), reason="this PyTorch's fully_shard needs a GPU"
)
@pytest.mark.parametrize("use_ring", [False, True], ids=["gather", "ring"])
def test_a_learnable_scale_under_fsdp2(worlds, use_ring):
    worlds[2].run(scale_outside_of_fsdp, use_ring)


def refuse_other_dtensors(rank, size):
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    mesh = init_device_mesh("cpu", (size,))
    square = init_device_mesh("cpu", (size, 1))
    rows = torch.randn(4, 3)
    made = lambda placement, of=rows: DTensor.from_local(of, mesh, [placement], run_check=False)  # noqa: E731
    by_rows, replicated = made(Shard(0)), made(Replicate())
    on_square = DTensor.from_local(rows, square, [Shard(0), Replicate()], run_check=False)
    all_but_one = dist.new_group([0])
    backwards = DTensor.from_local(rows, DeviceMesh("cpu", list(range(size))[::-1]), [Shard(0)], run_check=False)
    uneven = DTensor.from_local(
        rows[: 4 - rank], mesh, [Shard(0)], run_check=False, shape=torch.Size([7, 3]), stride=(3, 1)
    )
    gather = {"gather_distributed": True}
    wrong = [
        ((replicated, replicated), gather, ValueError, r"query must be placed as Shard\(0\), by rows, got R"),
        ((by_rows, made(Shard(1))), gather, ValueError, r"key must be placed as Shard\(0\), by rows, got S"),
        ((by_rows, made(Partial())), gather, ValueError, r"key must be placed as Shard\(0\), by rows, got P"),
        ((by_rows, rows), gather, TypeError, "key must be a DTensor, as query is, got Tensor"),
        ((rows, by_rows), gather, TypeError, "key must be a plain tensor, as query is, got DTensor"),
        ((by_rows, by_rows), {}, ValueError, r"gather_distributed must be True where query is a DTensor"),
        ((by_rows, backwards), gather, ValueError, "key must be on the mesh of the embeddings, .*, got "),
        ((on_square, on_square), gather, ValueError, "query must be on a mesh of one dimension, got one of 2"),
        ((uneven, uneven), gather, ValueError, "query must have as many rows on each of 2 ranks, got 7 in all"),
        (
            (by_rows, by_rows),
            gather | {"temperature": made(Partial(), torch.tensor(0.1))},
            ValueError,
            r"temperature must be placed as Replicate\(\), got P",
        ),
        ((rows, rows), {"negatives": by_rows}, ValueError, r"negatives must be placed as Replicate\(\), got S"),
        ((rows, rows), {"weight": made(Shard(0), rows[:, 0])}, TypeError, "weight must be a plain tensor, as query is"),
    ]
    for args, how, kind, message in wrong:
        with pytest.raises(kind, match=message) as caught:
            imix_nce_loss(*args, **how)
        assert "\n" not in str(caught.value)
    same = takes_dtensors(lambda query, key, *, gather_distributed, process_group=None: (query, key, process_group))
    *own, group = same(by_rows, key=by_rows, **gather)
    assert all(type(each) is torch.Tensor and torch.equal(each, rows) for each in own)
    assert group is mesh.get_group()
    if rank == 0:
        with pytest.raises(ValueError, match=r"the ranks that query is sharded over, \[0, 1\], or None, got \[0\]"):
            imix_nce_loss(by_rows, by_rows, process_group=all_but_one, **gather)
    with pytest.raises(TypeError, match=r"prediction must be a plain tensor, got a DTensor: pass prediction.to_local"):
        imix_byol_loss(by_rows, by_rows)
    with pytest.raises(TypeError, match=r"keys must be a plain tensor, got a DTensor: pass keys.to_local"):
        NegativeQueue(8, 3).enqueue(by_rows)


@needs_dtensor
def test_other_placements_are_refused_in_one_line(worlds):
    worlds[2].run(refuse_other_dtensors)


def test_nothing_is_imported_before_a_dtensor_comes():
    import subprocess
    import sys

    program = (
        "import sys, torch; before = set(sys.modules)\n"
        "from imix_aug import imix_nce_loss\n"
        "imix_nce_loss(torch.randn(4, 3), torch.randn(4, 3))\n"
        "print([name for name in set(sys.modules) - before if name.startswith('torch.distributed')])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
