"""What lightly, pytorch-metric-learning and info-nce-pytorch ask of their own losses, asked of ours in their places.

The cases are those of the libraries' suites (lightly 1.5's `test_ntx_ent_loss.py`, pytorch-metric-learning 2.9's
`test_ntxent_loss.py`, `test_supcon_loss.py` and `test_self_supervised_loss.py`, info-nce-pytorch's `test.py`), written
anew; docs/integrations/index.md counts them and says where ours answer otherwise.
"""

import math

import pytest
import torch
from torch.nn import functional as F

from imix_aug import NegativeQueue, imix_nce_loss, imix_ntxent_loss, imix_supcon_loss

HALF, SINGLE, DOUBLE = torch.float16, torch.float32, torch.float64


def own_key_and_negatives(query, key, temperature, **negatives):
    """1 + K columns: with one id for all rows, a row leaves out all keys of the batch but its own."""
    ids = torch.zeros(len(query), dtype=torch.int64)
    return imix_nce_loss(query, key, temperature=temperature, ids=ids, **negatives)


# lightly's NTXentLoss


def chen(out0, out1, temperature):
    """Algorithm 1 of SimCLR's paper, one pair at a time."""
    rows = torch.cat([out0, out1]).double()
    n = len(out0)
    power = lambda i, j: math.exp(F.cosine_similarity(rows[i], rows[j], dim=0).item() / temperature)  # noqa: E731
    losses = [
        -math.log(power(i, (i + n) % (2 * n)) / sum(power(i, j) for j in range(2 * n) if j != i)) for i in range(2 * n)
    ]
    return sum(losses) / (2 * n)


@pytest.mark.parametrize("gather_distributed", [False, True])
@pytest.mark.parametrize("temperature", [0.1, 1, 10])
@pytest.mark.parametrize("dimension", [1, 2, 16, 64])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_lightly_with_values(n, dimension, temperature, gather_distributed):
    out0, out1 = torch.randn(2, n, dimension).unbind()
    how = {"temperature": temperature, "gather_distributed": gather_distributed}
    one, other = imix_ntxent_loss(out0, out1, **how).item(), imix_ntxent_loss(out1, out0, **how).item()
    assert one == pytest.approx(other, abs=1e-5)
    assert one == pytest.approx(chen(out0, out1, temperature), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 1, 7])
