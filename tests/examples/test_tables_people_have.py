"""Tables as people save them: what is read, what is said, and what is refused with its reason."""

import embed
import numpy as np
import pandas as pd
import pytest
import tabular
import torch
from runner.augment.tabular import scarf_corruption
from runner.data.split import split_rows
from runner.data.tabular import load_tabular
from runner.domains.tabular import TABULAR
from runner.errors import Refused
from runner.run import parse, prepare

SHORT = ("--epochs", 1, "--batch-size", 32, "--seeds", 1, "--width", 1, "--mix", "mixup")


@pytest.fixture
def plants():
    draw = np.random.default_rng(0)
    kind = np.repeat(["fern", "moss"], 40)
    frame = pd.DataFrame({"height": draw.normal(0, 1, 80).round(3) + 3 * (kind == "fern"), "kind": kind})
    frame["soil"] = draw.choice(["clay", "sand", "loam"], 80)
    return frame


@pytest.fixture
def load(tmp_path):
    """Save a table with pandas, read it back."""

    def call(frame, name="plants.csv", drop=(), **options):
        path = tmp_path / name
        if name.endswith(".parquet"):
            frame.to_parquet(path)
        else:
            frame.to_csv(path, **{"index": False, **options})
        return load_tabular(str(path), label="kind", drop=drop)

    return call


def in_order(data):
    """All rows as the network sees them, in the order of the file."""
    x = torch.cat([data.train_x, data.test_x])
    return x[np.argsort(data.places())].numpy()


def same(a, b):
    np.testing.assert_array_equal(in_order(a), in_order(b))
    assert torch.equal(a.train_y, b.train_y)
    return True


def test_text_is_one_hot_encoded(load, plants):
    data = load(plants)
    assert data.notes == ("text one-hot encoded into 3 columns: soil",)
    x = in_order(data)
    np.testing.assert_array_equal(x[:, 1:], pd.get_dummies(plants["soil"]).to_numpy(np.float32))
    trained = plants["height"].to_numpy()[data.places()[:64]]
    np.testing.assert_allclose(x[:, 0], (plants["height"] - trained.mean()) / trained.std(), atol=1e-6)


def test_a_category_that_no_training_row_has_is_none_of_them(load, plants):
    tested = load(plants).places()[-1]
    plants.loc[tested, "soil"] = "rock"
    data = load(plants)
    assert in_order(data).shape[1] == 4
    assert in_order(data)[tested, 1:].tolist() == [0, 0, 0]


