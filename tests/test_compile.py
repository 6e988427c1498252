"""``torch.compile(fullgraph=True, dynamic=True)``: one graph, for any batch size, with the numbers of eager mode."""

import copy
import functools

import pytest
import torch
from torch import nn

from imix_aug import (
    IMix,
    IMixLoss,
    InputMix,
    NegativeQueue,
    VirtualLabels,
    imix_byol_loss,
    imix_nce_loss,
    imix_ntxent_loss,
    imix_supcon_loss,
)

SIZES = (6, 9, 14)  # None of them a width below: equal sizes are taken for one another when a graph is traced.
IS_2_4 = torch.__version__.startswith("2.4.")
BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def _one_graph():
    torch._dynamo.reset()
    with (
        torch._dynamo.config.patch(error_on_recompile=True),
        torch._inductor.config.patch(fallback_random=True),
    ):
        yield
    torch._dynamo.reset()


def compiled(function, backend):
    return torch.compile(function, fullgraph=True, dynamic=True, backend=backend)


def npair(q1, q2, k1, k2, labels, temperature):
    return imix_nce_loss(q1, k1, labels, temperature=temperature)


def npair_of_float(q1, q2, k1, k2, labels, temperature):
    return imix_nce_loss(q1, k1, labels)


def npair_by_row(q1, q2, k1, k2, labels, temperature):
    return imix_nce_loss(q1, k1, labels, temperature=temperature, reduction="none").square().mean()


def moco(q1, q2, k1, k2, labels, temperature):
    return imix_nce_loss(q1, k1.detach(), labels, temperature=temperature, negatives=k2)


def ntxent(q1, q2, k1, k2, labels, temperature):
    return imix_ntxent_loss(q1, q2, k1, k2, labels, temperature=temperature)


def supcon(q1, q2, k1, k2, labels, temperature):
    classes = torch.arange(q1.shape[0], device=q1.device) % 3
    return imix_supcon_loss(q1, k1, classes, labels, temperature=temperature)


def byol(q1, q2, k1, k2, labels, temperature):
    return imix_byol_loss(q1, k1, labels)


squares, cross_entropy = (
    IMixLoss(lambda a, b: (a - b).square().sum(dim=1)),
    IMixLoss(nn.CrossEntropyLoss(), on="logits"),
)


def wrapped_pairs(q1, q2, k1, k2, labels, temperature):
    return squares(q1, k1, labels).mean()


def wrapped_logits(q1, q2, k1, k2, labels, temperature):
    return cross_entropy(q1 @ k1.T, labels)


LOSSES = [npair, npair_of_float, npair_by_row, moco, ntxent, supcon, byol, wrapped_pairs]
if not IS_2_4:  # Which cannot trace a look into a module.
    LOSSES.append(wrapped_logits)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_loss(loss, backend):
    function = compiled(loss, backend)
    for n in SIZES:
        rows = [torch.randn(n, 4, requires_grad=True) for _ in range(4)]
        labels = VirtualLabels(0.5 + 0.5 * torch.rand(n), torch.randperm(n))
        temperature = torch.tensor(0.3, requires_grad=True)
        inputs = [*rows, temperature]
        value, expected = function(*rows, labels, temperature), loss(*rows, labels, temperature)
        torch.testing.assert_close(value, expected)
        grads = torch.autograd.grad(value, inputs, allow_unused=True)
        for grad, wanted in zip(grads, torch.autograd.grad(expected, inputs, allow_unused=True), strict=True):
            if wanted is None:
                assert grad is None or not grad.any()
            else:
                torch.testing.assert_close(grad, wanted)


