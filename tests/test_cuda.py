"""The kernels on a real card: agreement with the dense formula in float64, no waiting, graphs."""

import contextlib
import functools

import pytest
import reference
import torch
from torch.nn import functional as F

from imix_aug import IMix, VirtualLabels, imix_nce_loss, imix_ntxent_loss, use_backend
from imix_aug._backend import runs_triton
from imix_aug._cross_entropy.columns import LeftOut, Positives
from imix_aug._cross_entropy.operator import soft_cross_entropy
from imix_aug._mixing import operators as mix

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}


@pytest.fixture(params=["highest", "high"])
def precision(request):
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(previous)


@contextlib.contextmanager
def no_waiting():
    """Refuse every wait of the host for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def error(result, wanted):
    return ((result.double() - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()


def unit(n, d, dtype, temperature=1.0):
    return (F.normalize(torch.randn(n, d, device="cuda")) / temperature).to(dtype)


def test_the_kernels_are_in_use():
    pytest.importorskip("triton")
    if torch.cuda.get_device_capability() >= (8, 0):
        assert runs_triton(torch.empty(1, device="cuda").device)


@pytest.mark.parametrize(
    ("n", "m", "k", "exclusions"),
    [
        (1, 2, None, 0),
        (2, 17, 0, 1),
        (130, 165, 33, 2),
        (1000, 1000, None, 2),
        (4096, 4096, 100, 0),
        (300, 300, 65536, 0),
    ],
)
@pytest.mark.parametrize("d", [1, 3, 16, 64, 100, 128, 129, 256, 300, 512, 768, 1024])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("ids", [False, True])
def test_agreement(n, m, k, exclusions, d, dtype, ids, precision):
    if dtype == torch.float64 and max(n, m, k or 0) > 1000:
        pytest.skip("float64 goes through plain PyTorch")
    query, key = unit(n, d, dtype, 0.1).requires_grad_(), unit(m, d, dtype).requires_grad_()
    negatives = None if k is None else unit(k, d, dtype)
    columns = torch.randint(m, (n, exclusions), device="cuda") if exclusions else None
    numbers = [torch.randint(50, (count,), device="cuda") for count in (n, m, k or 0)] if ids else []
    left_out = LeftOut(columns, *numbers)
    labels = VirtualLabels(torch.rand(n, device="cuda"), torch.randperm(n, device="cuda"))
    positives = Positives.of(labels, torch.float32)
    weight = torch.randn(n, device="cuda")
    exact = [x.detach().double().requires_grad_() for x in (query, key)]
    wanted = reference.soft_cross_entropy(
        *exact, None if negatives is None else negatives.double(), positives, left_out
    )
    tolerance = 1e-2 if dtype == torch.float32 and precision == "high" else TOLERANCE[dtype]
    for summed in (True, False):
        got = soft_cross_entropy(query, key, negatives, positives, left_out=left_out, dtype=dtype, summed=summed)
        scale = torch.ones((), device="cuda") if summed else weight
        gradients = torch.autograd.grad((got * scale).sum(), (query, key))
        expected = torch.autograd.grad((wanted * scale).sum(), exact, retain_graph=True)
        assert error(got, wanted.sum() if summed else wanted) < tolerance
        for gradient, want in zip(gradients, expected, strict=True):
            assert error(gradient, want) < tolerance


@pytest.mark.parametrize("d", [64, 256, 768])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", [imix_nce_loss, imix_ntxent_loss])
def test_samples_told_apart_keep_their_gradient(d, dtype, loss):
    """In half precision the kernels are as near to float64 as rows rounded to it can be."""
    rows = F.normalize(torch.randn(2000, d, device="cuda"))
    views = [(rows + 0.3 * F.normalize(torch.randn_like(rows))).to(dtype) for _ in range(2)]
    gradients = []
    for kind in (torch.float32, torch.float64):
        leaves = [view.to(kind).requires_grad_() for view in views]
        with torch.autocast("cuda", dtype, enabled=kind == torch.float32):
            value = loss(*leaves, temperature=0.07)
        assert value >= 0
        gradients.append(torch.autograd.grad(value, leaves))
    for gradient, wanted in zip(*gradients, strict=True):
        assert error(gradient, wanted) < 3e-2


def test_few_kernels_serve_many_batch_sizes():
    pytest.importorskip("triton")
    from imix_aug._cross_entropy import triton_sweep

    device = torch.cuda.current_device()

    def compiled():
        kernels = (triton_sweep._sweep_keys, triton_sweep._sweep_queries, triton_sweep._merge)
        return sum(len(kernel.device_caches[device][0]) for kernel in kernels)

    before = compiled()
    for n in (1, 16, 31, 64, 100, 128, 250, 256, 1000, 4096):
        for negatives in (None, unit(n, 48, torch.bfloat16), unit(4096, 48, torch.bfloat16)):
            query, key = (unit(n, 48, torch.bfloat16).requires_grad_() for _ in range(2))
            imix_nce_loss(query, key, negatives=negatives).backward()
    assert compiled() - before <= 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_kernels_and_plain_torch_agree(dtype):
    values = []
    query, key = unit(300, 64, dtype).requires_grad_(), unit(300, 64, dtype).requires_grad_()
    for backend in ("triton", "torch"):
        if backend == "triton" and not runs_triton(query.device):
            pytest.skip("plain torch computes on this card")
        with use_backend(backend):
            loss = imix_nce_loss(query, key)
            values.append((loss, *torch.autograd.grad(loss, (query, key))))
    for ours, plain in zip(*values, strict=True):
        assert error(ours, plain.double()) < TOLERANCE[dtype]


@pytest.mark.parametrize("d", [64, 128, 256, 768])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_repeated_runs_agree_to_the_bit(d, dtype, precision):
    query, key = unit(3000, d, dtype, 0.1).requires_grad_(), unit(5000, d, dtype).requires_grad_()
    own = Positives.own(3000, query.device, torch.float32)
    runs = []
    for _ in range(3):
        losses = soft_cross_entropy(query, key, None, own, dtype=dtype)
        runs.append((losses.detach(), *torch.autograd.grad(losses.sum(), (query, key))))
    for again in runs[1:]:
        for first, second in zip(runs[0], again, strict=True):
            assert torch.equal(first, second)


def test_memory_grows_with_n_not_with_its_square():
    n, d = 131072, 64
    query, key = (unit(n, d, torch.bfloat16).requires_grad_() for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    imix_nce_loss(query, key).backward()
    assert torch.cuda.max_memory_allocated() - before < 40 * n * d * 4  # the logits would take 34 GB in bfloat16


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(7, 5), (32, 32), (224, 224)])
@pytest.mark.parametrize("per_sample", [True, False])
def test_mixing_agrees_with_the_cpu(memory_format, dtype, size, per_sample):
    n = 9
    x = torch.randn(n, 3, *size).to(dtype).to(memory_format=memory_format)
    partner, lam = torch.randperm(n), torch.rand(n if per_sample else 1)
    edges = [torch.randint(extent + 1, (len(lam), 2)).sort(dim=1).values for extent in size]
    bounds = torch.stack(edges, dim=1)
    upstream = torch.randn(n, 3, *size).to(dtype)
    paste = functools.partial(mix.paste, dims=(2, 3))
    for function, values in ((mix.blend, lam), (paste, bounds)):
        results = []
        for device in ("cpu", "cuda"):
            leaf = x.to(device).requires_grad_()
            mixed = function(leaf, partner.to(device), values.to(device))
            assert mixed.is_contiguous(memory_format=memory_format)
            mixed.backward(upstream.to(device))
            results.append((mixed.detach().cpu(), leaf.grad.cpu()))
        bound = {torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
        for cpu, cuda in zip(*results, strict=True):
            torch.testing.assert_close(cuda, cpu, atol=bound, rtol=bound)


def step(net, imix, views, loss_name, dtype):
    """One training step: mix, embed, contrast, gradients."""
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        x, labels = imix(views[0])
        first, second = (net(batch.flatten(1)) for batch in (x, views[1]))
        if loss_name == "nce":
            loss = imix_nce_loss(first, second, labels)
        else:
            loss = imix_ntxent_loss(first, first.flip(0), second, second.flip(0), labels)
    net.zero_grad(set_to_none=False)
    loss.backward()
    return loss.detach()


@pytest.fixture
def parts():
    net = torch.nn.Sequential(torch.nn.Linear(3 * 16 * 16, 256), torch.nn.ReLU(), torch.nn.Linear(256, 128)).cuda()
    return net, torch.randn(2, 96, 3, 16, 16, device="cuda")


@pytest.mark.parametrize("mode", ["mixup", "cutmix"])
@pytest.mark.parametrize("loss_name", ["nce", "ntxent"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_step_never_waits(mode, loss_name, dtype, parts):
    net, views = parts
    imix = IMix(mode=mode)
    step(net, imix, views, loss_name, dtype)  # compiles
    with no_waiting():
        loss = step(net, imix, views, loss_name, dtype)
    assert loss.isfinite()


@pytest.mark.parametrize("mode", ["mixup", "cutmix"])
@pytest.mark.parametrize("loss_name", ["nce", "ntxent"])
def test_a_step_is_captured_in_a_graph(mode, loss_name, parts):
    net, views = parts
    imix = IMix(mode=mode)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(net, imix, views, loss_name, torch.bfloat16)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(net, imix, views, loss_name, torch.bfloat16)
    losses = set()
    for _ in range(4):
        graph.replay()
        losses.add(loss.item())
        assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
    assert len(losses) > 1, "each replay draws other lambdas"


@pytest.mark.parametrize("mode", ["mixup", "cutmix"])
@pytest.mark.parametrize("loss_name", ["nce", "ntxent"])
def test_a_step_is_one_graph_of_the_compiler(mode, loss_name, parts):
    net, views = parts
    imix = IMix(mode=mode)

    @torch.compile(fullgraph=True, dynamic=True)
    def forward(first_view, second_view):
        x, labels = imix(first_view)
        first, second = net(x.flatten(1)), net(second_view.flatten(1))
        if loss_name == "nce":
            return imix_nce_loss(first, second, labels)
        return imix_ntxent_loss(first, first.flip(0), second, second.flip(0), labels)

    for n in (96, 50):
        net.zero_grad()
        forward(views[0, :n], views[1, :n]).backward()
        assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_second_card_is_used_where_the_tensors_are():
    query = unit(100, 64, torch.bfloat16).to("cuda:1").requires_grad_()
    imix_nce_loss(query, query.detach()).backward()
    x, _ = IMix()(torch.randn(8, 3, 8, 8, device="cuda:1"))
    assert query.grad.device == x.device == torch.device("cuda:1")
