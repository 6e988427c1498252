"""The package among PyTorch's other parts: precisions, modes, copies, checkpoints, loaders and processes."""

import copy
import io
import pickle
import sys

import dense
import pytest
import torch
from torch import multiprocessing as mp
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, default_collate
from torch.utils.data._utils.pin_memory import pin_memory

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
    use_backend,
)


def labels_of(n):
    return VirtualLabels(0.5 + 0.5 * torch.rand(n), torch.randperm(n))


def all_losses(q, k, labels):
    """Every loss on the same rows, by name."""
    classes = torch.arange(len(q)) % 3
    negatives = torch.randn(5, q.shape[1], generator=torch.Generator().manual_seed(5)).to(q.dtype)
    return {
        "npair": imix_nce_loss(q, k, labels),
        "moco": imix_nce_loss(q, k.detach(), labels, negatives=negatives),
        "ntxent": imix_ntxent_loss(q, q.roll(1, 0), k, k.roll(1, 0), labels),
        "supcon": imix_supcon_loss(q, k, classes, labels),
        "byol": imix_byol_loss(q, k, labels),
        "wrapped": IMixLoss(lambda a, b: (a - b).square().sum(1))(q, k, labels).mean(),
    }


def all_dense(q, k, labels):
    classes = torch.arange(len(q)) % 3
    negatives = torch.randn(5, q.shape[1], generator=torch.Generator().manual_seed(5)).to(q.dtype)
    lam, partner = labels
    pairs = lam * (q - k).square().sum(1) + (1 - lam) * (q - k[partner]).square().sum(1)
    return {
        "npair": dense.nce(q, k, labels).mean(),
        "moco": dense.nce(q, k.detach(), labels, negatives=negatives).mean(),
        "ntxent": dense.ntxent(q, q.roll(1, 0), k, k.roll(1, 0), labels).mean(),
        "supcon": dense.supcon(q, k, classes, labels).mean(),
        "byol": dense.byol(q, k, labels).mean(),
        "wrapped": pairs.mean(),
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_trains_as_float32_does(dtype):
    """GradScaler scales, unscales and steps; the gradients agree with float32's to half precision."""
    torch.manual_seed(1)
    encoder, (view_1, view_2), labels = nn.Linear(12, 8), torch.randn(2, 16, 12), labels_of(16)
    expected = {}
    for name, loss in all_dense(encoder(view_1), encoder(view_2), labels).items():
        (grad,) = torch.autograd.grad(loss, encoder.weight, retain_graph=True)
        expected[name] = loss, grad
    with torch.autocast("cpu", dtype=dtype):
        losses = all_losses(encoder(view_1), encoder(view_2), labels)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for name, loss in losses.items():
        wanted, wanted_grad = expected[name]
        optimizer = torch.optim.SGD(encoder.parameters(), lr=0.0)
        optimizer.zero_grad()
        scaler.scale(loss).backward(retain_graph=True)
        scaler.unscale_(optimizer)
        error = (encoder.weight.grad - wanted_grad).norm() / wanted_grad.norm()
        assert abs(loss.item() - wanted.item()) < 2e-2 * abs(wanted.item()), name
        assert error < 3e-2, name
        scaler.step(optimizer)
        scaler.update()


def test_scaler_skips_the_step_of_an_overflow():
    encoder = nn.Linear(4, 3)
    before = copy.deepcopy(encoder.state_dict())
    optimizer, scaler = torch.optim.SGD(encoder.parameters(), lr=1.0), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    rows = torch.randn(6, 4)
    rows[0, 0] = torch.inf
    scaler.scale(imix_nce_loss(encoder(rows), encoder(torch.randn(6, 4)))).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_deterministic_algorithms():
    torch.use_deterministic_algorithms(True)
    try:
        grads = []
        for _ in range(2):
            torch.manual_seed(3)
            q, k = torch.randn(40, 6, requires_grad=True), torch.randn(40, 6, requires_grad=True)
            x, labels = IMix()(q)
            IMix(mode="cutmix")(torch.randn(4, 3, 5, 5))
            InputMix()(q)
            grads.append(torch.autograd.grad(sum(all_losses(x, k, labels).values()), (q, k)))
        for one, other in zip(*grads, strict=True):
            assert torch.equal(one, other)
    finally:
        torch.use_deterministic_algorithms(False)


def test_anomaly_mode():
    q, k = torch.randn(7, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    with torch.autograd.detect_anomaly(check_nan=True):
        x, labels = IMix()(q)
        sum(all_losses(x, k, labels).values()).backward()
    assert q.grad.isfinite().all()
    assert k.grad.isfinite().all()


def test_inference_and_no_grad_modes():
    q, k, labels = torch.randn(7, 3), torch.randn(7, 3), labels_of(7)
    expected = all_losses(q, k, labels)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for name, loss in all_losses(q.requires_grad_(), k, labels).items():
                assert not loss.requires_grad
                torch.testing.assert_close(loss, expected[name], msg=name)


def modules():
    queue = NegativeQueue(6, 2)
    queue.enqueue(torch.randn(4, 2))
    return [
        IMix(0.5),
        IMix((1.0, 2.0), "cutmix", per_sample=True),
        IMix(generator=torch.Generator().manual_seed(9)),
        InputMix(2, generator=torch.Generator().manual_seed(9)),
        IMixLoss(nn.CrossEntropyLoss(), on="logits"),
        queue,
    ]


def behaviour(module):
    """What a module does next, from a fixed state of the global generator."""
    torch.manual_seed(4)
    x = torch.randn(6, 6)
    if isinstance(module, NegativeQueue):
        module.enqueue(torch.arange(6.0).view(3, 2))
        return module.negatives.clone()
    if isinstance(module, IMixLoss):
        return module(x, labels_of(6))
    return module(x[:, None] if getattr(module, "mode", "") == "cutmix" else x)


@pytest.mark.parametrize("index", range(len(modules())))
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_behaves_as_its_original(index, how):
    module = modules()[index]
    if how == "deepcopy":
        twin = copy.deepcopy(module)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(module))
    else:
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert repr(twin) == repr(module)
    torch.testing.assert_close(behaviour(twin), behaviour(module), rtol=0, atol=0)


def test_generators_of_copies_are_their_own():
    imix = IMix(generator=torch.Generator().manual_seed(2))
    twin = copy.deepcopy(imix)
    x = torch.zeros(8, 1)
    first = imix(x)[1]
    imix(x)
    assert torch.equal(twin(x)[1].lam, first.lam)


def test_labels_survive_pickle_and_copy():
    labels = labels_of(5)
    for twin in (pickle.loads(pickle.dumps(labels)), copy.deepcopy(labels)):
        assert isinstance(twin, VirtualLabels)
        assert all(torch.equal(one, other) for one, other in zip(twin, labels, strict=True))


def test_queue_state_loads_with_weights_only():
    queue, file = NegativeQueue(6, 2), io.BytesIO()
    for _ in range(2):
        queue.enqueue(torch.randn(4, 2))
    torch.save(queue.state_dict(), file)
    file.seek(0)
    twin = NegativeQueue(6, 2)
    twin.load_state_dict(torch.load(file, weights_only=True))
    for each in (queue, twin):
        torch.manual_seed(0)
        each.enqueue(torch.randn(3, 2))
    assert torch.equal(twin.negatives, queue.negatives)
    assert len(twin.negatives) == 6


def test_half_filled_queue_state_keeps_its_fill():
    queue, twin = NegativeQueue(6, 2), NegativeQueue(6, 2)
    queue.enqueue(torch.randn(4, 2))
    twin.load_state_dict(queue.state_dict())
    assert torch.equal(twin.negatives, queue.negatives)
    with pytest.raises(RuntimeError, match="size mismatch"):
        NegativeQueue(5, 2).load_state_dict(queue.state_dict())


# Fork is safe with PyTorch on Linux alone. A fork server's processes unpickle what spawned ones do, and start sooner.
SPAWN = pytest.param("spawn", marks=pytest.mark.slow)
CONTEXTS = ["fork", "forkserver", SPAWN] if sys.platform == "linux" else ["spawn"]


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        return torch.full((3,), float(index))


class MixingCollate:
    def __init__(self, imix=None):
        self.imix = imix or IMix()

    def __call__(self, samples):
        return self.imix(default_collate(samples))


@pytest.mark.parametrize("context", CONTEXTS)
def test_mixing_in_loader_workers(context):
    loader = DataLoader(Numbers(), 8, num_workers=2, collate_fn=MixingCollate(), multiprocessing_context=context)
    torch.manual_seed(0)
    batches = list(loader)
    assert len(batches) == 4
    for (mixed, labels), first in zip(batches, range(0, 32, 8), strict=True):
        assert isinstance(labels, VirtualLabels)
        raw = torch.arange(first, first + 8.0)[:, None].expand(8, 3)
        expected = labels.lam[:, None] * raw + (1 - labels.lam[:, None]) * raw[labels.partner]
        torch.testing.assert_close(mixed, expected)
    lams = torch.stack([labels.lam for _, labels in batches])
    assert len(lams.unique()) == lams.numel()  # Nobody drew what another worker, or the batch before, had drawn.
    torch.manual_seed(0)
    for (_, labels), (_, again) in zip(batches, loader, strict=True):
        assert torch.equal(labels.lam, again.lam)


def test_labels_pass_through_collate_and_pinning():
    samples = [VirtualLabels(torch.tensor(0.5 + index / 10), torch.tensor(index)) for index in range(3)]
    labels = default_collate(samples)
    assert isinstance(labels, VirtualLabels)
    assert labels.lam.shape == (3,)
    if torch.cuda.is_available():
        pinned = pin_memory(labels)
        assert isinstance(pinned, VirtualLabels)
        assert pinned.lam.is_pinned()


def compute_in_child(pipe, q, k, labels):
    pipe.send([loss.item() for loss in all_losses(q, k, labels).values()])


@pytest.mark.parametrize("context", CONTEXTS)
def test_losses_in_another_process(context):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # A thread pool does not survive a fork.
    try:
        q, k, labels = torch.randn(7, 3), torch.randn(7, 3), labels_of(7)
        ours, theirs = mp.get_context(context).Pipe()
        child = mp.get_context(context).Process(target=compute_in_child, args=(theirs, q, k, labels))
        child.start()
        assert ours.poll(300)
        expected = [loss.item() for loss in all_losses(q, k, labels).values()]
        assert ours.recv() == pytest.approx(expected, rel=1e-6)
        child.join()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_blocked_version_forced(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    q, k = (torch.randn(33, 5, dtype=torch.float64, device=device, requires_grad=True) for _ in range(2))
    labels = VirtualLabels(0.5 + 0.5 * torch.rand(33, device=device), torch.randperm(33, device=device))
    with use_backend("torch"):
        loss = imix_nce_loss(q, k, labels)
    expected = dense.nce(q.cpu(), k.cpu(), labels.to("cpu")).mean()
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-10, atol=0)
    for grad, wanted in zip(torch.autograd.grad(loss, (q, k)), torch.autograd.grad(expected, (q, k)), strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-10, atol=1e-13)


DRAWS = {
    "mixup": lambda generator, device: IMix(generator=generator)(torch.zeros(6, 2, device=device))[1],
    "mixup of a batch": lambda generator, device: IMix(0.3, per_sample=False, generator=generator)(
        torch.zeros(6, 2, device=device)
    )[1],
    "cutmix": lambda generator, device: IMix(mode="cutmix", generator=generator)(
        torch.zeros(6, 1, 8, 8, device=device)
    )[1],
    "inputmix": lambda generator, device: InputMix(2, generator=generator)(
        torch.arange(12.0, device=device).view(6, 2)
    ),
}


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


def global_state(device):
    return torch.cuda.get_rng_state() if device == "cuda" else torch.random.get_rng_state()


@pytest.mark.parametrize("name", DRAWS)
def test_a_generator_decides_alone(name, device):
    draw = DRAWS[name]
    before = global_state(device)
    first = draw(torch.Generator(device).manual_seed(3), device)
    assert torch.equal(global_state(device), before)
    torch.rand(5, device=device)
    torch.testing.assert_close(draw(torch.Generator(device).manual_seed(3), device), first, rtol=0, atol=0)
    generator = torch.Generator(device).manual_seed(3)
    draw(generator, device)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(draw(generator, device), first, rtol=0, atol=0)


@pytest.mark.parametrize("name", DRAWS)
def test_without_a_generator_the_global_one_moves_on(name, device):
    torch.manual_seed(11)
    before = global_state(device)
    first = DRAWS[name](None, device)
    assert not torch.equal(global_state(device), before)
    torch.manual_seed(11)
    torch.testing.assert_close(DRAWS[name](None, device), first, rtol=0, atol=0)


CHECKPOINTED = {
    "mixup": lambda g: IMix(0.7, generator=g),
    "cutmix": lambda g: IMix(mode="cutmix", dims=(1,), generator=g),
    "inputmix": lambda g: InputMix(2, generator=g),
}


class MixedHalfway(nn.Module):
    """A network that mixes what its first layer made, drops some of it, mixes again, and has layers behind."""

    def __init__(self, make, generator):
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 4)
        self.mix, self.drop = make(generator), nn.Dropout(0.3)

    def mixed(self, x):
        result = self.mix(x)
        return result[0] if isinstance(result, tuple) else result

    def forward(self, x):
        x = self.drop(self.mixed(self.first(x).tanh()))
        return self.last(self.mixed(x).tanh()).tanh()


