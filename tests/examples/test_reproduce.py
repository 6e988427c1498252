import importlib
import json

import numpy as np
import pandas as pd
import probe
import pytest
import reproduce
import runner.run
import torch
from runner.data.dataset import Dataset
from runner.data.speech import SpeechDataset
from runner.paper import SCALES, TABLES, recipe
from runner.report import plots
from scipy import stats

ROWS = [row for rows in TABLES.values() for row in rows]


class Reached(Exception):
    """The options were taken, and training would begin."""


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.table}-{row.name}")
def test_the_scripts_take_every_recipe(monkeypatch, tmp_path, row, scale):
    y = torch.arange(40_000) % 2
    kind, x, load = {
        "image": (Dataset, torch.zeros(40_000, 3, 1, 1, dtype=torch.uint8), "runner.domains.image.load_image"),
        "speech": (SpeechDataset, torch.zeros(40_000, 1), "runner.domains.speech.load_speech"),
        "tabular": (Dataset, torch.zeros(40_000, 54), "runner.domains.tabular.load_tabular"),
    }[row.domain]
    monkeypatch.setattr(load, lambda *_, **__: kind(row.data, x, y, x, y, ["a", "b"]))
    monkeypatch.setattr("runner.domains.speech.spectrograms", lambda clips, _: clips)
    seen, seen_mixes = [], []

    def stop(experiment, *_):
        seen.append(experiment.settings)
        seen_mixes.append(experiment.mix)
        raise Reached

    monkeypatch.setattr("runner.run.pretrain", stop)
    script = importlib.import_module(row.domain)
    rest = ["--data", row.data, "--no-controls", "--device", "cpu", "--out", str(tmp_path)]
    for mix in ("none", "mixup"):
        with pytest.raises(Reached):
            script.main([*recipe(row, mix, scale), *rest])
    plain, mixed = seen
    imagenet = row.data.startswith("imagenet")
    large = row.domain == "tabular" or (imagenet and scale != "cpu")
    short = scale == "cpu" and row.domain != "tabular" and not imagenet
    assert plain.batch_size == mixed.batch_size == (128 if short else 512 if large else 256)
    assert seen_mixes == ["none", "cutmix" if imagenet else "mixup"]
    assert plain.augment == ("none" if row.table == "3" or short else "default")
    assert mixed.alpha == (2.0 if row.data == "covtype" else 1.0)
    if row.domain == "tabular":
        assert mixed.standardize_by == ("all" if scale == "paper" else "train")
        assert mixed.train_rows == (100_000 if row.data == "higgs100k" else None)
    if imagenet and scale == "paper":  # a rate of 0.03 for 256, no batch normalisation in the head
        assert (plain.epochs, plain.lr, plain.queue, plain.projection_bn) == (800, 0.03, 65_536, "none")
        assert (mixed.alpha, mixed.temperature, mixed.arch) == (1.0, 0.2, "resnet50")


def forest(path, rows):
    """Rows as in UCI's file, whose class shows in a column."""
    draw = np.random.default_rng(0)
    y = draw.integers(1, 8, rows)
    kinds = np.eye(4, dtype=int)[draw.integers(0, 4, rows)], np.eye(40, dtype=int)[draw.integers(0, 40, rows)]
    quantities = draw.normal(0, 1, (rows, 10)) + 3 * np.eye(10)[y]
    pd.DataFrame(np.hstack([quantities, *kinds, y[:, None]])).to_csv(path, header=False, index=False)
    return f"covtype={path}"


@pytest.fixture
def report(tmp_path):
    def call(folder, *options):
        common = ("--device", "cpu", "--data-root", tmp_path / "nothing", "--out", tmp_path / "out")
        reproduce.main([*map(str, options), *map(str, common)])
        return json.loads((tmp_path / "out" / folder / "report.json").read_text(encoding="utf-8"))["rows"]

    return call


