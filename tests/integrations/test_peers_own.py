"""The runner for other libraries' own tests, on a stand-in for a checkout: what it counts, and what it lists."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("peers_own.py")
LIGHTLY = """
import math

import pytest
import torch
from lightly.loss import NTXentLoss


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_alike(temperature):
    x = torch.ones(4, 3)
    assert NTXentLoss(temperature)(x, x).item() == pytest.approx(math.log(7))


def test_bank():
    x, loss = torch.ones(4, 3, requires_grad=True), NTXentLoss(memory_bank_size=(8, 3))
    for _ in range(4):
        value = loss(x, x)
    assert value.item() == pytest.approx(math.log(9))


def test_negative_temperature():
    NTXentLoss(temperature=-1.0)(torch.ones(4, 3), torch.ones(4, 3))


def test_wrong():
    assert NTXentLoss()(torch.ones(4, 3), torch.ones(4, 3)) == 0
"""
METRIC_LEARNING = """
import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss

ROWS = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
CLASSES = torch.tensor([0, 0, 1, 1])


def by_hand(temperature, loss, references=None):
    ours = references is None
    logits = ROWS @ (ROWS if ours else references).T / temperature
    each = []
    for row in range(4):
        mates = [column for column in range(4) if CLASSES[row] == CLASSES[column] and not (ours and row == column)]
        others = [column for column in range(4) if CLASSES[row] != CLASSES[column]]
        for mate in mates:
            columns = others + (mates if loss is SupConLoss else [mate])
            each.append(logits[row, columns].logsumexp(0) - logits[row, mate])
    return torch.stack(each).mean()


@pytest.mark.parametrize("loss", [NTXentLoss, SupConLoss])
def test_in_a_batch(loss):
    torch.testing.assert_close(loss(temperature=0.2)(ROWS, CLASSES), by_hand(0.2, loss))


@pytest.mark.parametrize("loss", [NTXentLoss, SupConLoss])
def test_against_others(loss):
    others = ROWS.flip(1)
    found = loss(temperature=0.2)(ROWS, CLASSES, ref_emb=others, ref_labels=CLASSES.clone())
    torch.testing.assert_close(found, by_hand(0.2, loss, others))


def test_another_distance():
    assert NTXentLoss(distance=LpDistance())(ROWS, CLASSES) > 0


def test_one_class():
    assert SupConLoss()(ROWS, torch.zeros(4, dtype=torch.int64)) == 0
"""
INFO_NCE = """
import torch
from info_nce import InfoNCE


def get_results(paired_neg):
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 3)
    negatives = torch.randn(4, 5, 3) if paired_neg else torch.randn(5, 3)
    unit = torch.nn.functional.normalize
    others = torch.einsum("nd,nkd->nk", unit(query), unit(negatives.expand(4, 5, 3), dim=-1))
    own = (unit(query) * unit(key)).sum(1, keepdim=True)
    by_hand = -(torch.cat([own, others], 1) / 0.1).log_softmax(1)[:, 0].mean()
    loss = InfoNCE(0.1, negative_mode="paired" if paired_neg else "unpaired")(query, key, negatives)
    return [by_hand, by_hand], [loss, loss + 1]


def check_results(one, other):
    for a, b in zip(one, other):
        assert abs(a - b) < 1e-5
    plot_results(one)
"""
CASES = {
    "lightly": ("lightly", "tests/loss/test_ntx_ent_loss.py", LIGHTLY, (5, 4, 3), "test_negative_temperature"),
    "pytorch-metric-learning": (
        "pytorch_metric_learning",
        "tests/losses/test_ntxent_loss.py",
        METRIC_LEARNING,
        (6, 6, 5),
        "test_one_class",
    ),
    "info-nce-pytorch": ("info_nce", "imgs/test.py", INFO_NCE, (4, 2, 2), None),
}


def run(*arguments):
    command = [sys.executable, "-W", "ignore", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


@pytest.mark.parametrize(
    "peer",
    [pytest.param(peer, marks=() if peer == "info-nce-pytorch" else pytest.mark.slow) for peer in CASES],
)
def test_every_test_that_ends_otherwise_is_listed(peer, tmp_path):
    module, name, text, counts, differs = CASES[peer]
    pytest.importorskip(module)
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")
    done = run(peer, tmp_path)
    assert done.returncode == 0, done.stderr
    _, _, row, *listed = done.stdout.splitlines()
    assert row.endswith(f"{file.name} | {counts[0]} | {counts[1]} | {counts[2]} |")
    if differs is None:
        assert listed == []
    else:
        (line,) = listed
        assert f"::{differs}: theirs: passes; ours: " in line
        assert not line.endswith("passes")


def test_a_folder_that_is_no_checkout_is_said(tmp_path):
    done = run("lightly", tmp_path)
    assert done.returncode
    assert "wanted a checkout of lightly" in done.stderr