def step_by_step(name, run, together, reseeded=False):
    """The losses' gradients after three steps of two forward passes each, which wait for a backward pass each."""
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(2)
    net, grads = MixedHalfway(CHECKPOINTED[name], generator).double(), []
    batches = torch.randn(3, 2, 7, 6, dtype=torch.float64)
    for pair in batches:
        outs = []
        for x in pair:
            if reseeded:
                torch.manual_seed(5)
            torch.rand(3)  # PyTorch's own generator: what a checkpoint restores.
            outs.append(run(net, x.clone().requires_grad_()).square().mean())
        for out in [sum(outs)] if together else reversed(outs):
            out.backward()
        grads.append([parameter.grad.clone() for parameter in net.parameters()])
    return grads, generator.get_state()


@pytest.mark.parametrize("name", CHECKPOINTED)
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("together", [True, False])
def test_a_recomputation_draws_the_same_mix(name, use_reentrant, together):
    def checkpointed(net, x):
        return checkpoint(net, x, use_reentrant=use_reentrant)

    # The reference has the checkpointed run's dropout, so it moves PyTorch's generator as that does: one number a draw.
    def plain(net, x):
        before = net.mix.forward

        def forward(x):
            result = before(x)
            torch.empty((), dtype=torch.int64).random_()
            return result

        net.mix.forward = forward
        try:
            return net(x)
        finally:
            net.mix.forward = before

    wanted, wanted_state = step_by_step(name, plain, together)
    ours, state = step_by_step(name, checkpointed, together)
    assert torch.equal(state, wanted_state)
    for ours_step, wanted_step in zip(ours, wanted, strict=True):
        for one, other in zip(ours_step, wanted_step, strict=True):
            torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_recomputation_that_cannot_know_its_draw_is_refused(use_reentrant):
    def run(net, x):
        return checkpoint(net, x, use_reentrant=use_reentrant)

    with pytest.raises(RuntimeError, match=r"^generator must be None in a checkpointed part"):
        step_by_step("mixup", run, False, reseeded=True)
    with pytest.raises(RuntimeError, match=r"^generator must be None in a checkpointed part"):
        step_by_step(
            "mixup", lambda net, x: checkpoint(net, x, use_reentrant=use_reentrant, preserve_rng_state=False), False
        )