def test_a_table_beside_the_published_figures(tmp_path, report, monkeypatch, capsys):
    options = ("1", "--rows", "covtype-npair", "cifar10-moco", "--path", forest(tmp_path / "cover.csv", 800))
    forests, cifar = report("table1-cpu", *options)
    assert forests["published"] == {"none": 68.5, "mixup": 72.1}
    assert 25 < forests["found"]["none"][0] <= 100  # chance is 14
    assert "cifar10 is not in" in cifar["cannot"]
    assert "--download" in cifar["cannot"]
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("| covtype-npair"))
    assert f"{forests['found']['mixup'][0]:.2f}" in row
    assert "| 68.5 | 72.1 |" in row
    assert row in (tmp_path / "out" / "table1-cpu" / "report.md").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "table1-cpu" / "report.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(runner.run, "pretrain", lambda *_: pytest.fail("trained again"))
    assert report("table1-cpu", *options)[0] == forests


SMALL = ("--rows", "cifar100-npair", "--path", "cifar100=digits", "--change", "epochs=1", "width=1", "probe-rows=200")


@pytest.mark.parametrize(
    ("over", "values", "options", "wanted"),
    [
        ("alpha", ("1", "3"), (), [("none", 2.0, None), ("mixup", 1.0, None), ("mixup", 3.0, None)]),
        ("lambda", ("row", "batch"), (), [("none", 2.0, None), ("mixup", 2.0, None), ("mixup", 2.0, "batch")]),
        ("mix", ("mixup", "cutmix"), SMALL, [("none", 1.0, None), ("mixup", 1.0, None), ("cutmix", 1.0, None)]),
    ],
)
def test_an_ablation_trains_what_does_not_vary_once(tmp_path, report, monkeypatch, over, values, options, wanted):
    trained = []
    pretrain = runner.run.pretrain

    def note(experiment, *rest):
        trained.append((experiment.mix, experiment.settings.alpha, experiment.settings.lambda_per))
        return pretrain(experiment, *rest)

    monkeypatch.setattr(runner.run, "pretrain", note)
    options = options or ("--path", forest(tmp_path / "cover.csv", 800))
    row = "cifar100-npair" if "cifar100-npair" in options else "covtype-npair"
    one, other = report(f"ablation-{over}-{row}-cpu", "ablation", "--over", over, "--values", *values, *options)
    assert trained == wanted
    assert (one["value"], other["value"]) == values
    assert one["found"]["none"] == other["found"]["none"]


@pytest.mark.parametrize(
    ("kind", "folder"), [(("1",), "table1-cpu"), (("transfer", "--to", "cifar100"), "transfer-cpu")]
)
def test_a_change_of_imix_leaves_training_without_it_as_it_is(tmp_path, report, kind, folder):
    (row,) = report(folder, *kind, *SMALL, "mix=cutmix", "alpha=3")
    assert [(run["mix"], run["config"]["alpha"]) for run in trained_in(tmp_path)] == [("none", 1.0), ("cutmix", 3.0)]
    assert row["found"].keys() == {"none", "mixup"}


def trained_in(folder):
    """All runs of a report, those without i-Mix first."""
    results = sorted(folder.rglob("results.json"), key=lambda path: path.parent.name != "none")
    return [run for path in results for run in json.loads(path.read_text(encoding="utf-8"))["runs"]]


def test_an_ablation_shares_the_cells_of_table_1(tmp_path, report, monkeypatch):
    path = ("--path", forest(tmp_path / "cover.csv", 800))
    (table,) = report("table1-cpu", "1", "--rows", "covtype-npair", *path)
    monkeypatch.setattr(runner.run, "pretrain", lambda *_: pytest.fail("trained again"))
    (row,) = report(
        "ablation-temperature-covtype-npair-cpu", "ablation", "--over", "temperature", "--values", "0.1", *path
    )
    assert row["found"] == table["found"]


