"""Every subcommand on tiny sizes: it runs, and what it writes says what it measured."""

import json

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("resource", reason="Windows does not tell what a process has taken")
pytest.importorskip("benchmarks", reason="the benchmarks are no part of the installed package")

from benchmarks import contestants, report
from benchmarks.__main__ import main
from benchmarks.measure import parse_size

TINY = ["--device", "cpu", "--threads", "1", "--rounds", "1", "--seconds", "0"]


def run(folder, subcommand, *options):
    main([subcommand, *options, *TINY, "--out", str(folder)])
    written = json.loads((folder / f"{subcommand}.json").read_text(encoding="utf-8"))
    assert (folder / f"{subcommand}.png").stat().st_size > 0
    assert written["machine"]["threads"] == 1
    return {row["size"]: row for row in written["rows"]}


def test_loss(tmp_path, capsys):
    rows = run(tmp_path, "loss", "--sizes", "8x4", "4+9x4", "--peers", "Liger")
    assert "left out: Liger" in capsys.readouterr().out
    assert rows["8x4"]["operations"] == 6 * 8 * 8 * 4
    assert rows["4+9x4"]["operations"] == 4 * 4 * 13 * 4
    for row in rows.values():
        assert set(row["times"]) == {"imix-aug", "formula", "matrix products"}
        assert max(row["errors"].values()) < 1e-5
        medians = {name: each["median"] for name, each in row["times"].items()}
        assert row["speedup"]["formula"] == pytest.approx(medians["formula"] / medians["imix-aug"])
    # A second run adds its sizes and replaces those that it measures anew.
    assert set(run(tmp_path, "loss", "--sizes", "8x4", "6x4", "--peers")) == {"8x4", "4+9x4", "6x4"}


def test_a_folder_that_cannot_be_made_is_said_before_the_measurement(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"--out .*wanted a folder"):
        run(tmp_path / "file", "loss")


def test_the_error_beside_a_time_is_seen():
    batch = contestants.Batch.draw(8, 0, 4, torch.float32, torch.device("cpu"))
    assert contestants.relative_error(contestants.formula, batch, rows_at_once=3) < 1e-5
    assert contestants.relative_error(lambda batch: 1.01 * contestants.formula(batch), batch) == pytest.approx(
        0.01, rel=1e-2
    )


def test_simclr(tmp_path):
    (row,) = run(tmp_path, "simclr", "--simclr-sizes", "8x4").values()
    assert max(row["errors"].values()) < 1e-5
    assert "imix-aug" in row["times"]


def test_memory(tmp_path):
    rows = run(tmp_path, "memory", "--memory-rows", "3000", "--memory-width", "8", "--dense-rows", "3000")
    megabytes = rows["3000x8"]["megabytes"]
    # The formula holds two matrices of 36 MB at least; imix-aug one tile of 8.
    assert megabytes["formula"] > 60
    assert megabytes["imix-aug"] < 40


@pytest.mark.slow
def test_arguments(tmp_path):
    rows = run(tmp_path, "arguments", "--argument-rows", "3000", "--memory-width", "8")
    assert {"ids", "weight", "imix_sigmoid_loss", "same_view=True"} < set(rows)
    assert max(row["megabytes"]["imix-aug"] for row in rows.values()) < 60  # the logits are 36 MB, four times over


def test_cost(tmp_path):
    rows = run(
        tmp_path, "cost", "--cost-size", "8x4", "--arguments", "ids", "imix_nce_loss", "hard_negatives, 4 learnt"
    )
    assert set(rows) == {"ids", "imix_nce_loss", "hard_negatives, 4 learnt"}
    for row in rows.values():
        times = {name: each["median"] for name, each in row["times"].items()}
        assert row["ratios"] == {"with it": pytest.approx(times["with it"] / times["imix_nce_loss"])}


def test_directions(tmp_path):
    rows = run(tmp_path, "directions", "--direction-sizes", "8x4")
    assert set(rows) == {f"8x4, temperature {each}" for each in ("0.2", "0.2, a tensor", "0.02")}
    for row in rows.values():
        times = {name: each["median"] for name, each in row["times"].items()}
        one = times.pop("one direction")
        assert row["ratios"] == {name: pytest.approx(time / one) for name, time in times.items()}


def test_both_directions_are_two_calls():
    """Of an unmixed batch, where labels are the same both ways."""
    batch = contestants.Batch.draw(8, 0, 4, torch.float64, torch.device("cpu"))
    batch.labels = contestants.VirtualLabels.identity(8)
    for temperature in contestants.TEMPERATURES.values():
        values = {name: loss(batch).item() for name, loss in contestants.directions(temperature).items()}
        assert values["imix_clip_loss"] == pytest.approx(values["two calls"] / 2, rel=1e-10)
        assert values["one direction"] != pytest.approx(values["imix_clip_loss"], rel=1e-3)


def test_mix(tmp_path):
    (row,) = run(tmp_path, "mix", "--megabytes", "1.1").values()
    assert set(row["gigabytes_per_second"]) == {"mixup", "cutmix", "mixup, formula", "copy"}
    expected = 3 * row["bytes"] / 1e9 / row["times"]["mixup"]["median"]
    assert row["gigabytes_per_second"]["mixup"] == pytest.approx(expected)


def test_step(tmp_path):
    (row,) = run(tmp_path, "step", "--models", "mlp:4x8").values()
    assert row["overhead"] == pytest.approx(row["times"]["mixed"]["median"] / row["times"]["unmixed"]["median"] - 1)


def test_growth(tmp_path):
    rows = run(tmp_path, "growth", "--growth-sizes", "8x4", "16x4")
    assert [row["nmd"] for row in rows.values()] == [256, 1024]


@pytest.mark.parametrize("text", ["8", "8x", "ax4", "0x4", "8+-1x4"])
def test_sizes_that_are_none(text):
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


def test_unknown_subcommand(capsys):
    with pytest.raises(SystemExit):
        main(["speed"])
    assert "speed" in capsys.readouterr().err


def test_table_has_a_column_for_each_contestant():
    row = {"size": "8x4", "times": {"imix-aug": {"median": 0.001}}, "errors": {"imix-aug": 1e-7}, "floors": 1.5}
    head, _, line = report.table("loss", [row]).split("\n")
    assert head == "| size | imix-aug, ms | imix-aug, error | floors |"
    assert line == "| 8x4 | 1 | 1e-07 | 1.50 |"
