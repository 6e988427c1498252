"""The settings of DDP and FSDP2 that people train with: accumulated, compiled and sharded gradients, of one process."""

import contextlib

import pytest
import torch
from ranks import ring
from test_distributed import KINDS, Step, share, whole_batch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

SETTINGS = {
    "plain": {},
    "accumulated": {},
    "find_unused_parameters": {"find_unused_parameters": True},
    "static_graph": {"static_graph": True},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
    "compiled": {},
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
SIZES = [2, 3, 4, pytest.param(8, marks=pytest.mark.slow)]


class WithUnused(Step):
    """Has a parameter that no loss depends on."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.unused = nn.Parameter(torch.zeros(2, dtype=self.encoder.weight.dtype))


def assert_like_one_process(step, batches, grads):
    """Compare with the dense formula in float64, summed over the micro-batches."""
    alone = type(step)(step.kind)
    alone.load_state_dict({name: each.detach() for name, each in step.state_dict().items()})
    for batch in batches:
        wide = {name: each.double() if each.is_floating_point() else each for name, each in batch.items()}
        alone.dense(wide).mean().backward()
    tolerance = TOLERANCE[step.encoder.weight.dtype]
    for (name, parameter), grad in zip(alone.named_parameters(), grads, strict=True):
        wanted = parameter.grad
        if wanted is None:  # DDP leaves zeros where no rank used a parameter, or nothing.
            assert grad is None or not grad.any(), name
        else:
            close = torch.allclose(grad.double(), wanted, rtol=tolerance, atol=tolerance)
            assert close, f"{step.kind}, {name}: {grad} for {wanted}"


def train(rank, size, setting, dtype, use_ring, kinds=KINDS):
    batches = [whole_batch(size, dtype=dtype, seed=seed) for seed in (1, 2)]
    for kind in kinds:
        torch.manual_seed(0)
        step = (WithUnused if setting == "find_unused_parameters" else Step)(kind, dtype=dtype)
        ddp = DistributedDataParallel(step, **SETTINGS[setting])
        run = ddp
        if setting == "compiled":
            torch._dynamo.reset()
            run = torch.compile(ddp, backend="aot_eager")
        with ring(use_ring):
            for number, batch in enumerate(batches):
                is_first = number == 0
                with ddp.no_sync() if setting == "accumulated" and is_first else contextlib.nullcontext():
                    run(share(batch, rank)).backward()
                if setting != "accumulated" and is_first:  # What was learnt of the first step serves the second.
                    step.zero_grad()
        counted = batches if setting == "accumulated" else batches[1:]
        assert_like_one_process(step, counted, [parameter.grad for parameter in step.parameters()])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("setting", [each for each in SETTINGS if each != "compiled"])
def test_settings_of_ddp(worlds, setting, dtype, size):
    for use_ring in (False, True):
        worlds[size].run(train, setting, dtype, use_ring, timeout=900)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6), reason="this PyTorch's DDP cannot split our graphs"
)
@pytest.mark.parametrize("size", [2, *(pytest.param(size, marks=pytest.mark.slow) for size in (3, 4, 8))])
@pytest.mark.parametrize("kind", ["npair", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
def test_ddp_compiled_as_a_whole(worlds, kind, size):
    """DDP's own splitting of the graph by buckets is on, as it is by default."""
    for dtype in TOLERANCE:
        for use_ring in (False, True):
            worlds[size].run(train, "compiled", dtype, use_ring, [kind], timeout=900)


def train_fsdp2(rank, size, dtype, use_ring):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (size,))
    batches = [whole_batch(size, dtype=dtype, seed=seed) for seed in (1, 2)]
    line = fully_shard(nn.Linear(1, 1).to(dtype), mesh=mesh)
    line(torch.ones(1, 1, dtype=dtype)).sum().backward()
    ranks_added_up = line.bias.grad.full_tensor()  # one, their mean; torch 2.8 adds float32 up under gloo
    for kind in KINDS:
        torch.manual_seed(0)
        whole = Step(kind, dtype=dtype)
        torch.manual_seed(0)
        step = fully_shard(Step(kind, dtype=dtype), mesh=mesh)
        with ring(use_ring):
            for batch in batches:  # FSDP adds the gradients up.
                step(share(batch, rank)).backward()
        grads = [parameter.grad.full_tensor() / ranks_added_up for parameter in step.parameters()]
        assert_like_one_process(whole, batches, grads)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6), reason="this PyTorch's fully_shard needs a GPU"
)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_accumulation_under_fsdp2(worlds, dtype, size):
    for use_ring in (False, True):
        worlds[size].run(train_fsdp2, dtype, use_ring, timeout=900)