def test_an_ablation_draws_the_gain_with_its_interval(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, _: figures.append(figure))
    without, with_mix = [50.0, 51.0, 52.0], [53.0, 55.0, 54.0]
    lines = [
        {"value": "1", "found": {"none": without, "mixup": with_mix}},
        {"value": "2", "found": {"none": [50.0], "mixup": [49.0]}},
    ]
    plots.draw_against("alpha", tmp_path / "report.png", "title", lines)
    accuracy, gain = figures[0].axes
    assert [list(line.get_ydata()) for line in accuracy.lines] == [[51.0, 50.0], [54.0, 49.0]]
    assert list(gain.lines[1].get_ydata()) == [3.0, -1.0]
    (band,) = gain.collections
    reach = stats.ttest_rel(with_mix, without).confidence_interval(0.95)
    heights = band.get_paths()[0].vertices[:, 1]  # one run has no interval, and the band ends before it
    assert (heights.min(), heights.max()) == pytest.approx((reach.low, reach.high))


def test_transfer_probes_other_data(tmp_path, report):
    pretrained, other = forest(tmp_path / "cover.csv", 800), forest(tmp_path / "other.csv", 400)
    options = ("--path", pretrained, "--path", other.replace("covtype=", "other="), "--change", "epochs=3")
    (row,) = report("transfer-cpu", "transfer", "--rows", "covtype-npair", "--to", "other", *options)
    assert row["row"] == "covtype-npair to other"
    for (accuracy,) in row["found"].values():
        assert accuracy > 25
        assert accuracy == pytest.approx(round(accuracy), abs=1e-9)  # of the 100 test rows of the other file


def test_transfer_with_few_labels_says_what_the_probe_script_says(tmp_path, report):
    options = ("--rows", "covtype-npair", "--path", forest(tmp_path / "cover.csv", 800), "--change", "epochs=3")
    few, every = report("transfer-cpu", "transfer", "--labels", "0.1", "1", "--controls", *options)
    assert (few["row"], every["row"]) == ("covtype-npair to covtype, 10 % of the labels", "covtype-npair to covtype")
    for mix in ("none", "mixup"):
        run = tmp_path / "out" / "transfer-cpu" / "covtype-npair" / mix / "runs" / f"npair-{mix}-seed0"
        found = tmp_path / f"{mix}.json"
        probe.main([str(run / "checkpoint.pt"), "--labels", "0.1", "1", "--draws", "1", "--out", str(found)])
        by_probe = json.loads(found.read_text(encoding="utf-8"))["labels"]
        for row, share in ((few, "0.1"), (every, "1.0")):
            assert row["found"][mix] == pytest.approx([100 * by_probe[share]["probe_accuracy"]])
            assert row["runs"][mix][0]["labels"] == by_probe[share]["rows"]
    for row in (few, every):
        assert [one["seed"] for one in row["controls"]["untrained"]] == [0]


def test_varying_an_option_drops_what_only_went_with_the_old_value():
    options = ["--milestones", "18", "24", "--arch", "cnn", "--width", "16", "--epochs", "30"]
    assert reproduce._replace(options, "epochs", "60") == ["--arch", "cnn", "--width", "16", "--epochs", "60"]
    assert reproduce._replace(options[3:], "arch", "resnet18") == ["--epochs", "30", "--arch", "resnet18"]
    small = ["--width", "16", "--epochs", "30", "--arch", "resnet14"]
    assert reproduce._replace(options[3:], "arch", "resnet14") == small


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("1", "--rows", "mnist-npair"), "known are cifar10-npair"),
        (("ablation",), "--over"),
        (("ablation", "--over", "depth"), "has no such thing"),
        (("ablation", "--over", "mix"), "has no such thing; give --rows one of image or speech"),
        (("ablation", "--over", "queue", "--rows", "covtype-npair"), "N-pair has none"),
        (("transfer", "--labels", "2"), "wanted shares between 0 and 1"),
    ],
)
def test_refusals(report, options, words):
    with pytest.raises(SystemExit, match=words):
        report("none", *options)


def test_what_cannot_run_says_why(report):
    rows = report("table2-cpu", "2")
    assert [row["row"] for row in rows] == ["imagenet100-moco", "imagenet-moco", "higgs100k-moco", "higgs-moco"]
    assert all("cannot" in row for row in rows)
    assert "imagenet is not in" in rows[1]["cannot"]
    assert "put it there" in rows[1]["cannot"]
