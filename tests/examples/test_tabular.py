import gzip

import image
import numpy as np
import pandas as pd
import pytest
import runner.report.plots
import tabular
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from runner.augment.tabular import input_dropout
from runner.data.dataset import subsample
from runner.data.tabular import load_tabular
from runner.errors import Refused
from runner.recipe import build_mix, build_optimizer
from runner.state.saved import open_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from imix_aug import InputMix

TINY = ("--epochs", 1, "--batch-size", 256, "--seeds", 1, "--width", 1)


@pytest.mark.parametrize("method", ["npair", "simclr", "moco", "byol", "simsiam", "supcon"])
def test_every_method_with_every_mix(runs, tmp_path, capsys, method):
    done = runs(tabular, "--method", method, "--mix", "none", "mixup", "cutmix", *TINY)
    assert [run["mix"] for run in done] == ["none", "mixup", "cutmix"]
    for run in done:
        assert run["method"] == method
        assert run["seed"] == 0
        assert run["seconds"] > 0
        assert {"torch", "imix_aug", "python"} <= run["versions"].keys()
        assert run["config"]["epochs"] == 1
        assert run["config"]["alpha"] == 1.0
        assert 0 < run["metrics"]["probe_accuracy"] <= 1
        assert 0 < run["metrics"]["knn_accuracy"] <= 1
    for picture in ("comparison.png", "curves.png"):
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")
    table = capsys.readouterr().out
    assert all(word in table for word in ("linear probe", "kNN", "gain", "mixup", "cutmix"))


