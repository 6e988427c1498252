"""The tables of results in the documentation, worked out anew from the runs that they stand for."""

import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import pytest

stats = pytest.importorskip("scipy.stats")

ROOT = Path(__file__).parents[1]
RUNS = json.loads((ROOT / "docs" / "figures" / "results.json").read_text(encoding="utf-8"))
TITLES = {"covtype": "Covertype", "cifar100": "CIFAR-100", "speechcommands": "spoken commands"}
METHODS = ("N-pair", "MoCo v2", "BYOL")


def lines(page, begins):
    """The cells of the rows of a page's tables that begin like this."""
    text = (ROOT / page).read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith(f"| {begins} |")]
    return [[cell.strip().replace("*", "") for cell in row.strip("|").split("|")] for row in rows]


def pairs(data, method, metric, change=""):
    """What both runs of each seed reached, without and with i-Mix."""
    found = defaultdict(dict)
    for run in RUNS:
        if (run["data"], run["method"], run["change"]) == (data, method, change):
            found[run["seed"]][run["features"]] = run[metric]
    return [(pair["none"], pair["mixup"]) for _, pair in sorted(found.items()) if pair.keys() == {"none", "mixup"}]


def gain(both, digits):
    """Mean and Student's interval as they are written."""
    gains = [with_mix - without for without, with_mix in both]
    half = stats.t.ppf(0.975, len(gains) - 1) * stdev(gains) / len(gains) ** 0.5
    low, high = mean(gains) - half, mean(gains) + half
    return f"{mean(gains):+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def number(text):
    return 0.0001 if text.startswith("<") else float(text)


def check_row(row, probe, knn):
    """Compare what is written of a cell with its pairs."""
    count, without, with_mix, by_probe, ahead, doubt, knn_without, knn_with, by_knn = row
    gains = [b - a for a, b in probe]
    assert int(count) == len(probe) == len(knn)
    assert (without, with_mix) == tuple(f"{mean(values):.2f}" for values in zip(*probe, strict=True))
    assert (knn_without, knn_with) == tuple(f"{mean(values):.2f}" for values in zip(*knn, strict=True))
    assert (by_probe, by_knn) == (gain(probe, 2), gain(knn, 2))
    assert int(ahead) == sum(one > 0 for one in gains)
    t, sign = (part.strip() for part in doubt.split(","))
    for written, p in (
        (t, stats.ttest_rel(*zip(*probe, strict=True)).pvalue),
        (sign, stats.binomtest(int(ahead), sum(one != 0 for one in gains)).pvalue),
    ):
        assert p < 0.0001 if written.startswith("<") else number(written) == pytest.approx(p, rel=0.06)


@pytest.mark.parametrize("data", TITLES)
@pytest.mark.parametrize("method", METHODS)
def test_the_grid(data, method):
    (row,) = [row for row in lines("docs/results.md", TITLES[data]) if row[1] == method]
    check_row(row[2:], pairs(data, method, "probe"), pairs(data, method, "knn"))


def test_other_recipes():
    cells = {(run["data"], run["method"], run["change"]) for run in RUNS if run["change"]}
    assert cells
    for data, method, change in cells:
        (row,) = lines("docs/results.md", f"{method} on {TITLES[data]}, {change}")
        check_row(row[1:], pairs(data, method, "probe", change), pairs(data, method, "knn", change))


@pytest.mark.parametrize("data", TITLES)
def test_the_readme_has_the_same(data):
    (cells,) = [row for row in lines("README.md", TITLES[data]) if len(row) == 4]
    for method, cell in zip(METHODS, cells[1:], strict=True):
        probe = pairs(data, method, "probe")
        without, with_mix = (mean(values) for values in zip(*probe, strict=True))
        assert cell == f"{without:.1f} to {with_mix:.1f}: {gain(probe, 1)}"


def test_controls():
    for data, title in TITLES.items():
        (cells,) = [row for row in lines("docs/results.md", title) if len(row) == 5]
        for column, (metric, control) in enumerate(
            ((metric, control) for metric in ("probe", "knn") for control in ("raw", "untrained")), start=1
        ):
            values = [run[metric] for run in RUNS if (run["data"], run["features"]) == (data, control)]
            assert cells[column] == (f"{mean(values):.2f}" if values else "not run")


def test_no_run_is_listed_twice_and_all_are_of_the_grid():
    keys = [(run["data"], run["method"], run["change"], run["features"], run["seed"]) for run in RUNS]
    assert len(set(keys)) == len(keys)
    assert {run["data"] for run in RUNS} == set(TITLES)
    assert all(re.fullmatch("none|mixup|raw|untrained", run["features"]) for run in RUNS)