MIXES = {
    "mixup": (IMix(alpha=1.0), (3, 5)),
    "mixup of a batch": (IMix(alpha=(0.5, 2.0), per_sample=False), (7,)),
    "cutmix": (IMix(mode="cutmix"), (3, 5, 7)),
    "cutmix of a span": (IMix(mode="cutmix", per_sample=True), (2, 11)),
    "inputmix": (InputMix(num_aux=2), (5,)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MIXES)
def test_mix(name, backend):
    mix, shape = MIXES[name]
    function = compiled(mix, backend)
    for n in SIZES:
        x = torch.randn(n, *shape, requires_grad=True)
        torch.manual_seed(n)
        outcome = function(x)
        torch.manual_seed(n)
        expected = mix(x)
        torch.testing.assert_close(outcome, expected)
        mixed, wanted = (each if isinstance(each, torch.Tensor) else each[0] for each in (outcome, expected))
        torch.testing.assert_close(torch.autograd.grad(mixed.sum(), x), torch.autograd.grad(wanted.sum(), x))


def test_mix_of_a_dict():
    imix = IMix()
    function = compiled(imix, "aot_eager")
    for n in SIZES:
        batch = {"sound": torch.randn(n, 1, 30), "age": torch.randn(n)}
        torch.manual_seed(n)
        mixed, labels = function(batch)
        torch.manual_seed(n)
        expected, expected_labels = imix(batch)
        torch.testing.assert_close(mixed, expected)
        assert isinstance(labels, VirtualLabels)
        torch.testing.assert_close(labels, expected_labels)


@pytest.mark.parametrize("backend", BACKENDS)
def test_whole_step(backend):
    """Eager mode follows with the draws of the compiled graph, which Inductor makes in an order of its own."""
    encoder = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 4))
    twin, imix = copy.deepcopy(encoder), IMix(alpha=1.0)

    @functools.partial(compiled, backend=backend)
    def step(view_1, view_2):
        x, labels = imix(view_1)
        return imix_nce_loss(encoder(x), encoder(view_2), labels), labels

    for n in SIZES:
        view_1, view_2 = torch.randn(2, n, 5)
        loss, labels = step(view_1, view_2)
        lam = labels.lam[:, None]
        x = lam * view_1 + (1 - lam) * view_1[labels.partner]
        expected = imix_nce_loss(twin(x), twin(view_2), labels)
        torch.testing.assert_close(loss, expected)
        for net, value in ((encoder, loss), (twin, expected)):
            parameters = list(net.parameters())
            with torch.no_grad():
                for parameter, grad in zip(parameters, torch.autograd.grad(value, parameters), strict=True):
                    parameter -= 0.1 * grad
        torch.testing.assert_close(list(encoder.parameters()), list(twin.parameters()))


def test_queue_between_compiled_steps():
    """The queue is filled outside the graph; while it fills up the number of negatives changes, and no graph does."""
    queue = NegativeQueue(64, 4)
    queue.enqueue(torch.randn(7, 4))
    loss = compiled(lambda q, k, negatives: imix_nce_loss(q, k, negatives=negatives), "aot_eager")
    for n in SIZES:
        q, k = torch.randn(n, 4, requires_grad=True), torch.randn(n, 4)
        negatives = queue.negatives
        torch.testing.assert_close(loss(q, k, negatives), imix_nce_loss(q, k, negatives=negatives))
        queue.enqueue(k)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast(dtype):
    function = compiled(npair_of_float, "aot_eager")
    for n in SIZES:
        rows = [torch.randn(n, 4, requires_grad=True) for _ in range(4)]
        labels = VirtualLabels(0.5 + 0.5 * torch.rand(n), torch.randperm(n))
        with torch.autocast("cpu", dtype=dtype):
            value, expected = function(*rows, labels, None), npair_of_float(*rows, labels, None)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(torch.autograd.grad(value, rows[0]), torch.autograd.grad(expected, rows[0]))


def test_bad_input_is_refused_while_compiling():
    function = torch.compile(imix_nce_loss, backend="aot_eager")
    # torch 2.4 traces the checks one by one after the refusal, and the second call of one is a recompilation.
    with (
        torch._dynamo.config.patch(error_on_recompile=not IS_2_4),
        pytest.raises(ValueError, match="key must have the shape of query"),
    ):
        function(torch.randn(4, 3), torch.randn(5, 3))


def test_export_of_a_trained_encoder():
    encoder = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))
    imix, optimizer = IMix(), torch.optim.SGD(encoder.parameters(), lr=0.1)
    for _ in range(3):
        x, labels = imix(torch.randn(6, 5))
        optimizer.zero_grad()
        imix_nce_loss(encoder(x), encoder(torch.randn(6, 5)), labels).backward()
        optimizer.step()
    batch = torch.randn(3, 5)
    exported = torch.export.export(encoder.eval(), (batch,))
    assert not [node for node in exported.graph.nodes if "imix" in str(node.target)]
    torch.testing.assert_close(exported.module()(batch), encoder(batch))


@pytest.mark.skipif(IS_2_4, reason="torch 2.4 cannot trace torch.utils._pytree's paths")
@pytest.mark.parametrize("mix", [IMix(skip="id"), IMix(only="x", mode="cutmix", dims=(1,)), InputMix(skip=("id",))])
def test_a_part_of_a_batch_compiles_without_graph_break(mix):
    batch = {"x": torch.randn(5, 4, 3), "id": torch.arange(5)}
    result = torch.compile(mix, fullgraph=True, backend="aot_eager")(batch)
    mixed = result[0] if isinstance(mix, IMix) else result
    assert mixed["id"].tolist() == list(range(5))
    assert mixed["x"].shape == (5, 4, 3)
