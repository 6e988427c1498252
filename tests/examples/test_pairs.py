"""Runs of one seed that differ by i-Mix alone; how many rows train and judge; what is run first, and what is left."""

import json

import pytest
import reproduce
import runner.run
import tabular
import torch
from runner.data.dataset import Dataset, thin
from test_reproduce import forest

SHORT = ("--epochs", 2, "--batch-size", 256, "--width", 1)


@pytest.fixture
def seen(monkeypatch):
    """What each run begins with and is shown: (mix, seed), its first weights, its views step by step."""
    noted = []
    build = runner.run._on_device

    def note(settings, encoder):
        method = build(settings, encoder)
        views = []
        noted.append(({name: w.clone() for name, w in method.named_parameters()}, views))
        method.register_forward_pre_hook(lambda _, given: views.append(torch.stack(given[:2])))
        return method

    monkeypatch.setattr(runner.run, "_on_device", note)
    return noted


@pytest.mark.parametrize("method", ["npair", "moco", "byol"])
def test_a_pair_has_the_same_weights_batches_and_views(runs, seen, method):
    runs(tabular, *SHORT, "--seeds", 2, "--method", method)
    (first, views), (mixed_first, mixed_views), (other_first, other_views), _ = seen
    assert len(views) == len(mixed_views) == 2 * (1438 // 256)
    for name, weights in first.items():
        assert torch.equal(weights, mixed_first[name])
    for plain, mixed in zip(views, mixed_views, strict=True):
        assert torch.equal(plain, mixed)
    assert any(not torch.equal(weights, other_first[name]) for name, weights in first.items())
    assert not torch.equal(views[0], other_views[0])
    assert len({tuple(pair.flatten().tolist()) for pair in views}) == len(views)  # no step is like another
    assert not torch.equal(*views[0])  # nor one view like the other


def data(train, test):
    y = torch.arange(train) % 3
    return Dataset(
        "rows", torch.arange(train)[:, None].float(), y, torch.arange(test)[:, None].float(), y[:test], "abc"
    )


def test_thin_draws_rows_once_and_keeps_them_with_their_labels():
    few = thin(data(1000, 50), 100)
    assert (len(few.train_y), len(few.test_y)) == (100, 50)
    rows = few.train_x[:, 0].long()
    assert len(rows.unique()) == 100
    assert rows.max() > 500  # from all over
    assert torch.equal(few.train_y, rows % 3)
    assert torch.equal(few.train_x, thin(data(1000, 50), 100).train_x)


def test_rows_to_train_and_rows_to_judge_by(runs, monkeypatch):
    rows = []
    pretrain, evaluate = runner.run.pretrain, runner.run.evaluate

    def note_training(experiment, task, data):
        rows.append(len(data.train_y))
        return pretrain(experiment, task, data)

    def note_judgement(encoder, data, *rest):
        rows.extend((len(data.train_y), len(data.test_y)))
        return evaluate(encoder, data, *rest)

    monkeypatch.setattr(runner.run, "pretrain", note_training)
    monkeypatch.setattr(runner.run, "evaluate", note_judgement)
    runs(tabular, *SHORT, "--seeds", 1, "--mix", "mixup", "--pretrain-rows", 600, "--probe-rows", 380)
    assert rows == [600, 380, 359]  # the digits have 1,438 rows to train and 359 to test


class Enough(Exception):
    """The command is cut short."""


def test_cut_short_all_cells_are_alike_and_a_restart_adds_what_is_missing(tmp_path, monkeypatch):
    done = []
    pretrain = runner.run.pretrain

    def until(limit):
        def note(experiment, *rest):
            if len(done) == limit:
                raise Enough
            done.append((experiment.settings.method, experiment.mix, experiment.seed))
            return pretrain(experiment, *rest)

        return note

    def call():
        where = ("--path", forest(tmp_path / "cover.csv", 800), "--out", str(tmp_path / "out"))
        change = ("--change", "epochs=2", "width=1", "--controls", "--device", "cpu")
        reproduce.main(["1", "--rows", "covtype-npair", "covtype-byol", "--seeds", "3", *where, *change])

    cells = [(method, mix) for method in ("npair", "byol") for mix in ("none", "mixup")]
    wanted = [(*cell, seed) for seed in range(3) for cell in cells]
    monkeypatch.setattr(runner.run, "pretrain", until(6))
    with pytest.raises(Enough):
        call()
    assert done == wanted[:6]  # the first seed of all, before the second of any
    report = tmp_path / "out" / "table1-cpu" / "report.json"
    lines = json.loads(report.read_text(encoding="utf-8"))["rows"]
    kept = [len(line["found"][mix]) for line in lines for mix in ("none", "mixup")]
    assert kept == [2, 2, 1, 1]

    monkeypatch.setattr(runner.run, "pretrain", until(100))
    call()
    assert done == wanted
    npair, byol = json.loads(report.read_text(encoding="utf-8"))["rows"]
    assert [one["seed"] for one in npair["controls"]["untrained"]] == [0, 1, 2]
    assert len(npair["controls"]["raw"]) == 1
    assert "controls" not in byol  # the same data, and the same networks before training
    page = (report.parent / "report.md").read_text(encoding="utf-8")
    gains = [byol["found"]["mixup"][seed] - byol["found"]["none"][seed] for seed in range(3)]
    assert f"| {sum(gains) / 3:+.2f} (" in page

    before = report.read_bytes()
    call()
    assert len(done) == len(wanted)
    assert report.read_bytes() == before