def test_no_bar_is_behind_the_legend(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(runner.report.plots, "save_figure", lambda figure, _: drawn.append(figure))
    ways = ("raw", "untrained", "none", "mixup")
    runner.report.plots.draw_comparison(
        tmp_path, "", {way: {"probe": (95.0, 1.0), "kNN": (94.0, 1.0)} for way in ways}, {}
    )
    (figure,) = drawn
    FigureCanvasAgg(figure).draw()
    ((legend,), (axes,)) = figure.legends, figure.axes
    assert len(legend.get_texts()) == 4
    assert not legend.get_window_extent().overlaps(axes.get_tightbbox())


def test_pretraining_beats_random_weights_and_seeds_differ(runs, tmp_path):
    trained = runs(tabular, "--mix", "mixup", "--epochs", 10, "--batch-size", 128, "--seeds", 2)
    untrained = runs(
        tabular, "--mix", "mixup", "--epochs", 1, "--batch-size", 128, "--seeds", 2, "--lr", 1e-12, out=tmp_path / "not"
    )
    knn = [np.mean([run["metrics"]["knn_accuracy"] for run in runs]) for runs in (untrained, trained)]
    assert knn[1] > 0.85
    assert knn[1] > knn[0] + 0.03
    assert trained[0]["metrics"] != trained[1]["metrics"]


def test_no_augmentation_with_inputmix(runs):
    done = runs(tabular, "--augment", "none", "--inputmix", 2, "--mix", "mixup", *TINY)
    assert done[0]["config"]["inputmix"] == 2
    assert done[0]["config"]["augment"] == "none"


def test_inputmix_blends_in_rows_of_both_views(runs, monkeypatch):
    seen = []

    def build_inputmix(others):
        mix = InputMix(others)
        mix.register_forward_hook(lambda _module, inputs, mixed: seen.append((inputs[0], mixed)))
        return mix

    monkeypatch.setattr("runner.run.build_inputmix", build_inputmix)
    runs(tabular, "--inputmix", 2, "--mix", "none", "--augment", "none", *TINY)
    before, after = seen[0]
    assert before.shape == after.shape == (512, 64)
    assert torch.equal(before[:256], before[256:])  # two views of the same rows
    assert not torch.allclose(after[:256], after[256:])


def forest(rows):
    """Rows in UCI's format: 10 quantities, 4 + 40 indicators, the class last."""
    draw = np.random.default_rng(0)
    quantities = draw.integers(0, 3000, (rows, 10))
    kinds = np.eye(4, dtype=int)[draw.integers(0, 4, rows)], np.eye(40, dtype=int)[draw.integers(0, 40, rows)]
    return np.hstack([quantities, *kinds, draw.integers(1, 8, (rows, 1))])


@pytest.mark.parametrize(("rows", "train", "test"), [(100_000, 15_120, 84_880), (20_000, 11_340, 3_780), (80, 60, 20)])
def test_covtype_file(tmp_path, rows, train, test):
    table = forest(rows)
    pd.DataFrame(table).to_csv(tmp_path / "covtype.data.gz", header=False, index=False)
    data = load_tabular(str(tmp_path / "covtype.data.gz"))
    assert data.name == "covtype"
    assert data.groups == (10, 4, 40)
    assert (len(data.train_x), len(data.test_x), len(data.classes)) == (train, test, 7)
    assert torch.equal(data.train_y, torch.from_numpy(table[:train, -1] - 1))
    assert torch.equal(data.test_y, torch.from_numpy(table[train : train + test, -1] - 1))
    mean, std = table[:train, :10].mean(0), table[:train, :10].std(0)
    expected = (table[train : train + test, :10] - mean) / std
    np.testing.assert_allclose(data.test_x[:, :10], expected, atol=1e-4)
    assert torch.equal(data.train_x[:, 10:], torch.from_numpy(table[:train, 10:-1]).float())


@pytest.mark.parametrize("rows", [200, 20_000])
def test_covtype_standardised_by_all_its_rows(tmp_path, rows):
    table = forest(rows)
    pd.DataFrame(table).to_csv(tmp_path / "covtype.data", header=False, index=False)
    data = load_tabular(str(tmp_path / "covtype.data"), standardize_by="all")
    used = len(data.train_x) + len(data.test_x)
    quantities = table[:used, :10].astype(float)
    expected = (quantities - quantities.mean(0)) / quantities.std(0)
    np.testing.assert_allclose(torch.cat([data.train_x, data.test_x])[:, :10], expected, atol=1e-4)
    np.testing.assert_array_equal(torch.cat([data.train_x, data.test_x])[:, 10:], table[:used, 10:-1])


def test_only_covtype_is_standardised_by_all_rows(refusal):
    line = refusal(tabular, "--standardize-by", "all")
    assert "--standardize-by all" in line
    assert "digits" in line


def test_a_saved_run_remembers_which_rows_standardised_it(tmp_path, runs):
    pd.DataFrame(forest(200)).to_csv(tmp_path / "cover.csv", header=False, index=False)
    data = tmp_path / "cover.csv"
    runs(tabular, "--data", data, "--standardize-by", "all", "--mix", "none", "--epochs", 1, "--seeds", 1)
    _, task = open_run(tmp_path / "out" / "runs" / "npair-none-seed0" / "checkpoint.pt", torch.device("cpu"))
    assert torch.equal(task.data.train_x, load_tabular(str(data), standardize_by="all").train_x)


def test_covtype_trains_with_the_paper_recipe(runs, tmp_path):
    pd.DataFrame(forest(200)).to_csv(tmp_path / "cover.csv", header=False, index=False)
    config = runs(tabular, "--data", tmp_path / "cover.csv", "--epochs", 1, "--batch-size", 64)[0]["config"]
    assert (config["temperature"], config["alpha"], config["width"]) == (0.1, 2.0, 4)
    assert (config["dropout"], config["dropout_columns"], config["standardize_by"]) == (0.2, 10, "train")


@pytest.fixture
def higgs(tmp_path):
    """A file like UCI's, and what is in it."""
    draw = np.random.default_rng(0)
    table = np.hstack([draw.integers(0, 2, (50, 1)), draw.normal(3.0, 2.0, (50, 28))])
    with gzip.open(tmp_path / "HIGGS.csv.gz", "wt", encoding="utf-8") as file:
        np.savetxt(file, table, delimiter=",", fmt="%.18e")
    return str(tmp_path / "HIGGS.csv.gz"), table


def test_higgs_file(higgs):
    path, table = higgs
    data = load_tabular(path)
    assert data.name == "higgs"
    assert torch.equal(torch.cat([data.train_y, data.test_y]), torch.from_numpy(table[:, 0]).long())
    assert (len(data.train_x), len(data.test_x)) == (40, 10)
    np.testing.assert_allclose(data.train_x.mean(0), np.zeros(28), atol=1e-6)
    np.testing.assert_allclose(data.train_x.std(0, correction=0), np.ones(28), atol=1e-6)


def test_of_higgs_the_papers_rows_are_drawn(higgs):
    path, table = higgs
    np.random.seed(1)  # noqa: NPY002, as the authors' code says it
    rows = np.random.choice(40, 12, replace=False)  # noqa: NPY002
    data = load_tabular(path, train_rows=12, standardize_by="all")
    scaled = (table[:, 1:] - table[:, 1:].mean(0)) / table[:, 1:].std(0)
    np.testing.assert_allclose(data.train_x, scaled[rows], atol=1e-5)
    np.testing.assert_allclose(data.test_x, scaled[40:], atol=1e-5)
    assert data.train_y.tolist() == table[rows, 0].tolist()
    assert data.places().tolist() == [*rows, *range(40, 50)]
    drawn = load_tabular(path, train_rows=12)
    np.testing.assert_allclose(drawn.train_x.mean(0), np.zeros(28), atol=1e-6)
    with pytest.raises(Refused, match=r"--train-rows 41: higgs has 40 here; the paper's come from UCI's HIGGS.csv.gz"):
        load_tabular(path, train_rows=41)
    with pytest.raises(Refused, match=r"--train-rows 7: only for higgs, got digits"):
        load_tabular("digits", train_rows=7)


def test_of_the_whole_file_the_last_half_million_test(monkeypatch):
    table = np.zeros((1_500_000, 2), np.float32)
    table[:, 0], table[::2, 1] = np.arange(1_500_000), 1
    monkeypatch.setattr("runner.data.tabular._read_numbers", lambda _: np.fliplr(table))
    monkeypatch.setattr("runner.data.tabular._columns_without_header", lambda _: 29)
    data = load_tabular(__file__)
    assert (len(data.train_y), len(data.test_y)) == (1_000_000, 500_000)
    assert data.train_x.diff(dim=0).min() > 0  # in the order of the file


@pytest.fixture
def animals():
    draw = np.random.default_rng(0)
    kind = np.repeat(["cat", "dog", "eel"], 40)
    size = draw.normal(0, 1, 120) + 5 * (kind == "dog")
    return pd.DataFrame({"size": size, "kind": kind, "legs": np.where(kind == "eel", 0, 4), "constant": 1})


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_own_file(tmp_path, runs, animals, suffix):
    path = tmp_path / f"animals{suffix}"
    if suffix == ".parquet":
        animals.to_parquet(path)
    else:
        animals.to_csv(path, index=False)
    data = load_tabular(str(path), label="kind")
    assert data.classes == ["cat", "dog", "eel"]
    assert torch.bincount(data.train_y).tolist() == [32, 32, 32]
    assert torch.bincount(data.test_y).tolist() == [8, 8, 8]
    legs = torch.cat([data.train_x, data.test_x])[:, 1]
    assert torch.equal(legs > 0, torch.cat([data.train_y, data.test_y]) != 2)
    assert torch.equal(data.train_x[:, 2], torch.zeros(96))
    done = runs(
        tabular, "--data", path, "--label", "kind", "--epochs", 5, "--batch-size", 32, "--mix", "mixup", "--seeds", 1
    )
    assert done[0]["metrics"]["probe_accuracy"] > 0.7


def test_few_rows_get_a_smaller_batch_unless_one_is_given(tmp_path, runs, animals):
    animals.to_csv(tmp_path / "animals.csv", index=False)
    options = ("--data", tmp_path / "animals.csv", "--label", "kind", "--epochs", 1, "--mix", "none", "--seeds", 1)
    sizes = {
        runs(tabular, *options, *more, out=tmp_path / name)[0]["config"]["batch_size"]
        for name, more in {"chosen": (), "given": ("--batch-size", 96), "less": ("--data-fraction", 0.25)}.items()
    }
    assert sizes == {16, 96, 4}  # four batches of the 96 rows, or of the 24
    digits = runs(tabular, "--epochs", 1, "--mix", "none", "--seeds", 1, "--width", 1, out=tmp_path / "digits")
    assert digits[0]["config"]["batch_size"] == 256


def test_input_dropout():
    x = torch.ones(1000, 50)
    y = input_dropout(0.2)(x)
    assert set(y.unique().tolist()) == {0.0, 1.0}
    assert abs(y.mean().item() - 0.8) < 0.01
    assert torch.equal(input_dropout(0.0)(x), x)
    a, b = (input_dropout(0.2)(x, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a, b)


def test_refusals_name_what_is_wrong(tmp_path, refusal, animals):
    def write(frame, name="bad.csv"):
        frame.to_csv(tmp_path / name, index=False)
        return str(tmp_path / name)

    def error(data, *options, label="kind"):
        with pytest.raises(Refused) as refused:
            load_tabular(data, label=label)
        return str(refused.value)

    assert "no such file" in error(str(tmp_path / "absent.csv"))
    good = write(animals, "good.csv")
    assert "no column 'species'" in error(good, label="species")
    assert "--label" in error(good, label=None)
    (tmp_path / "empty.csv").touch()
    assert "empty.csv: the file is empty" in error(str(tmp_path / "empty.csv"))
    assert "empty.csv: the file is empty" in error(str(tmp_path / "empty.csv"), label=None)
    (tmp_path / "broken.csv.gz").write_bytes(b"not gzip at all")
    assert "broken.csv.gz" in error(str(tmp_path / "broken.csv.gz"))
    whole = gzip.compress(animals.to_csv(index=False).encode())
    (tmp_path / "torn.csv.gz").write_bytes(whole[:-20])
    assert "torn.csv.gz" in error(str(tmp_path / "torn.csv.gz"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    assert "broken.parquet" in error(str(tmp_path / "broken.parquet"))
    text = error(write(animals.assign(legs=animals["legs"].astype(str).where(animals.index != 6, "four"))))
    assert "'legs'" in text
    assert "'four'" in text
    assert "row 7" in text
    assert "'size'" in error(write(animals.assign(size=animals["size"].where(animals.index != 3, np.inf))))
    assert "one class" in error(write(animals.assign(kind="cat")))
    assert "has no value" in error(write(animals.assign(kind=animals["kind"].where(animals.index != 3))))
    assert "no column beside" in error(write(animals[["kind"]]))
    assert "wanted classes" in error(write(animals), label="size")

    assert "--batch-size 512" in refusal(tabular, "--data", good, "--label", "kind", "--batch-size", 512)
    assert "--epochs" in refusal(tabular, "--epochs", 0)
    assert "--alpha" in refusal(tabular, "--alpha", -1)
    assert "absent.csv" in refusal(tabular, "--data", tmp_path / "absent.csv")


def test_a_loss_that_is_no_number_ends_the_run(refusal):
    line = refusal(tabular, *TINY[2:], "--epochs", 30, "--method", "byol", "--mix", "none", "--lr", 1e30)
    assert "loss became" in line
    assert "at step" in line


def test_tensorboard_gets_the_loss_of_every_epoch(runs, tmp_path):
    runs(tabular, *TINY[2:], "--epochs", 3, "--mix", "none", "--tensorboard")
    folder = tmp_path / "out" / "runs" / "npair-none-seed0"
    events = EventAccumulator(str(folder)).Reload()
    progress = torch.load(folder / "checkpoint.pt", weights_only=True)["progress"]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(progress["losses"])
    assert [event.step for event in events.Scalars("loss")] == [5, 10, 15]
    assert events.Scalars("learning rate")[-1].value < 0.01
    pictures = EventAccumulator(str(tmp_path / "out")).Reload()
    assert pictures.Tags()["images"] == ["comparison", "curves"]


@pytest.mark.parametrize(
    ("script", "options", "words"),
    [
        (image, ("--arch", "resnet18", "--width", 8), "--width 8"),
        (tabular, ("--method", "byol", "--temperature", 0.1), "--temperature 0.1"),
        (tabular, ("--queue", 100), "--queue 100"),
        (tabular, ("--method", "simsiam", "--momentum", 0.9), "--momentum 0.9"),
        (tabular, ("--mix", "none", "--alpha", 2), "--alpha 2.0"),
        (tabular, ("--mix", "none", "--lambda-per", "batch"), "--lambda-per batch"),
        (tabular, ("--mix", "none", "--mix-at", "layer2"), "--mix-at layer2"),
        (tabular, ("--augment", "none", "--dropout", 0.1), "--dropout 0.1"),
        (tabular, ("--label", "kind"), "--label kind"),
        (tabular, ("--prediction-bn", "both"), "--prediction-bn both"),
        (image, ("--image-size", 16), "--image-size 16"),
        (tabular, ("--epochs", 5, "--milestones", 3, 5), "--milestones 5"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(refusal, script, options, words):
    assert words in refusal(script, *options)


@pytest.mark.parametrize(
    ("options", "draws"),
    [
        (("--mix", "mixup"), 128),
        (("--mix", "mixup", "--lambda-per", "row"), 128),
        (("--mix", "mixup", "--lambda-per", "batch"), 1),
        (("--mix", "cutmix"), 1),
        (("--mix", "cutmix", "--lambda-per", "batch"), 1),
    ],
)
def test_a_lambda_is_drawn_per_row_or_per_batch(runs, monkeypatch, options, draws):
    drawn, real = set(), runner.run.build_mix

    def noting(*given, **more):
        imix = real(*given, **more)
        imix.register_forward_hook(lambda _module, _inputs, result: drawn.add(len(result[1].lam.unique())))
        return imix

    monkeypatch.setattr(runner.run, "build_mix", noting)
    runs(tabular, *options, "--epochs", 1, "--batch-size", 128, "--seeds", 1, "--width", 1)
    assert drawn == {draws}


def test_cutmix_cuts_each_row_in_its_own_way():
    imix = build_mix("cutmix", 1.0, "row", table=True)
    assert len(imix(torch.zeros(64, 100))[1].lam.unique()) > 10  # a span of the row is a whole number of columns


def test_milestones_divide_the_rate(runs, tmp_path):
    runs(tabular, *TINY[2:], "--epochs", 10, "--milestones", 6, 8, "--mix", "none", "--tensorboard", "--lr", 0.1)
    events = EventAccumulator(str(tmp_path / "out" / "runs" / "npair-none-seed0")).Reload()
    rates = [event.value for event in events.Scalars("learning rate")]  # after each epoch, of the next
    climbing = [0.1 * (5 * epoch + 1) / 25 for epoch in (1, 2, 3, 4)]  # 25 steps of warm-up, five an epoch
    assert rates == pytest.approx([*climbing, 0.1, 0.01, 0.01, 0.001, 0.001, 0.001], rel=1e-5)


def rates_of(epochs, steps_per_epoch, milestones=None):
    parameter = torch.nn.Parameter(torch.zeros(1))
    settings = {"lr": 0.125, "batch_size": 512, "weight_decay": 1e-4, "milestones": milestones}
    optimizer, schedule = build_optimizer([parameter], epochs=epochs, steps_per_epoch=steps_per_epoch, **settings)
    rates = []
    for _ in range(epochs * steps_per_epoch):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return np.array(rates).reshape(epochs, steps_per_epoch)


@pytest.mark.parametrize(("epochs", "warmup"), [(20, 5), (500, 5), (501, 10), (2000, 10), (4, 2)])
def test_the_rate_is_the_papers(epochs, warmup):
    rates, top = rates_of(epochs, 3), 0.125 * 512 / 256
    cosine = top * (1 + np.cos(np.pi * np.arange(epochs) / epochs)) / 2
    np.testing.assert_allclose(rates[warmup:], np.repeat(cosine[warmup:, None], 3, axis=1), rtol=1e-9)
    climb = cosine[warmup] * np.arange(1, 3 * warmup + 1) / (3 * warmup)
    np.testing.assert_allclose(rates[:warmup].ravel(), climb, rtol=1e-9)


def test_a_run_of_one_epoch_has_a_rate():
    assert (rates_of(1, 1) > 0).all()
    assert (rates_of(1, 4) > 0).all()
    assert rates_of(10, 2, milestones=(7,))[6:8, 0] == pytest.approx([0.25, 0.025])


def test_fractions_shrink_what_is_pretrained_on(runs):
    data = load_tabular("digits")
    half = subsample(data, 0.5, 1.0)
    counts = torch.bincount(data.train_y)
    assert (torch.bincount(half.train_y) - counts / 2).abs().max() <= 0.5
    assert torch.equal(half.test_x, data.test_x)
    few = subsample(data, 1.0, 0.3)
    assert torch.equal(torch.bincount(few.train_y), counts[:3])
    done = runs(tabular, *TINY[2:], "--epochs", 1, "--data-fraction", 0.5, "--class-fraction", 0.5, "--mix", "mixup")
    assert done[0]["metrics"]["probe_accuracy"] > 0.5  # of all ten classes: the probe sees them


def test_bfloat16_follows_float32(runs, tmp_path):
    options = (*TINY[2:], "--epochs", 3, "--mix", "mixup")
    curves = []
    for amp in ((), ("--amp", "bf16")):
        out = tmp_path / f"out{len(amp)}"
        runs(tabular, *options, *amp, out=out)
        checkpoint = torch.load(out / "runs" / "npair-mixup-seed0" / "checkpoint.pt", weights_only=True)
        curves.append(checkpoint["progress"]["losses"])
    assert curves[1] == pytest.approx(curves[0], rel=0.02)
    assert curves[1] != curves[0]


@pytest.mark.slow  # the compiler takes its time
def test_compiled_follows_eager(runs, tmp_path):
    options = (*TINY[2:], "--epochs", 2, "--mix", "mixup")
    curves = []
    for compiled in ((), ("--compile",)):
        out = tmp_path / f"out{len(compiled)}"
        runs(tabular, *options, *compiled, out=out)
        checkpoint = torch.load(out / "runs" / "npair-mixup-seed0" / "checkpoint.pt", weights_only=True)
        curves.append(checkpoint["progress"]["losses"])
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)