@pytest.mark.parametrize("bank", [0, 1, 2, 8, 15, 16, 17])
@pytest.mark.parametrize("n", [1, 2, 8, 16])
def test_lightly_with_correlated_embeddings(n, bank, temperature):
    """All rows point one way, so that a loss is the logarithm of the number of columns."""
    out0, out1 = torch.rand(2, n, 1).add(0.01).mul(torch.tensor([1.0, 2.0])).unbind()
    if not bank:
        loss, columns = imix_ntxent_loss(out0, out1, temperature=temperature), 2 * n - 1
    else:
        queue, columns = NegativeQueue(bank, 2), bank + 1
        for _ in range(bank // n + 2):
            loss = own_key_and_negatives(out0, out1, temperature, negatives=queue.negatives)
            queue.enqueue(F.normalize(out1))
    assert loss.item() == pytest.approx(math.log(columns), abs=1e-5)


@pytest.mark.parametrize("dimension", [1, 32])
@pytest.mark.parametrize("n", range(1, 20))
def test_lightly_is_symmetric(n, dimension):
    out0, out1 = torch.randn(2, n, dimension).unbind()
    one, other = (imix_ntxent_loss(*pair, temperature=0.5) for pair in ((out0, out1), (out1, out0)))
    assert (one - other).item() == pytest.approx(0, abs=1e-5)


def test_lightly_memory_bank_takes_any_batch():
    queue = NegativeQueue(64, 32)
    for n in range(1, 20):
        out0, out1 = torch.randn(2, n, 32).unbind()
        assert own_key_and_negatives(out0, out1, 0.5, negatives=queue.negatives).isfinite()
        queue.enqueue(out1)


def test_lightly_a_negative_temperature_is_refused():
    """Theirs computes with it."""
    out0, out1 = torch.randn(2, 4, 32).unbind()
    with pytest.raises(ValueError, match="temperature must be positive"):
        imix_ntxent_loss(out0, out1, temperature=-1.0)


# pytorch-metric-learning's NTXentLoss, SupConLoss and SelfSupervisedLoss


def at_angles(degrees, dtype):
    angles = torch.deg2rad(torch.tensor(degrees, dtype=DOUBLE))
    return torch.stack([angles.cos(), angles.sin()], 1).to(dtype).requires_grad_()


def metric_ntxent(embeddings, labels, temperature):
    """A loss per pair of one label, among that pair and all rows of other labels: one row at a time."""
    pairs = ((labels[:, None] == labels) & ~torch.eye(len(labels), dtype=torch.bool)).nonzero().tolist()
    losses = [
        imix_nce_loss(
            embeddings[[anchor]],
            embeddings[[positive]],
            temperature=temperature,
            negatives=embeddings,
            ids=labels[[anchor]],
            negative_ids=labels,
        )
        for anchor, positive in pairs
    ]
    return torch.stack(losses).mean() if losses else embeddings.sum() * 0


@pytest.mark.parametrize("dtype", [HALF, SINGLE, DOUBLE])
def test_metric_learning_at_angles(dtype):
    embeddings, labels = at_angles([0, 10, 20, 50, 60, 80], dtype), torch.tensor([0, 0, 0, 1, 1, 2])
    cosines = (embeddings.detach().double() @ embeddings.detach().double().T / 0.1).exp()
    mates = {0: [1, 2], 1: [0, 2], 2: [0, 1], 3: [4], 4: [3]}
    per_pair, per_row = [], []
    for anchor, positives in mates.items():
        others = [j for j in range(6) if j != anchor]
        negatives = sum(cosines[anchor, j] for j in others if j not in positives)
        per_pair += [-math.log(cosines[anchor, p] / (cosines[anchor, p] + negatives)) for p in positives]
        everything = sum(cosines[anchor, j] for j in others)
        per_row.append(sum(-math.log(cosines[anchor, p] / everything) for p in positives) / len(positives))
    tolerance = 1e-2 if dtype == HALF else 1e-5
    assert metric_ntxent(embeddings, labels, 0.1).item() == pytest.approx(sum(per_pair) / 8, rel=tolerance)
    ours = imix_supcon_loss(embeddings, None, labels, temperature=0.1, reduction="sum").item() / 5
    assert ours == pytest.approx(sum(per_row) / 5, rel=tolerance)


@pytest.mark.parametrize("dtype", [HALF, SINGLE, DOUBLE])
@pytest.mark.parametrize(("degrees", "classes"), [([0], [0]), ([0, 40, 60], [1, 2, 3])])
def test_metric_learning_without_a_pair(degrees, classes, dtype):
    embeddings, labels = at_angles(degrees, dtype), torch.tensor(classes)
    for loss in (metric_ntxent(embeddings, labels, 0.1), imix_supcon_loss(embeddings, None, labels, temperature=0.1)):
        loss.backward()
        assert loss.item() == 0


@pytest.mark.parametrize("dtype", [HALF, SINGLE, DOUBLE])
def test_metric_learning_a_batch_of_one_class_has_a_loss(dtype):
    """Theirs is zero without a negative; the formula's is the spread over the class."""
    embeddings, labels = at_angles([0, 10, 20], dtype), torch.zeros(3, dtype=torch.int64)
    loss = imix_supcon_loss(embeddings, None, labels, temperature=0.1)
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    assert losses.SupConLoss(temperature=0.1)(embeddings, labels) == 0
    assert loss.item() > math.log(2)


@pytest.mark.parametrize("dtype", [HALF, SINGLE, DOUBLE])
def test_metric_learning_backward(dtype):
    embeddings, labels = at_angles([0, 20, 40, 60, 80], dtype), torch.tensor([0, 0, 1, 1, 2])
    for loss in (metric_ntxent(embeddings, labels, 0.1), imix_supcon_loss(embeddings, None, labels, temperature=0.1)):
        (grad,) = torch.autograd.grad(loss, embeddings)
        assert grad.dtype == dtype
        assert grad.isfinite().all()
        assert grad.any()


@pytest.mark.parametrize("dtype", [HALF, SINGLE, DOUBLE])
@pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss"])
def test_metric_learning_self_supervised(name, dtype):
    """Rows against another batch, each with its own number for a label: InfoNCE of one direction."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    rows, others = (F.normalize(torch.randn(100, 256, dtype=dtype, requires_grad=True)) for _ in range(2))
    labels, loss = torch.arange(100), getattr(losses, name)()
    theirs = loss(embeddings=rows, labels=labels, ref_emb=others, ref_labels=labels.clone())
    one_way = losses.SelfSupervisedLoss(getattr(losses, name)(), symmetric=False)(rows, others)
    ours = imix_nce_loss(rows, others, temperature=loss.temperature)
    assert ours.item() == pytest.approx(theirs.item(), abs=5e-2 if dtype == HALF else 1e-3)
    assert ours.item() == pytest.approx(one_way.item(), abs=5e-2 if dtype == HALF else 1e-3)


# info-nce-pytorch's InfoNCE


@pytest.mark.parametrize("alpha", torch.linspace(0, 1, 10).tolist())
@pytest.mark.parametrize("mode", ["paired", "unpaired"])
def test_info_nce_from_near_to_far(mode, alpha):
    """Positives move away from the queries while negatives come near, all drawn around them."""
    info_nce = pytest.importorskip("info_nce")
    generator = torch.Generator().manual_seed(0)
    for beta in torch.linspace(1, 0, 10).tolist():
        draw = lambda *shape: torch.randn(*shape, 64, generator=generator, dtype=DOUBLE) / 10  # noqa: E731
        centre, far, farther = torch.rand(3, 64, generator=generator, dtype=DOUBLE).unbind()
        query = centre + draw(16)
        positive = alpha * centre + (1 - alpha) * far + draw(16)
        negative = beta * centre + (1 - beta) * farther + (draw(16, 8) if mode == "paired" else draw(8))
        name = "hard_negatives" if mode == "paired" else "negatives"
        ours = own_key_and_negatives(query, positive, 0.1, **{name: negative}).item()
        bank = negative if mode == "paired" else negative.expand(16, 8, 64)
        logits = F.cosine_similarity(query[:, None], torch.cat([positive[:, None], bank], 1), dim=2) / 0.1
        assert ours == pytest.approx(-logits.log_softmax(1)[:, 0].mean().item(), abs=1e-10)
        theirs = info_nce.InfoNCE(temperature=0.1, negative_mode=mode)(query, positive, negative)
        assert ours == pytest.approx(theirs.item(), abs=1e-5)