def test_checkpoints_need_no_generator():
    net, x = MixedHalfway(lambda g: IMix(), None).double(), torch.randn(7, 6, dtype=torch.float64)
    grads = []
    for run in (net, lambda x: checkpoint(net, x, use_reentrant=False)):
        torch.manual_seed(3)
        net.zero_grad()
        run(x).sum().backward()
        grads.append(net.first.weight.grad)
    torch.testing.assert_close(*grads)


def inherited(make):
    """A collate function whose generator was made in the main process."""
    return MixingCollate(make(torch.Generator().manual_seed(4)))


def test_modules_that_share_a_generator_share_it_when_copied():
    generator = torch.Generator().manual_seed(8)
    torch.rand(5, generator=generator)
    both = nn.ModuleList([IMix(generator=generator), InputMix(generator=generator)])
    for one, other in (copy.deepcopy(both), pickle.loads(pickle.dumps(both))):
        assert one.generator is other.generator
        assert one.generator is not generator
        assert torch.equal(one.generator.get_state(), generator.get_state())


class Unseeded:
    """A collate function that makes its mix in the worker."""

    def __call__(self, samples):
        return IMix(generator=torch.Generator().manual_seed(4))(default_collate(samples))


@pytest.mark.parametrize("context", CONTEXTS)
def test_workers_and_epochs_draw_differently_from_one_generator(context):

    def lams(collate, seed, epochs=1):
        torch.manual_seed(seed)
        loader = DataLoader(Numbers(), 8, num_workers=2, collate_fn=collate, multiprocessing_context=context)
        return torch.stack([labels.lam for _ in range(epochs) for _, (_, labels) in zip(range(4), loader, strict=True)])

    collate = inherited(lambda g: IMix(generator=g))
    two_epochs = lams(collate, 0, epochs=2)
    assert len(two_epochs.unique()) == two_epochs.numel()
    assert torch.equal(lams(collate, 0), two_epochs[:4])  # The loader's seed and the generator's state decide.
    assert not torch.equal(lams(collate, 1), two_epochs[:4])
    other = inherited(lambda g: IMix(generator=torch.Generator().manual_seed(5)))
    assert not torch.equal(lams(other, 0), two_epochs[:4])
    own = lams(Unseeded(), 0)
    assert torch.equal(own, own[:1].expand(4, -1))  # A generator made in the worker is the worker's affair.
    in_main = [IMix(generator=torch.Generator().manual_seed(4))(torch.randn(8, 3))[1].lam for _ in range(2)]
    assert torch.equal(*in_main)
    assert torch.equal(in_main[0], own[0])
