"""The mixing operators, as PyTorch sees them: on CPU here, and under the interpreter in ``test_triton.py``."""

import itertools

import pytest
import torch

from imix_aug import IMix
from imix_aug._mixing import operators as mix

SHAPES = [(5,), (6, 7), (4, 2, 9), (5, 3, 4, 6), (3, 2, 3, 4, 5)]


def boxes(count, sizes):
    return torch.stack([torch.randint(size + 1, (count, 2)).sort(dim=1).values for size in sizes], dim=1)


def one_by_one(x, partner, lam):
    return torch.stack([lam[i % len(lam)] * x[i] + (1 - lam[i % len(lam)]) * x[j] for i, j in enumerate(partner)])


def pasted(x, partner, bounds, dims):
    result = x.clone()
    for i, j in enumerate(partner):
        box = [slice(None)] * (x.dim() - 1)
        for dim, bound in zip(dims, bounds[i % len(bounds)].tolist(), strict=True):
            box[dim - 1] = slice(*bound)
        box = tuple(box)
        result[i][box] = x[j][box]
    return result


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_blend_in_blocks_of_any_size(shape, per_sample, dtype, monkeypatch):
    x = torch.randn(shape, dtype=torch.promote_types(dtype, torch.float64)).to(dtype)
    partner, lam = torch.randperm(shape[0]), torch.rand(shape[0] if per_sample else 1)
    wide = x.to(torch.promote_types(dtype, torch.float64))
    wanted = one_by_one(wide, partner, lam.double())
    bound = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float64: 1e-7}.get(dtype, 1e-6)
    for size in (1, 100, 1 << 20):
        monkeypatch.setattr(mix, "_BLOCK_BYTES", size)
        mixed = mix.blend(x, partner, lam)
        assert mixed.dtype == dtype
        torch.testing.assert_close(mixed.to(wide.dtype), wanted, atol=bound, rtol=bound)


@pytest.mark.parametrize("shape", [(4, 2, 9), (5, 3, 4, 6)])
@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize(
    "dtype",
    ["bfloat16", "float32", "uint8", "bool", "complex64", "uint16", "uint64", "float8_e4m3fn", "float8_e5m2"],
)
def test_paste_keeps_every_bit(shape, per_sample, dtype):
    dtype = getattr(torch, dtype)
    bits = torch.randint(0, 2 if dtype == torch.bool else 100, (*shape, dtype.itemsize), dtype=torch.uint8)
    x = bits.view(dtype).squeeze(-1)
    partner = torch.randperm(shape[0])
    for count in range(1, len(shape)):
        for dims in itertools.combinations(range(1, len(shape)), count):
            bounds = boxes(shape[0] if per_sample else 1, [shape[dim] for dim in dims])
            wanted = pasted(bits, partner, bounds, dims)
            ours = mix.paste(x, partner, bounds, dims)
            assert ours.dtype == dtype
            assert torch.equal(ours.contiguous().unsqueeze(-1).view(torch.uint8), wanted)


@pytest.mark.parametrize("per_sample", [True, False])
def test_gradients_of_any_order(per_sample):
    x = torch.randn(5, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    partner, count = torch.tensor([2, 0, 1, 4, 3]), 5 if per_sample else 1
    lam, bounds = torch.rand(count), boxes(count, (3, 4))
    for function in (lambda x: mix.blend(x, partner, lam), lambda x: mix.paste(x, partner, bounds, (2, 3))):
        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(function, x)
        # Squaring makes the second derivative a number to compare, and not the zero of a linear function.
        (first,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        matrix = torch.autograd.functional.jacobian(function, x.detach()).reshape(x.numel(), x.numel())
        gram = 2 * matrix.T @ matrix
        torch.testing.assert_close(second.flatten(), 2 * gram @ gram @ x.detach().flatten())


def test_the_operators_are_registered_as_pytorch_asks():
    x, partner = torch.randn(5, 3, 4, 6, requires_grad=True), torch.randperm(5)
    lam, bounds = torch.rand(5), boxes(5, (4, 6))
    images = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    for batch in (x, images, x.detach().transpose(0, 1)[:, :3].transpose(0, 1)):
        n = len(batch)
        order = partner.argsort()[:n].argsort()
        torch.library.opcheck(mix._blend, (batch, order, lam[:n], 1 - lam[:n]))
        torch.library.opcheck(mix._paste, (batch, order, bounds[:n], None, [2, 3]))
        torch.library.opcheck(mix._paste, (batch, order, bounds[:n], bounds[:n].flip(0), [2, 3]))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mode", ["mixup", "cutmix"])
def test_one_graph_and_one_operator(mode, memory_format):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    imix = torch.compile(IMix(mode=mode), fullgraph=True, dynamic=True, backend=backend)
    for n in (5, 8):
        x = torch.randn(n, 3, 6, 6).to(memory_format=memory_format).requires_grad_()
        mixed, labels = imix(x)
        mixed.sum().backward()
        assert mixed.is_contiguous(memory_format=memory_format)
        share = labels.lam if mode == "mixup" else torch.ones(n)
        if mode == "mixup":
            received = torch.zeros(n).scatter_add_(0, labels.partner, 1 - share)
            torch.testing.assert_close(x.grad.mean(dim=(1, 2, 3)), share + received)
    assert len(graphs) == 1
    calls = [str(node.target) for node in graphs[0].graph.nodes if "imix_aug" in str(node.target)]
    assert calls == ["imix_aug.blend.default" if mode == "mixup" else "imix_aug.paste.default"]


def test_a_batch_on_an_absent_card_can_be_traced():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(8, 3, 32, 32, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        partner, lam = torch.empty(8, dtype=torch.int64, device="cuda"), torch.empty(8, device="cuda")
        mixed = mix.blend(x, partner, lam)
    assert mixed.shape == x.shape
    assert mixed.dtype == x.dtype
    assert mixed.device.type == "cuda"
    assert mixed.stride() == x.stride()
