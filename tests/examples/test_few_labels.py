"""Few labels on many tables: which rows keep theirs, what is judged with them, what is kept and refused."""

import json
from itertools import islice, pairwise, product

import numpy as np
import pandas as pd
import pytest
import reproduce
import runner.few_labels
import torch
from runner.controls import Raw
from runner.data.dataset import Dataset, draw_labels
from runner.data.split import split_rows
from runner.few_labels import ARMS, NETWORKS
from runner.fine_tuning import batches, fine_tune, steps_per_epoch
from runner.many_tables import BOOSTING, RAW
from runner.report.wins import means
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

SIZE = ("--change", "epochs=1", "width=1")


@pytest.fixture
def folder(tmp_path):
    """Two tables whose class shows in one of three columns; one of them is a development table."""
    (tmp_path / "tables").mkdir()
    draw = np.random.default_rng(0)
    for name in ("near", "vehicle"):
        y = draw.integers(0, 2, 150)
        frame = pd.DataFrame(draw.normal(0, 1, (150, 3)).round(3), columns=list("abc"))
        frame["a"] += 3 * y
        frame.assign(kind=np.array(["x", "y"])[y]).to_csv(tmp_path / "tables" / f"{name}.csv", index=False)
    return tmp_path / "tables"


@pytest.fixture
def report(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(runner.few_labels, "STEPS", 4)

    def call(*options):
        common = ("--label", "kind", "--device", "cpu", *SIZE, "--out", str(tmp_path / "out"))
        reproduce.main(["tables", "--path", str(folder), *common, *options])
        path = tmp_path / "out" / "tables-npair" / "few-labels" / "report.json"
        return json.loads(path.read_text(encoding="utf-8"))

    return call


@pytest.fixture
def table(folder):
    """The columns and classes of a table, to train and to test on, without our loader."""
    frame = pd.read_csv(folder / "near.csv")
    y = (frame["kind"] == "y").to_numpy().astype(int)
    train, test = split_rows("near", y)
    x = frame[list("abc")].to_numpy()
    x = (x - x[train].mean(0)) / x[train].std(0)
    return x[train].astype(np.float32), y[train], x[test].astype(np.float32), y[test]


def test_every_way_with_every_share(report, table, capsys, tmp_path):
    found = report("--labels", "0.01", "0.5")
    wanted = {(name, arm) for name in ("near", "vehicle") for arm in ARMS}
    assert {(cell["table"], cell["arm"]) for cell in found["cells"]} == wanted
    assert len(found["cells"]) == len(wanted)
    assert all({"0.01", "0.5"} < cell.keys() for cell in found["cells"])
    per_class = np.bincount(table[1])
    # A hundredth of a class is less than a row here, and one is drawn.
    assert found["tables"]["near"]["labels"] == {"0.01": 2, "0.5": sum(round(n / 2) for n in per_class)}

    out = tmp_path / "out" / "tables-npair"
    page = (out / "few-labels" / "report.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    others, development = page.split("## Development tables, 1 % of the labels")
    assert ("| near |" in others, "| vehicle |" in others) == (True, False)
    assert ("| near |" in development, "| vehicle |" in development) == (False, True)
    assert "## Tables not looked at before, 50 % of the labels" in others
    assert (out / "few-labels" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "near" / "default" / "runs" / "npair-mixup-seed0" / "checkpoint.pt").exists()  # the win matrix's own


def test_boosting_and_the_raw_columns_are_scikit_learns(report, table):
    cells = report("--labels", "0.5", "--rows", "near")["cells"]
    found = {cell["arm"]: cell["0.5"] for cell in cells}
    x, y, test_x, test_y = table
    rows = draw_labels(torch.from_numpy(y), 0.5, seed=0).numpy()
    leaf = len(rows) // 10
    assert leaf < 20
    boosted = HistGradientBoostingClassifier(random_state=0, min_samples_leaf=leaf).fit(x[rows], y[rows])
    assert found[BOOSTING] == pytest.approx(boosted.score(test_x, test_y))
    linear = LogisticRegression().fit(x[rows], y[rows])
    assert found[RAW] == pytest.approx(linear.score(test_x, test_y), abs=0.051)  # a row may tie


def test_nothing_is_done_twice(report, monkeypatch):
    asked, stop_at = [], 4

    def judge(bench, arm, seed):
        asked.append((seed, bench.task.data.name, arm))
        if len(asked) == stop_at:
            raise KeyboardInterrupt
        return {name: {"0.1": 0.5} for name in (NETWORKS[arm][1:] if arm in NETWORKS else (arm,))}

    monkeypatch.setattr(runner.few_labels.FewLabels, "judge", judge)
    with pytest.raises(SystemExit):
        report("--labels", "0.1")
    first = report("--labels", "0.1")
    assert report("--labels", "0.1", "--seeds", "2")["cells"][: len(first["cells"])] == first["cells"]
    wanted = list(product((0, 1), ("near", "vehicle"), (RAW, BOOSTING, *NETWORKS)))
    assert asked == [*wanted[:stop_at], *wanted[stop_at - 1 :]]  # what was cut short is done again, and nothing else
    assert set(means(first["cells"], "0.1", ARMS)) == {"near", "vehicle"}


def test_refusals(report, capsys):
    with pytest.raises(SystemExit, match=r"--labels \[0.0\]: wanted shares between 0 and 1"):
        report("--labels", "0")
    with pytest.raises(SystemExit):
        reproduce.main(["1", "--labels", "0.1"])
    assert "--labels: only for transfer and tables" in capsys.readouterr().err


def test_other_shares_are_refused(report, monkeypatch):
    monkeypatch.setattr(runner.few_labels.FewLabels, "judge", lambda bench, arm, seed: {arm: {"0.1": 0.5}})
    report("--labels", "0.1", "--rows", "near")
    with pytest.raises(SystemExit, match=r"labels \[0.1\] there and \[0.2\] here"):
        report("--labels", "0.2", "--rows", "near")


def test_a_share_holds_every_smaller_one():
    y = torch.arange(300) % 3
    shares = [set(draw_labels(y, share, seed=5).tolist()) for share in (0.001, 0.01, 0.1, 0.25, 1.0)]
    assert [len(rows) for rows in shares] == [3, 3, 30, 75, 300]  # of 100 rows a class: one at least
    assert all(few <= more for few, more in pairwise(shares))


@pytest.mark.parametrize(("rows", "size", "steps"), [(5, 5, 1), (128, 128, 1), (300, 128, 2)])
def test_whole_batches_in_a_new_order_each_epoch(rows, size, steps):
    torch.manual_seed(0)
    drawn = list(islice(batches(torch.arange(rows) + 1000), 2 * steps))
    assert steps_per_epoch(rows) == steps
    assert [len(batch) for batch in drawn] == [size] * (2 * steps)
    for epoch in (drawn[:steps], drawn[steps:]):
        assert len(torch.cat(epoch).unique()) == size * steps
    assert not torch.equal(drawn[0], drawn[steps])


def test_fine_tuning_an_encoder_without_weights_is_logistic_regression(table):
    x, y, test_x, test_y = (torch.from_numpy(part) for part in table)
    encoder = Raw()
    encoder.features = 3
    data = Dataset("near", x, y, test_x, test_y, ["x", "y"])
    found = fine_tune(encoder, data, torch.nn.Identity(), torch.arange(len(y)), steps=300, rate=0.5)
    linear = LogisticRegression(C=1e4).fit(table[0], table[1])
    assert found == pytest.approx(linear.score(table[2], table[3]), abs=0.034)  # one row of thirty


def test_fine_tuning_leaves_the_encoder_as_it_is(table):
    x, y, test_x, test_y = (torch.from_numpy(part) for part in table)
    encoder = torch.nn.Linear(3, 4)
    encoder.features = 4
    before = encoder.weight.clone()
    data = Dataset("near", x, y, test_x, test_y, ["x", "y"])
    fine_tune(encoder, data, torch.nn.Identity(), torch.arange(10), steps=5, rate=0.5)
    assert torch.equal(encoder.weight, before)
