import pytest
import torch
from torch import nn
from torch.nn import functional as F

from imix_aug import IMix, IMixLoss, VirtualLabels, imix_nce_loss


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
    torch.testing.assert_close(IMixLoss(criterion, on="logits")(logits, labels), expected, atol=1e-6, rtol=1e-6)
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
REFUSED = [
    (lambda: IMixLoss(3), TypeError, "criterion must be callable"),
    (lambda: IMixLoss(npair, on="rows"), ValueError, "on must be one of"),
    (lambda: IMixLoss(npair)(X, labels=LABELS), TypeError, r"expected \(a, b, labels\)"),
    (lambda: IMixLoss(npair)(X, X, LABELS, LABELS), TypeError, r"expected \(a, b, labels\)"),
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
