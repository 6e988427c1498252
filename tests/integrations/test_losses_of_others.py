"""Losses of other libraries: the scripts train, and IMixLoss is the sum that the paper's equation 4 spells out."""

import sys
from types import ModuleType

import pytest
import torch
from falling import STEPS, falls
from torch.nn import functional as F

from imix_aug import IMix, IMixLoss, VirtualLabels, imix_byol_loss, imix_clip_loss, imix_nce_loss


def by_hand(criterion, a, b, labels):
    return labels.lam[0] * criterion(a, b) + (1 - labels.lam[0]) * criterion(a, b[labels.partner])


def batch_labels(n=9):
    return VirtualLabels(torch.tensor(0.7).expand(n), torch.randperm(n, generator=torch.Generator().manual_seed(2)))


def test_lightly(script, pair):
    runs = script("with_lightly", "lightly").main(STEPS)
    assert all(falls(losses) for losses in runs.values()), runs


@pytest.mark.parametrize("name", ["NTXentLoss", "DCLLoss", "NegativeCosineSimilarity"])
def test_lightly_by_hand(name, pair):
    loss = pytest.importorskip("lightly.loss")
    criterion = getattr(loss, name)()
    labels = batch_labels()
    torch.testing.assert_close(IMixLoss(criterion)(*pair, labels), by_hand(criterion, *pair, labels), rtol=1e-6, atol=0)


def test_lightly_cosine_similarity_is_byols_loss(pair):
    loss = pytest.importorskip("lightly.loss")
    a, b = pair
    labels = batch_labels()
    by_cosines = 2 + 2 * IMixLoss(loss.NegativeCosineSimilarity())(a, b, labels)
    torch.testing.assert_close(by_cosines, imix_byol_loss(a, b, labels), rtol=1e-6, atol=0)


def test_lightly_memory_bank_is_refused(pair):
    loss = pytest.importorskip("lightly.loss")
    a, b = (each.float().requires_grad_() for each in pair)  # without gradients the bank would rest
    criterion = IMixLoss(loss.NTXentLoss(memory_bank_size=(16, 6)))
    with pytest.raises(ValueError, match="negatives="):
        criterion(a, b, batch_labels())


def test_lightly_moco(script):
    losses = script("with_lightly_moco", "lightly").main(60)
    assert falls(losses, start=10), losses


def test_pytorch_metric_learning(script):
    runs = script("with_pytorch_metric_learning", "pytorch_metric_learning").main(STEPS)
    assert all(falls(losses) for losses in runs.values()), runs


@pytest.mark.parametrize("symmetric", [True, False])
def test_pytorch_metric_learning_by_hand(symmetric, pair):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    criterion = losses.SelfSupervisedLoss(losses.NTXentLoss(temperature=0.2), symmetric=symmetric)
    labels = batch_labels()
    torch.testing.assert_close(IMixLoss(criterion)(*pair, labels), by_hand(criterion, *pair, labels), rtol=1e-6, atol=0)


def test_pytorch_metric_learning_ntxent_is_npair(pair):
    """One-sided, the library's NT-Xent is InfoNCE over the other view."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    criterion = losses.SelfSupervisedLoss(losses.NTXentLoss(temperature=0.2), symmetric=False)
    labels = batch_labels()
    ours = imix_nce_loss(*pair, labels, temperature=0.2)
    torch.testing.assert_close(IMixLoss(criterion)(*pair, labels), ours, rtol=1e-6, atol=0)


def test_info_nce(script):
    losses = script("with_info_nce", "info_nce").main(STEPS)
    assert falls(losses), losses


def test_info_nce_by_rows_is_npair(pair):
    info_nce = pytest.importorskip("info_nce")
    labels = VirtualLabels(torch.linspace(0.5, 1, 9), batch_labels().partner)
    theirs = IMixLoss(info_nce.InfoNCE(temperature=0.2, reduction="none"))(*pair, labels)
    ours = imix_nce_loss(*pair, labels, temperature=0.2, reduction="none")
    torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-6)


@pytest.fixture
def solo(monkeypatch):
    """solo-learn's two loss functions: its own where it is installed, else functions with the same signatures."""
    try:
        import solo.losses.byol
        import solo.losses.simclr  # noqa: F401
    except ImportError:
        byol, simclr = ModuleType("solo.losses.byol"), ModuleType("solo.losses.simclr")
        byol.byol_loss_func = _byol_loss_func
        simclr.simclr_loss_func = _simclr_loss_func
        for module in (ModuleType("solo"), ModuleType("solo.losses"), byol, simclr):
            monkeypatch.setitem(sys.modules, module.__name__, module)


def _byol_loss_func(p, z, simplified=True):
    return (F.normalize(p, dim=1) - F.normalize(z.detach(), dim=1)).square().sum(dim=1).mean()


def _simclr_loss_func(z, indexes, temperature=0.1):
    z = F.normalize(z, dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    positive = (indexes[:, None] == indexes).fill_diagonal_(False)
    return -logits.log_softmax(dim=1)[positive].mean()


def test_solo_learn(script, solo):
    runs = script("with_solo_learn").main(STEPS)
    assert all(falls(losses) for losses in runs.values()), runs


def test_solo_learn_by_hand(script, solo, pair):
    simclr = script("with_solo_learn").simclr
    labels = batch_labels()
    torch.testing.assert_close(IMixLoss(simclr)(*pair, labels), by_hand(simclr, *pair, labels), rtol=1e-6, atol=0)


def test_official_moco(script):
    losses = script("with_official_moco").main(60)
    assert falls(losses, start=10), losses


def test_official_moco_by_hand(script):
    """The loss is over the batch's keys, then the queue; the logits stay MoCo's own."""
    model = script("with_official_moco").MoCo(dim=8, K=16)
    images, queue = torch.rand(5, 1, 8, 8), model.queue.clone()
    torch.manual_seed(3)
    logits, target, loss = model(im_q=images, im_k=images)
    torch.manual_seed(3)
    x, labels = IMix()(images)
    query, key = (
        F.normalize(encode(each), dim=1) for encode, each in ((model.encoder_q, x), (model.encoder_k, images))
    )
    columns = query @ torch.cat([key.T, queue], dim=1) / model.T
    torch.testing.assert_close(loss, F.cross_entropy(columns, labels.dense(5 + 16)))
    torch.testing.assert_close(logits, torch.cat([columns[:, :5].diag()[:, None], columns[:, 5:]], dim=1))
    assert target.eq(0).all()


@pytest.mark.parametrize("log_scale", [0.5, 2.66, 4.7])
def test_a_learnt_scale_kept_below_100_is_open_clips(log_scale):
    loss = pytest.importorskip("open_clip.loss")
    images, texts = F.normalize(torch.randn(2, 6, 4, dtype=torch.float64), dim=2).unbind()
    log_scale = torch.tensor(log_scale, dtype=torch.float64, requires_grad=True)
    scale = log_scale.exp().clamp(max=100)
    theirs, ours = loss.ClipLoss()(images, texts, scale), imix_clip_loss(images, texts, temperature=1 / scale)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    grads = [torch.autograd.grad(each, log_scale, retain_graph=True)[0] for each in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-10)
    assert bool(grads[0] == 0) == (scale == 100)
