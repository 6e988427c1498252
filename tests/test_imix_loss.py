import functools
from collections import deque

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from imix_aug import IMix, IMixLoss, VirtualLabels, imix_nce_loss, imix_supcon_loss


def npair(a, b, reduction="mean"):
    return F.cross_entropy(F.normalize(a) @ F.normalize(b).T / 0.2, torch.arange(len(a)), reduction=reduction)


@pytest.fixture
def batch():
    a, b = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    return a, b, VirtualLabels(torch.rand(6) / 2 + 0.5, torch.randperm(6))


def one_lambda(labels, lam=0.7):
    return VirtualLabels(torch.full((len(labels.lam),), lam), labels.partner)


def by_hand(criterion, a, b, labels):
    lam = labels.lam.double()
    return lam * criterion(a, b) + (1 - lam) * criterion(a, b[labels.partner])


def test_pairs_with_a_loss_a_row(batch):
    a, b, labels = batch

    def criterion(a, b):
        return npair(a, b, "none")

    torch.testing.assert_close(IMixLoss(criterion)(a, b, labels), by_hand(criterion, a, b, labels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_result_has_the_criterions_dtype(batch, dtype, reduction):
    a, b, labels = batch
    value = IMixLoss(lambda a, b: npair(a, b, reduction).to(dtype))(a, b, one_lambda(labels))
    assert value.dtype == dtype


def test_pairs_with_a_scalar_and_one_lambda(batch):
    a, b, labels = batch
    labels = one_lambda(labels)
    value = IMixLoss(npair)(a, b, labels)
    assert value.shape == ()
    torch.testing.assert_close(value, by_hand(npair, a, b, labels)[0])
    torch.testing.assert_close(value, imix_nce_loss(a, b, labels))


def test_a_batch_of_one_row(batch):
    a, b, _ = batch
    labels = VirtualLabels(torch.tensor([0.7]), torch.tensor([0]))
    torch.testing.assert_close(IMixLoss(F.mse_loss)(a[:1], b[:1], labels), F.mse_loss(a[:1], b[:1]))


def test_pairs_with_a_scalar_refuse_several_lambdas(batch):
    a, b, labels = batch
    with pytest.raises(ValueError, match=r"labels must hold one lambda .* IMix\(per_sample=False\)"):
        IMixLoss(npair)(a, b, labels)


def test_labels_of_imix_per_batch_are_accepted():
    x, labels = IMix(per_sample=False)(torch.randn(6, 4))
    assert IMixLoss(npair)(x, torch.randn(6, 4), labels).shape == ()


def test_a_lambda_per_batch_survives_a_copy(batch):
    a, b, labels = batch
    labels = one_lambda(labels)
    assert labels.lam.stride(0) != 0
    assert IMixLoss(npair)(a, b, labels).shape == ()


def test_without_labels_it_is_the_criterion(batch):
    a, b, _ = batch
    assert torch.equal(IMixLoss(npair)(a, b), npair(a, b))
    logits = a @ b.T
    criterion = nn.CrossEntropyLoss()
    assert torch.equal(IMixLoss(criterion, on="logits")(logits), criterion(logits, torch.arange(6)))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("negatives", [0, 5])
def test_logits_against_soft_targets(batch, reduction, smoothing, negatives):
    a, b, labels = batch
    logits = a @ torch.cat([b, torch.randn(negatives, 4, dtype=torch.float64)]).T
    criterion = nn.CrossEntropyLoss(reduction=reduction, label_smoothing=smoothing)
    expected = criterion(logits, labels.dense(6 + negatives).double())
    torch.testing.assert_close(
        IMixLoss(criterion, on="logits", extra_columns=negatives > 0)(logits, labels), expected, atol=1e-6, rtol=1e-6
    )
    assert criterion.reduction == reduction


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_log_probabilities_against_soft_targets(batch, reduction):
    a, b, labels = batch
    log_p = (a @ b.T).log_softmax(dim=1)
    losses = -(labels.dense().double() * log_p).sum(dim=1)
    expected = losses if reduction == "none" else getattr(losses, reduction)()
    value = IMixLoss(nn.NLLLoss(reduction=reduction), on="logits")(log_p, labels)
    torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"weight": torch.rand(6, dtype=torch.float64)}, {"ignore_index": 0}, {"ignore_index": 1}]
)
def test_a_cross_entropy_that_weighs_or_ignores_classes_needs_one_lambda(batch, settings):
    a, b, labels = batch
    criterion = nn.CrossEntropyLoss(**settings)
    with pytest.raises(ValueError, match="labels must hold one lambda"):
        IMixLoss(criterion, on="logits")(a @ b.T, labels)
    labels, logits = one_lambda(labels), a @ b.T
    expected = 0.7 * criterion(logits, torch.arange(6)) + 0.3 * criterion(logits, labels.partner)
    torch.testing.assert_close(IMixLoss(criterion, on="logits")(logits, labels), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["NTXentLoss", "DCLLoss", "NegativeCosineSimilarity"])