def test_missing_values_are_filled_and_marked(load, plants):
    plants.loc[[3, 50], "height"] = np.nan
    plants.loc[7, "soil"] = None
    data = load(plants)
    assert data.notes[1] == "3 missing values filled, each column with an indicator: height, soil"
    x = in_order(data)  # height, its indicator, three soils, their indicator
    assert x[[3, 50], 0].tolist() == [0, 0]  # the mean of the training rows, standardised
    assert np.flatnonzero(x[:, 1]).tolist() == [3, 50]
    assert x[7, 2:].tolist() == [0, 0, 0, 1]
    known = np.setdiff1d(data.places()[:64], [3, 50])
    np.testing.assert_allclose(x[known, 0].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(x[known, 0].std(), 1, atol=1e-6)


def test_an_empty_column_is_left_out(load, plants):
    data = load(plants.assign(nothing=np.nan))
    assert data.notes[1] == "empty columns left out: nothing"
    assert same(data, load(plants))


def test_question_marks_are_missing(load, plants):
    with_marks = plants.assign(height=plants["height"].astype(str).where(plants.index != 3, "?"))
    assert same(load(with_marks), load(plants.assign(height=plants["height"].where(plants.index != 3))))


@pytest.mark.parametrize(
    ("options", "notes"),
    [
        ({"sep": ";"}, []),
        ({"sep": "\t"}, []),
        ({"sep": "|"}, []),
        ({"sep": ";", "decimal": ","}, ["decimal commas"]),
        ({"encoding": "utf-8-sig"}, []),
        ({"encoding": "utf-16"}, []),
        ({"lineterminator": "\r\n"}, []),
        ({"index": True}, ["the first column has no name, and is taken for an index"]),
        ({"quoting": 1}, []),
    ],
    ids=str,
)
def test_every_way_to_save_it_reads_alike(load, plants, options, notes):
    data = load(plants, **options)
    assert same(data, load(plants))
    assert list(data.notes[:-1]) == notes


def test_latin_1(load, plants):
    plants["soil"] = plants["soil"].replace("loam", "Löß")
    data = load(plants, encoding="latin-1")
    assert data.notes[0] == "not UTF-8, read as Latin-1"
    assert same(data, load(plants))
    assert "Löß" in set(data.raw["soil"])


def test_row_names_as_r_writes_them(tmp_path, load, plants):
    """A header that has a name less than the rows have values."""
    text = plants.to_csv(index=False).splitlines()
    rows = [text[0], *(f"plant{i},{line}" for i, line in enumerate(text[1:]))]
    (tmp_path / "r.csv").write_text("\n".join(rows), encoding="utf-8")
    data = load_tabular(str(tmp_path / "r.csv"), label="kind")
    assert same(data, load(plants))
    assert data.raw.index[3] == "plant3"


def levels(plants):
    return plants.set_axis(pd.MultiIndex.from_tuples([("a", "height"), ("b", "kind"), ("b", "soil")]), axis=1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p.assign(when=pd.date_range("2020-01-01", periods=80).astype(str)), "'when' holds dates or times"),
        (lambda p: p.assign(when=[f"{i % 28 + 1}.3.2021" for i in range(80)]), "'when' holds dates or times"),
        (lambda p: p.assign(when=[f"{i % 24}:30" for i in range(80)]), "'when' holds dates or times"),
        (lambda p: p.assign(when=[f"{i % 28 + 1} March 2020" for i in range(80)]), "'when' holds dates or times"),
        (lambda p: p.assign(name=[f"plant {i}" for i in range(80)]), "'name' holds 80 different texts in 80 rows"),
        (lambda p: p.assign(plant_id=range(500, 580)), "'plant_id' never repeats a number, as an identifier does"),
        (
            lambda p: p.assign(height=["tall", *p["height"][1:]]),
            "'height' holds 'tall' in row 1, and numbers elsewhere",
        ),
        (lambda p: p.set_axis(["a", "kind", "a"], axis=1), "two columns are called 'a'"),
        (levels, "two columns are called 'b'"),
        (lambda p: p.assign(height=np.where(p.index == 4, np.inf, 1.0)), "'height' is infinite in row 5"),
    ],
)
def test_what_is_refused_with_its_reason(load, plants, change, reason):
    with pytest.raises(Refused, match=reason) as refused:
        load(change(plants))
    assert "plants.csv: " in str(refused.value)
    assert "\n" not in str(refused.value)


def test_parquet_has_types(load, plants):
    with pytest.raises(Refused, match=r"'when' holds dates or times.*--drop when"):
        load(plants.assign(when=pd.date_range("2020-01-01", periods=80)), "p.parquet")
    with pytest.raises(Refused, match="names of 2 levels"):
        load(levels(plants), "p.parquet")
    categories = plants.assign(soil=plants["soil"].astype("category"))
    assert same(load(categories, "p.parquet"), load(plants))
    nullable = plants.assign(height=plants["height"].astype("Float64").where(plants.index != 3))
    assert same(load(nullable, "p.parquet"), load(plants.assign(height=plants["height"].where(plants.index != 3))))
    labelled = plants.set_index(pd.Index([f"p{i}" for i in range(80)], name="plant"))
    assert load(labelled, "p.parquet").raw.index.name == "plant"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\x03\x04 and so on", "a workbook or an archive; wanted a table"),
        (b"a,kind\n1,\0\0x\n", "no text; wanted a table"),
        (b"a,kind\n1,x\n1,2,3,4\n", "cannot be read"),
        (b"\n\n", "the file is empty"),
        (b"kind\nx\ny\n", "no column beside the label"),
        (b"a,kind\n,x\n,y\n,x\n,y\n,x\n", "no column that holds anything"),
        (b"a,kind\n1,x\n2,y\n", "2 rows are too few"),
    ],
)
def test_files_that_are_no_tables(tmp_path, content, reason):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(Refused, match=reason) as refused:
        load_tabular(str(tmp_path / "t.csv"), label="kind")
    assert "\n" not in str(refused.value)


def test_columns_can_be_dropped(load, plants, refusal, tmp_path, runs):
    more = plants.assign(name=[f"plant {i}" for i in range(80)], when="2020-01-01")
    assert same(load(more, drop=("name", "when")), load(plants))
    load(more, "more.csv", drop=("name", "when"))
    options = ("--data", tmp_path / "more.csv", "--label", "kind", *SHORT)
    (run,) = runs(tabular, *options, "--drop", "name", "when")
    assert run["config"]["drop"] == ["name", "when"]
    assert "no column 'colour' for --drop" in refusal(tabular, *options, "--drop", "colour")
    assert "--drop ['a']: digits" in refusal(tabular, "--drop", "a")


