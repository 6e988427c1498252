"""Many tables, each judged in every way: what is counted, what is kept, what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
import reproduce
import runner.many_tables
from runner.data.split import split_rows
from runner.evaluate import extract_features, linear_probe, nearest_neighbours
from runner.many_tables import ARMS, BOOSTING, DEVELOPMENT, JOINED, RAW, open_bench
from runner.report.paired import sign_test
from runner.report.wins import accuracies, compare, gains, matrix, means, seeds_of, wins
from runner.run import pretrain
from runner.state.experiment import Experiment
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

FOUND = {"sea": {"a": 90.0, "b": 80.0}, "sun": {"a": 70.0, "b": 70.004}, "sky": {"a": 50.0, "b": 60.0}}


@pytest.fixture
def folder(tmp_path):
    """Two tables whose class shows in one of three columns."""
    (tmp_path / "tables").mkdir()
    draw = np.random.default_rng(0)
    for name, shift in (("near", 1.0), ("vehicle", 3.0)):
        y = draw.integers(0, 2, 100)
        frame = pd.DataFrame(draw.normal(0, 1, (100, 3)).round(3), columns=list("abc"))
        frame["a"] += shift * y
        frame.assign(kind=np.array(["x", "y"])[y]).to_csv(tmp_path / "tables" / f"{name}.csv", index=False)
    return tmp_path / "tables"


@pytest.fixture
def report(folder, tmp_path):
    def call(*options):
        common = ("--label", "kind", "--change", "epochs=2", "width=1", "--out", str(tmp_path / "out"))
        reproduce.main(["tables", "--path", str(folder), "--device", "cpu", *common, *options])
        return json.loads((tmp_path / "out" / "tables-npair" / "report.json").read_text(encoding="utf-8"))

    return call


def test_every_way_on_every_table(report, capsys, tmp_path):
    first = report()
    every = {(table, arm) for table in ("near", "vehicle") for arm in ARMS}
    assert {(cell["table"], cell["arm"]) for cell in first["cells"]} == every
    assert first["tables"]["near"] == {"training_rows": 80, "test_rows": 20, "columns": 3, "inputs": 3, "classes": 2}
    page = (tmp_path / "out" / "tables-npair" / "report.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    others, _, development = page.partition("## Development tables, linear probe")
    assert "| near |" in others
    assert "| vehicle |" in development
    assert (tmp_path / "out" / "tables-npair" / "probe_accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_learnt_is_judged_without_what_goes_past_it(folder, tmp_path):
    options = ["--epochs", "2", "--width", "1", "--device", "cpu"]
    bench = open_bench(folder / "vehicle.csv", "kind", tmp_path / "out", options)
    settings, task = bench.prepared["none"]
    found = bench.judge("i-Mix", 0)["i-Mix"]
    encoder, _ = pretrain(Experiment(settings, "mixup", 0), task, task.data)  # on from its last checkpoint: as it ended
    whole = (extract_features(encoder, x, task.to_input) for x in (task.data.train_x, task.data.test_x))
    train, test = (features[:, : encoder.features - encoder.encode.outputs] for features in whole)
    labels = task.data.train_y, task.data.test_y
    assert found["learnt_probe_accuracy"] == linear_probe(train, labels[0], test, labels[1])
    assert found["learnt_knn_accuracy"] == nearest_neighbours(train, labels[0], test, labels[1])


def test_a_network_that_hands_nothing_past_itself_is_judged_once(folder, tmp_path):
    options = ["--epochs", "2", "--width", "1", "--bins", "0", "--device", "cpu"]
    bench = open_bench(folder / "vehicle.csv", "kind", tmp_path / "out", options)
    assert set(bench.judge("untrained network", 0)["untrained network"]) == {"probe_accuracy", "knn_accuracy"}


def test_nothing_is_done_twice(report, monkeypatch):
    asked, stop_at = [], 3

    def judge(bench, arm, seed):
        asked.append((bench.path.stem, arm, seed))
        if len(asked) == stop_at:
            raise KeyboardInterrupt
        found = {"probe_accuracy": 0.5, "knn_accuracy": 0.5}
        return {arm: found, JOINED: found} if arm == "SCARF + i-Mix" else {arm: found}

    monkeypatch.setattr(runner.many_tables.Bench, "judge", judge)
    with pytest.raises(SystemExit):
        report()
    first = report()
    assert report("--seeds", "2")["cells"][: len(first["cells"])] == first["cells"]

    alone = [arm for arm in ARMS if arm != JOINED]  # it comes along with SCARF + i-Mix
    seeded = [arm for arm in alone if arm not in (RAW, BOOSTING)]
    wanted = [(table, arm, 0) for table in ("near", "vehicle") for arm in alone]
    wanted.insert(stop_at, wanted[stop_at - 1])  # what was cut short is done again, and nothing else
    assert asked == [*wanted, *((table, arm, 1) for table in ("near", "vehicle") for arm in seeded)]


def test_boosting_and_the_raw_columns_are_scikit_learns(report, folder):
    cells = {(cell["table"], cell["arm"]): cell["probe_accuracy"] for cell in report("--rows", "vehicle")["cells"]}
    frame = pd.read_csv(folder / "vehicle.csv")
    train, test = split_rows("vehicle", (frame["kind"] == "y").to_numpy().astype(int))
    x, y = frame[list("abc")].to_numpy(), frame["kind"].to_numpy()
    boosted = HistGradientBoostingClassifier(random_state=0).fit(x[train], y[train])
    assert cells["vehicle", BOOSTING] == pytest.approx(boosted.score(x[test], y[test]), abs=0.051)  # a row may tie
    linear = LogisticRegression().fit(x[train], y[train])
    assert cells["vehicle", RAW] == pytest.approx(linear.score(x[test], y[test]), abs=0.051)
    assert cells["vehicle", JOINED] > 0.7


def test_other_settings_are_refused(report):
    report("--rows", "near")
    with pytest.raises(SystemExit, match="alpha None there and 3 here"):
        report("--rows", "near", "--change", "epochs=2", "width=1", "alpha=3")


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--rows", "far"), "no such table"), (("--label", "type"), "no column 'type'")],
)
def test_refusals(report, options, words):
    with pytest.raises(SystemExit, match=words):
        report(*options)


def test_a_folder_without_tables_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing", encoding="utf-8")
    with pytest.raises(SystemExit, match="no table in it"):
        reproduce.main(["tables", "--path", str(tmp_path)])
    with pytest.raises(SystemExit, match="wanted a folder"):
        reproduce.main(["tables", "--path", str(tmp_path / "notes.txt")])


def test_who_is_ahead():
    assert wins(FOUND, "a", "b") == wins(FOUND, "b", "a") == (1, 1)  # what is equal to a hundredth is neither
    assert matrix(FOUND, ["a", "b"]).splitlines()[2:] == ["| a |  | 1 : 1 |", "| b | 1 : 1 |  |"]
    assert accuracies(FOUND, ["a", "b"]).splitlines()[2:] == [
        "| sea | **90.0** | 80.0 |",
        "| sky | 50.0 | **60.0** |",
        "| sun | **70.0** | **70.0** |",
        "| mean | 70.0 | 70.0 |",
    ]
    words = compare(FOUND, "a", "b")
    assert words.startswith("a is ahead of b on 1 of 3 tables and behind on 1 (sign test p = 1; 0.0")
    assert words.endswith("worst -10.0)")


def test_the_sign_test_by_hand():
    assert sign_test(5, 0) == pytest.approx(2 / 2**5)
    assert sign_test(1, 3) == pytest.approx(2 * (1 + 4) / 2**4)
    assert sign_test(0, 0) == 1.0


def test_means_are_of_tables_that_have_all():
    cells = [
        {"table": "sea", "arm": "a", "seed": 0, "x": 0.5},
        {"table": "sea", "arm": "a", "seed": 1, "x": 0.7},
        {"table": "sea", "arm": "b", "seed": 0, "x": 0.2},
        {"table": "sun", "arm": "a", "seed": 0, "x": 0.1},
        {"table": "sun", "arm": "b", "seed": 0},
    ]
    assert means(cells, "x", ["a", "b"]) == {"sea": {"a": pytest.approx(60), "b": pytest.approx(20)}}


def test_gains_by_hand():
    # Student's t of two degrees of freedom is 4.303 at 97.5 %: the half widths are 4.303 / sqrt(3) standard deviations.
    found = {"even": (0.51, 0.52, 0.53), "sure": (0.520, 0.521, 0.522), "once": (0.5,), "same": (0.6, 0.6, 0.6)}
    cells = [
        {"table": "sea", "arm": arm, "seed": seed, "x": x} for arm, xs in found.items() for seed, x in enumerate(xs)
    ]
    pairs = [("even", "once"), ("sure", "once"), ("once", "sure"), ("same", "once"), ("sure", "even")]
    assert gains([*cells, {"table": "sun", "arm": "even", "seed": 0, "x": 0.5}], "x", pairs).splitlines()[2:] == [
        "| sea | +2.0 (-0.5 to +4.5) | **+2.1 (+1.9 to +2.3)** | -2.0 | +10.0 | +0.1 (-2.1 to +2.3) |"
    ]


def test_how_many_seeds():
    one, two, three = ({"table": table, "seed": seed} for table, seed in (("sea", 0), ("sea", 1), ("sun", 0)))
    assert seeds_of([one, three]) == "one seed"
    assert seeds_of([one, two]) == "2 seeds"
    assert seeds_of([one, two, three]) == "1 to 2 seeds"


def test_the_recipe_was_chosen_on_few_tables():
    assert len(set(DEVELOPMENT)) == 8
