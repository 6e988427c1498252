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


ARMS = (
    *("raw columns", "untrained network", "none", "i-Mix", "SCARF", "SCARF + i-Mix"),
    *("SCARF + i-Mix + raw columns", "gradient boosting"),
)
TABLE_METRICS = {"probe_accuracy": ARMS, "knn_accuracy": ARMS[:6]}
TABLE_GAINS = (
    *(("i-Mix", "none"), ("SCARF + i-Mix", "SCARF"), ("i-Mix", "raw columns")),
    ("SCARF + i-Mix + raw columns", "raw columns"),
)
REPORT = json.loads((ROOT / "docs" / "figures" / "tables.json").read_text(encoding="utf-8"))


def by_seed(metric):
    """In percent, by table, arm and seed."""
    found = defaultdict(lambda: defaultdict(dict))
    for cell in REPORT["cells"]:
        if metric in cell:
            found[cell["table"]][cell["arm"]][cell["seed"]] = 100 * cell[metric]
    return found


def section():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    return page.split("## Tables of one's own")[1].split("\n### ")[0]


def rows_of(first):
    """The rows of each table of the section whose header begins so."""
    blocks = re.findall(rf"^\| table \| {first}.*\n\| ---.*\n((?:\|.*\n)+)", section(), re.MULTILINE)
    return [
        {
            cells[0]: cells[1:]
            for cells in (
                [cell.strip().replace("*", "") for cell in line.strip("|").split("|")] for line in block.splitlines()
            )
        }
        for block in blocks
    ]


def test_every_way_has_its_seeds_on_every_table():
    seeds = range(5)
    for ways in by_seed("probe_accuracy").values():
        assert set(ways) == set(ARMS)
        for arm, found in ways.items():
            assert sorted(found) == ([0] if arm in ("raw columns", "gradient boosting") else list(seeds))


def test_accuracies_on_tables():
    for shown, (metric, arms) in zip(rows_of("raw"), TABLE_METRICS.items(), strict=True):
        found = by_seed(metric)
        assert list(shown) == [*sorted(found), "mean"]
        averages = {table: [mean(found[table][arm].values()) for arm in arms] for table in found}
        averages["mean"] = [mean(column) for column in zip(*averages.values(), strict=True)]
        for table, cells in shown.items():
            assert cells == [f"{value:.1f}" for value in averages[table]]


def test_gains_on_tables():
    (shown,) = rows_of("i-Mix over none")
    found = by_seed("probe_accuracy")
    assert list(shown) == sorted(found)
    for table, cells in shown.items():
        for cell, (one, other) in zip(cells, TABLE_GAINS, strict=True):
            with_mix, without = found[table][one], found[table][other]
            gains = [value - (without[0] if len(without) == 1 else without[seed]) for seed, value in with_mix.items()]
            half = stats.t.ppf(0.975, len(gains) - 1) * stdev(gains) / len(gains) ** 0.5
            wanted = [mean(gains)] if half < 1e-9 else [mean(gains), mean(gains) - half, mean(gains) + half]
            numbers = [float(number) for number in re.findall(r"[+-]?\d+\.\d", cell)]
            assert numbers == pytest.approx(wanted, abs=0.051)


def test_sign_tests_over_tables():
    words = " ".join(section().split())
    pattern = (
        r"- ([^|]+?) is ahead of ([^|]+?) on (\d+) of (\d+) tables and behind on (\d+) "
        r"\(sign test p = ([\d.e-]+); ([+-]?[\d.]+) ± ([\d.]+) points, worst ([+-]?[\d.]+)\)"
    )
    by_metric = words.split("Nearest neighbours")
    for part, metric in zip((by_metric[0], " ".join(by_metric[1:])), TABLE_METRICS, strict=True):
        found, lines = by_seed(metric), re.findall(pattern, part)
        assert len(lines) == {"probe_accuracy": 6, "knn_accuracy": 4}[metric]
        for one, other, ahead, tables, behind, p, average, spread, worst in lines:
            gains = [mean(ways[one].values()) - mean(ways[other].values()) for ways in found.values()]
            counts = sum(round(gain, 2) > 0 for gain in gains), sum(round(gain, 2) < 0 for gain in gains)
            assert (int(ahead), int(behind), int(tables)) == (*counts, len(gains))
            assert float(p) == pytest.approx(stats.binomtest(counts[0], sum(counts)).pvalue, rel=0.06)
            written = [float(number) for number in (average, spread, worst)]
            assert written == pytest.approx([mean(gains), stdev(gains), min(gains)], abs=0.051)