def test_a_class_of_one_row_trains(load, plants):
    plants.loc[11, "kind"] = "tree"
    data = load(plants)
    assert data.classes == ["fern", "moss", "tree"]
    assert 2 in data.train_y.tolist()
    y = np.array([0] * 9 + [1])
    train, test = split_rows("t", y)
    assert 9 in train
    assert sorted([*train, *test]) == list(range(10))


def test_features_join_the_file_by_its_index(tmp_path, runs, plants, capsys):
    plants.index = pd.Index([f"p{i:02}" for i in range(80)][::-1], name="plant")
    plants.to_parquet(tmp_path / "plants.parquet")
    runs(tabular, "--data", tmp_path / "plants.parquet", "--label", "kind", *SHORT)
    assert "plants: text one-hot encoded into 3 columns: soil" in capsys.readouterr().err
    checkpoint = str(tmp_path / "out" / "runs" / "npair-mixup-seed0" / "checkpoint.pt")
    for name in ("f.parquet", "f.csv"):
        embed.main([checkpoint, "--out", str(tmp_path / name), "--with-input", "--device", "cpu"])
    embed.main([checkpoint, "--out", str(tmp_path / "plain.parquet"), "--device", "cpu"])
    features = pd.read_parquet(tmp_path / "f.parquet")
    assert features.index.equals(plants.index)
    assert features.index.name == "plant"
    pd.testing.assert_frame_equal(features[["height", "soil"]], plants[["height", "soil"]])
    assert features["label"].tolist() == plants["kind"].tolist()
    assert pd.read_csv(tmp_path / "f.csv", index_col="plant").shape == features.shape
    joined = plants.join(pd.read_parquet(tmp_path / "plain.parquet"))
    pd.testing.assert_series_equal(joined["feature_0"], features["feature_0"])
    assert features["split"].value_counts().to_dict() == {"train": 64, "test": 16}


def test_joining_refuses_what_it_would_overwrite(tmp_path, runs, plants):
    plants.assign(split=1.0).to_csv(tmp_path / "plants.csv", index=False)
    runs(tabular, "--data", tmp_path / "plants.csv", "--label", "kind", *SHORT)
    checkpoint = str(tmp_path / "out" / "runs" / "npair-mixup-seed0" / "checkpoint.pt")
    with pytest.raises(SystemExit, match="a column 'split' of its own"):
        embed.main([checkpoint, "--out", str(tmp_path / "f.parquet"), "--with-input", "--device", "cpu"])
    with pytest.raises(SystemExit):
        embed.main([checkpoint, "--out", str(tmp_path / "f.npz"), "--with-input", "--device", "cpu"])


def test_scarf_replaces_whole_columns_by_those_of_other_rows(load, plants):
    plants.loc[3, "soil"] = None
    data = load(plants.assign(width=range(80), depth=range(80)))
    assert data.parts == (1, 4, 1, 1)  # soil: three categories, and whether it is missing
    x = torch.arange(200.0)[:, None] * 10 + torch.arange(7.0)  # the column is the last digit, the row the others
    changed = scarf_corruption(0.6, data.parts)(x, torch.Generator().manual_seed(0))
    assert torch.equal(changed % 10, x % 10)
    row = (changed // 10).long()
    assert torch.equal(row[:, 1:5], row[:, 1:2].expand(-1, 4))
    replaced = (row != torch.arange(200)[:, None])[:, [0, 1, 5, 6]].sum(1)
    assert replaced.max() == 2  # of four columns, 0.6 round down to two
    assert (replaced == 2).float().mean() > 0.95  # a row may be its own donor
    assert len(row[:, 0].unique()) > 80


def test_scarf_from_the_command_line(runs, refusal):
    (run,) = runs(tabular, *SHORT, "--augment", "scarf", "--corruption", 0.3)
    assert (run["config"]["augment"], run["config"]["corruption"]) == ("scarf", 0.3)
    assert "--dropout 0.1: --augment scarf drops nothing" in refusal(tabular, "--augment", "scarf", "--dropout", 0.1)
    assert "--corruption 0.1: --augment default" in refusal(tabular, "--corruption", 0.1)


def test_few_rows_are_trained_on_for_as_many_steps_as_many(plants, tmp_path):
    found = []
    for rows in (80, 800):
        pd.concat([plants] * (rows // 80)).to_csv(tmp_path / "plants.csv", index=False)
        given = parse(TABULAR, ["--data", str(tmp_path / "plants.csv"), "--label", "kind", "--device", "cpu"])
        settings, _ = prepare(TABULAR, given)
        found.append((settings.batch_size, settings.epochs))
    assert found == [(16, 300 // 4), (128, 300 // 5)]  # 64 rows train, then 640
