"""Two processes do what one does: same global batch, same weights; and a run that was cut off goes on on both."""

import json

import processes
import pytest
import runner.domains.tabular
import runner.methods
import runner.run
import tabular
import torch
from processes import end_at
from runner.encoders import TabularMLP
from torch import nn

from imix_aug import VirtualLabels

SIZE = ("--epochs", "2", "--batch-size", "512", "--seeds", "1", "--device", "cpu", "--lr", "0.05")


class Plain(nn.Module):
    """An encoder whose rows do not meet: batch statistics of a half are not those of the whole."""

    features = 8

    def __init__(self, groups, width, first=None):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(sum(groups), 16), nn.Tanh(), nn.Linear(16, 8))

    def forward(self, x):
        return self.body(x)


class Halves(nn.Module):
    """Mix row i with row i + 1 of the same half: one process with both halves mixes as two with one each."""

    def __init__(self, halves):
        super().__init__()
        self.halves = halves

    def forward(self, x):
        if isinstance(x, tuple):  # views of the same rows
            mixed, labels = zip(*map(self.forward, x), strict=True)
            return mixed, labels[0]
        size = len(x) // self.halves
        own = torch.arange(size)
        partner = torch.cat([(own + 1) % size + half * size for half in range(self.halves)])
        lam = torch.cat([0.5 + 0.5 * own / size] * self.halves)
        return lam[:, None] * x + (1 - lam[:, None]) * x[partner], VirtualLabels(lam, partner)


def train(ranks, options, plain, stop_at):
    if plain:
        runner.domains.tabular.TabularMLP = Plain
        runner.run.build_mix = lambda mix, *_, **__: None if mix == "none" else Halves(2 // ranks)
        runner.methods.head = lambda inputs, hidden, outputs, norm: nn.Linear(inputs, outputs)
    end_at(stop_at)
    tabular.main([*SIZE, *options])


def start(ranks, out, *options, plain=False, stop_at=None):
    options = [*map(str, options), "--out", str(out)]
    return processes.start(ranks, "tabular", train, ranks, options, plain, stop_at)


def checkpoints(out):
    return {path.parent.name: torch.load(path, weights_only=True) for path in sorted(out.rglob("checkpoint.pt"))}


@pytest.mark.parametrize("method", ["npair", "simclr", "moco", "byol", "supcon"])
def test_two_ranks_train_as_one_process_does(tmp_path, method):
    options = ("--method", method, "--augment", "none", "--mix", "none", "mixup")
    for ranks in (1, 2):
        assert start(ranks, tmp_path / str(ranks), *options, plain=True) == [0] * ranks
    one, two = (checkpoints(tmp_path / ranks) for ranks in "12")
    assert list(one) == list(two) == [f"{method}-mixup-seed0", f"{method}-none-seed0"]
    for name, run in one.items():
        assert run["progress"]["losses"] == pytest.approx(two[name]["progress"]["losses"], rel=1e-5)
        for key, weight in run["parts"]["method"].items():
            if isinstance(weight, torch.Tensor):
                torch.testing.assert_close(two[name]["parts"]["method"][key], weight, rtol=1e-4, atol=1e-5)
    found = [json.loads((tmp_path / ranks / "results.json").read_text(encoding="utf-8"))["runs"] for ranks in "12"]
    assert [len(runs) for runs in found] == [2, 2]
    assert [run["config"]["ranks"] for run in found[1]] == [2, 2]


def test_a_run_of_two_ranks_goes_on_with_the_same_bits(tmp_path):
    """With everything that is drawn: dropout, lambdas and partners, on each rank its own."""
    options = ("--method", "moco", "--mix", "mixup", "--width", 1, "--queue", 700, "--bn", "shuffle",
               "--checkpoint-every", 0)  # fmt: skip
    assert start(2, tmp_path / "whole", *options) == [0, 0]
    assert start(2, tmp_path / "cut", *options, stop_at=3) == [3, 3]
    cut = checkpoints(tmp_path / "cut")["moco-mixup-seed0"]
    assert cut["progress"]["step"] == 2
    first, second = (state["cpu"] for state in cut["random"])
    assert not torch.equal(first, second)
    assert start(2, tmp_path / "cut", *options) == [0, 0]
    whole, cut = (checkpoints(tmp_path / name)["moco-mixup-seed0"] for name in ("whole", "cut"))
    assert whole["progress"]["losses"] == cut["progress"]["losses"]
    for key, weight in whole["parts"]["method"].items():
        if isinstance(weight, torch.Tensor):
            assert torch.equal(cut["parts"]["method"][key], weight), key
    for a, b in zip(whole["random"], cut["random"], strict=True):
        assert torch.equal(a["cpu"], b["cpu"])


def test_the_plain_encoder_of_these_tests_is_needed():
    """Batch statistics make two halves another network than the whole."""
    torch.manual_seed(0)
    net, x = TabularMLP((6,), 1), torch.randn(8, 6)
    assert not torch.allclose(torch.cat([net(half) for half in x.chunk(2)]), net(x), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--bn", "sync"), "one process"),
        (("--bn", "shuffle", "--method", "moco"), "one process"),
    ],
)
def test_what_wants_several_processes_says_so(refusal, options, words):
    assert words in refusal(tabular, *options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--bn", "sync"), "GPUs only"),
        (("--bn", "shuffle"), "npair has none"),
        (("--device", "cuda:1"), "with torchrun"),
    ],
)
def test_what_does_not_go_with_torchrun_says_so(refusal, monkeypatch, options, words):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: None)
    with pytest.raises(SystemExit, match=words):
        tabular.main([*(("--device", "cpu") if "--device" not in options else ()), *options])