def test_lightlys_losses(batch, name):
    criterion = getattr(pytest.importorskip("lightly.loss"), name)()
    a, b, labels = batch
    a, b, labels = a.float(), b.float(), one_lambda(labels)
    expected = 0.7 * criterion(a, b) + 0.3 * criterion(a, b[labels.partner])
    torch.testing.assert_close(IMixLoss(criterion)(a, b, labels), expected)


def test_pytorch_metric_learnings_self_supervised_loss(batch):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    criterion = losses.SelfSupervisedLoss(losses.NTXentLoss())
    a, b, labels = batch
    a, b, labels = a.float(), b.float(), one_lambda(labels)
    expected = 0.7 * criterion(a, b) + 0.3 * criterion(a, b[labels.partner])
    torch.testing.assert_close(IMixLoss(criterion)(a, b, labels), expected)


class Bank(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how
        self.register_buffer("bank", torch.zeros(8, 4, dtype=torch.float64))
        self.loose = torch.zeros(8, 4, dtype=torch.float64)

    def forward(self, a, b):
        if self.how == "in place":
            self.bank[:6] = b.detach()
        elif self.how == "replaced":
            self.bank = torch.cat([b.detach(), self.bank])[:8]
        else:
            self.loose[:6] = b.detach()
        return npair(a, b)


@pytest.mark.parametrize("how", ["in place", "replaced", "unregistered"])
@pytest.mark.parametrize("wrap", [lambda bank: bank, lambda bank: nn.Sequential(bank)[0].forward])
def test_a_memory_bank_is_refused(batch, how, wrap):
    a, b, labels = batch
    with pytest.raises(ValueError, match=r"^criterion must not change its own buffers.*negatives="):
        IMixLoss(wrap(Bank(how)))(a, b, one_lambda(labels))


def test_lightlys_memory_bank_is_refused(batch):
    criterion = pytest.importorskip("lightly.loss").NTXentLoss(memory_bank_size=(16, 4))
    a, b, labels = batch
    with pytest.raises(ValueError, match="negatives="):
        IMixLoss(criterion)(a.float().requires_grad_(), b.float(), one_lambda(labels))


def fill_a_list(bank, b):
    bank.append(b.detach())


def fill_a_dict(bank, b):
    bank[len(bank)] = b.detach()


def fill_a_tensor(bank, b):
    bank[:6] = b.detach()


def fill_data(bank, b):
    bank.data[:6] = b.detach()


def fill_an_array(bank, b):
    bank[:6] = b.detach().numpy()


class Plain:
    def __init__(self, bank, fill):
        self.bank, self.fill = bank, fill

    def __call__(self, a, b):
        self.fill(self.bank, b)
        return npair(a, b)

    def loss(self, a, b):
        return self(a, b)


def by_closure(bank, fill):
    def criterion(a, b):
        fill(bank, b)
        return npair(a, b)

    return criterion


def by_partial(bank, fill):
    def criterion(a, b, bank):
        fill(bank, b)
        return npair(a, b)

    return functools.partial(criterion, bank=bank)


def by_module(bank, fill):
    module = nn.Module()
    module.bank = bank
    module.forward = lambda a, b: (fill(module.bank, b), npair(a, b))[1]
    return module


BANKS = {
    "list": (list, fill_a_list),
    "full deque": (lambda: deque([torch.zeros(6, 4)] * 2, maxlen=2), fill_a_list),
    "dict": (dict, fill_a_dict),
    "tensor": (lambda: torch.zeros(8, 4).double(), fill_a_tensor),
    "tensor.data": (lambda: torch.zeros(8, 4).double(), fill_data),
    "parameter.data": (lambda: nn.Parameter(torch.zeros(8, 4).double(), requires_grad=False), fill_data),
    "array": (lambda: numpy.zeros((8, 4)), fill_an_array),
}
HOLDERS = {
    "module": by_module,
    "closure": by_closure,
    "partial": by_partial,
    "object": Plain,
    "bound method": lambda bank, fill: Plain(bank, fill).loss,
    "lambda": lambda bank, fill: (lambda plain: lambda a, b: plain(a, b))(Plain(bank, fill)),
    "lambda around a module": lambda bank, fill: (lambda module: lambda a, b: module(a, b))(by_module(bank, fill)),
    "object in an object": lambda bank, fill: functools.partial(Plain.loss, Plain(bank, fill)),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("bank", BANKS)
def test_a_bank_is_found_wherever_it_is_kept(batch, bank, holder):
    a, b, labels = batch
    make, fill = BANKS[bank]
    with pytest.raises(ValueError, match=r"^criterion must not change .* each call changed criterion.*negatives="):
        IMixLoss(HOLDERS[holder](make(), fill))(a, b, one_lambda(labels))


GLOBAL_BANK = Bank("in place")


def test_a_bank_in_a_global_is_found(batch):
    a, b, labels = batch
    with pytest.raises(ValueError, match=r"criterion: GLOBAL_BANK\.bank"):
        IMixLoss(lambda a, b: GLOBAL_BANK(a, b))(a, b, one_lambda(labels))


def test_a_bank_that_is_filled_later_is_found(batch):
    """Sanity checks come first, without gradients, or a bank waits for its epoch."""
    a, b, labels = batch
    labels, bank = one_lambda(labels), torch.zeros(8, 4).double()
    filling = []
    criterion = IMixLoss(by_closure(bank, lambda bank, b: fill_data(bank, b) if filling else None))
    with torch.no_grad():
        criterion(a, b, labels)
    filling.append(True)
    with pytest.raises(ValueError, match="negatives="):
        criterion(a, b, labels)


class Harmless(nn.Module):
    """Counts, records and caches, none of them a memory bank."""

    def __init__(self):
        super().__init__()
        self.calls, self.history, self.last = 0, [], None
        self.generator, self.mask = torch.Generator(), {}
        self.random = numpy.random.default_rng(0)

    def forward(self, a, b):
        self.calls += 1
        self.mask.setdefault(len(a), torch.eye(len(a)))
        torch.rand(3, generator=self.generator)
        self.random.normal()
        loss = npair(a, b)
        self.history.append(loss.item())
        self.last = loss.detach()
        return loss


def test_counts_records_and_caches_are_not_refused(batch):
    a, b, labels = batch
    labels, criterion = one_lambda(labels), Harmless()
    wrapped = IMixLoss(lambda a, b: criterion(a, b))
    for _ in range(3):
        torch.testing.assert_close(wrapped(a, b, labels), by_hand(npair, a, b, labels)[0])
    assert criterion.calls == 6


@pytest.mark.parametrize("shape", [(6,), (6, 3, 4), (6, 2, 3, 4)])
def test_rows_of_any_shape(shape):
    a, b = torch.randn(2, *shape, dtype=torch.float64)
    labels = VirtualLabels(torch.rand(6) / 2 + 0.5, torch.randperm(6))

    def criterion(a, b):
        return (a - b).square().reshape(6, -1).sum(dim=1)

    torch.testing.assert_close(IMixLoss(criterion)(a, b, labels), by_hand(criterion, a, b, labels))


def supcon(a, b, classes, everyone, temperature=1.0):
    positives = (classes[:, None] == everyone).double()
    return -((a @ b.T / temperature).log_softmax(dim=1) * positives / positives.sum(dim=1, keepdim=True)).sum(dim=1)


def test_paired_arguments_are_permuted_like_b(batch):
    """Against imix_supcon_loss, whose virtual class of a row is the class of its partner in part."""
    a, b, labels = batch
    classes = torch.tensor([0, 1, 0, 2, 1, 1])
    criterion = IMixLoss(supcon, paired=("classes",))

    def by_partner(partner):
        return supcon(a, b[partner], classes[partner], classes[partner], 0.5)

    wanted = labels.lam * by_partner(torch.arange(6)) + (1 - labels.lam) * by_partner(labels.partner)
    both = IMixLoss(supcon, paired=("classes", "everyone"))
    value = both(a, b, labels, classes=classes, everyone=classes, temperature=0.5)
    torch.testing.assert_close(value, wanted)
    expected = imix_supcon_loss(a, b, classes, labels, temperature=0.5, normalize=False, reduction="none")
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    unpaired = criterion(a, b, labels, classes=classes, everyone=classes, temperature=0.5)
    assert not torch.allclose(unpaired, value)


def test_further_arguments_go_on(batch):
    a, b, labels = batch
    labels = one_lambda(labels)
    for value in (
        IMixLoss(npair)(a, b, labels, reduction="sum"),
        IMixLoss(npair)(a, b, labels, "sum"),
        IMixLoss(npair)(a, b, labels=labels, reduction="sum"),
    ):
        torch.testing.assert_close(value, 6 * by_hand(npair, a, b, labels)[0])
    assert torch.equal(IMixLoss(npair)(a, b, reduction="sum"), npair(a, b, "sum"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(batch, dtype):
    a, b, labels = batch
    labels = one_lambda(labels)
    a, b = a.to(dtype), b.float()
    assert torch.equal(IMixLoss(npair)(a, b, labels), IMixLoss(npair)(a.float(), b, labels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_compiled_scalar_criterion_with_one_lambda(dtype):
    a, b = torch.randn(2, 6, 4).to(dtype)
    criterion = IMixLoss(lambda a, b: (a - b).square().mean())
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    partner = torch.randperm(6)
    for labels in (
        VirtualLabels(torch.full((), 0.7).expand(6), partner),
        one_lambda(VirtualLabels(torch.ones(6), partner)),
    ):
        torch.testing.assert_close(compiled(a, b, labels), criterion(a, b, labels))


def test_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        labels = VirtualLabels(torch.full((), 0.7).expand(6), torch.arange(6))
        assert IMixLoss(nn.CosineEmbeddingLoss())(torch.ones(6, 4), torch.ones(6, 4), labels, torch.ones(6)).shape == ()
        assert IMixLoss(nn.CrossEntropyLoss(), on="logits")(torch.ones(6, 6), labels).shape == ()


def test_a_criterions_parameters_are_trained():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, a, b):
            return self.scale * (a - b).square().sum(dim=1)

    loss = IMixLoss(Scaled())
    assert [name for name, _ in loss.named_parameters()] == ["criterion.scale"]
    loss(torch.randn(3, 2), torch.randn(3, 2), VirtualLabels.identity(3)).sum().backward()
    assert loss.criterion.scale.grad is not None


X, LABELS = torch.randn(3, 4), VirtualLabels.identity(3)
CE = nn.CrossEntropyLoss()
REFUSED = [
    (
        lambda: IMixLoss(CE, on="logits")(torch.randn(3, 9), LABELS),
        ValueError,
        r"logits must have shape \(3, 3\).*MoCo",
    ),
    (lambda: IMixLoss(CE, on="logits")(torch.randn(3, 9)), ValueError, r"logits must have shape \(3, 3\).*MoCo"),
    (lambda: IMixLoss(npair, extra_columns=True), ValueError, "extra_columns must be False unless"),
    (lambda: IMixLoss(CE, on="logits", extra_columns=1), TypeError, "extra_columns must be a bool"),
    (lambda: IMixLoss(npair, paired="classes"), TypeError, "paired must be a tuple of str"),
    (lambda: IMixLoss(npair, paired=("classes",))(X, X, LABELS), TypeError, "paired names 'classes'"),
    (lambda: IMixLoss(npair, paired=("c",))(X, X, LABELS, c=[1, 2, 3]), TypeError, "c must be a tensor"),
    (lambda: IMixLoss(npair, paired=("c",))(X, X, LABELS, c=X[:2]), ValueError, "c must have 3 rows"),
    (lambda: IMixLoss(npair)(X, X.double(), LABELS), TypeError, "b must have the dtype of a"),
    (lambda: IMixLoss(lambda a, b: {"loss": a})(X, X, LABELS), TypeError, "criterion must return a tensor"),
    (lambda: IMixLoss(3), TypeError, "criterion must be callable"),
    (lambda: IMixLoss(npair, on="rows"), ValueError, "on must be one of"),
    (lambda: IMixLoss(npair)(X, labels=LABELS), TypeError, r"expected \(a, b, labels\)"),
    (lambda: IMixLoss(npair)(X, X, LABELS, LABELS), TypeError, r"expected \(a, b, labels\)"),
    (
        lambda: IMixLoss(CE, on="logits")(X, torch.arange(3), LABELS),  # as MoCo calls its own, the labels appended
        TypeError,
        r"expected \(logits, labels\), got \(Tensor, Tensor, VirtualLabels\): virtual labels stand in place of targets",
    ),
    (lambda: IMixLoss(npair)(X, X[:2], LABELS), ValueError, "b must have the shape of a"),
    (lambda: IMixLoss(npair)(None, X, LABELS), TypeError, "a must be a tensor"),
    (lambda: IMixLoss(npair)(X, X, VirtualLabels.identity(4)), ValueError, "labels.lam must have shape"),
    (lambda: IMixLoss(npair)(X, X, (X, X)), TypeError, "labels must be VirtualLabels"),
    (lambda: IMixLoss(lambda a, b: a - b)(X, X, LABELS), ValueError, r"criterion must return a scalar or shape \(3,\)"),
    (lambda: IMixLoss(nn.CrossEntropyLoss(), on="logits")(X[:, :2], LABELS), ValueError, "logits must have a column"),
    (lambda: IMixLoss(nn.CrossEntropyLoss(), on="logits")(X.long(), LABELS), TypeError, "logits must be floating"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_refusals(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()
