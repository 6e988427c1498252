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
VALIDATION = json.loads((ROOT / "docs" / "figures" / "validation.json").read_text(encoding="utf-8"))
TITLES = {"covtype": "Covertype", "cifar100": "CIFAR-100", "speechcommands": "spoken commands"}
METHODS = ("N-pair", "MoCo v2", "BYOL")


def cells_of(line):
    """The cells of a table's row, bold ones like all others."""
    return [cell.strip().replace("*", "") for cell in line.strip("|").split("|")]


def front_page():
    return " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def lines(page, begins):
    """The cells of the rows of a page's tables that begin like this."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [cells_of(line) for line in text.splitlines() if line.startswith(f"| {begins} |")]


def tables_below(text, header):
    """The rows of each table whose header begins so, cell by cell."""
    blocks = re.findall(rf"^\| {header}.*\n\| ---.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [[cells_of(line) for line in block.splitlines()] for block in blocks]


def table_rows(text, first):
    """All rows of the tables whose header begins so."""
    return [row for rows in tables_below(text, rf"{first} \|") for row in rows]


def part(page, title=None):
    """A page below that of results: from its heading, or from the named one, to the next of its rank."""
    text = (ROOT / "docs" / "results" / f"{page}.md").read_text(encoding="utf-8")
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0] if title else text.split("\n## ")[0]


def pairs(data, method, metric, change="", runs=RUNS):
    """What both runs of each seed reached, without and with i-Mix."""
    found = defaultdict(dict)
    for run in runs:
        if (run["data"], run["method"], run["change"]) == (data, method, change):
            found[run["seed"]][run["features"]] = run[metric]
    return [(pair["none"], pair["mixup"]) for _, pair in sorted(found.items()) if pair.keys() == {"none", "mixup"}]


def gain(both, digits):
    """Mean and Student's interval as they are written."""
    gains = [with_mix - without for without, with_mix in both]
    half = stats.t.ppf(0.975, len(gains) - 1) * stdev(gains) / len(gains) ** 0.5
    low, high = mean(gains) - half, mean(gains) + half
    return f"{mean(gains):+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def check_p(written, p):
    """Compare a p-value, of which two digits are written."""
    assert p < 0.0001 if written.startswith("<") else float(written) == pytest.approx(p, rel=0.06)


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
    check_p(t, stats.ttest_rel(*zip(*probe, strict=True)).pvalue)
    check_p(sign, stats.binomtest(int(ahead), sum(one != 0 for one in gains)).pvalue)


@pytest.mark.parametrize("data", TITLES)
@pytest.mark.parametrize("method", METHODS)
def test_the_grid(data, method):
    (row,) = [row for row in lines("docs/results.md", TITLES[data]) if row[1] == method]
    check_row(row[2:], pairs(data, method, "probe"), pairs(data, method, "knn"))


def test_both_halves_of_the_grid():
    shown = table_rows(part("grid", "Cells that missed"), "data \\| method \\| first ten: gain")
    assert [row[:2] for row in shown] == [[title, method] for title in TITLES.values() for method in METHODS]
    for (title, method, *cells), data in zip(shown, [data for data in TITLES for _ in METHODS], strict=True):
        for column, seeds in ((0, range(10)), (2, range(10, 20))):
            both = pairs(data, method, "probe", runs=[run for run in RUNS if run["seed"] in seeds])
            assert len(both) == 10, title
            assert cells[column] == gain(both, 2)
            check_p(cells[column + 1], stats.ttest_rel(*zip(*both, strict=True)).pvalue)


LONG = "pretrain-rows=50000"


def test_other_recipes():
    changed = [run for run in RUNS if run["change"] and LONG not in run["change"]]
    check_changes(changed, table_rows(part("grid", "Cells that missed"), r"change on the test rows"))


def test_settings_on_validation_rows():
    check_changes(VALIDATION, table_rows(part("grid", "Cells that missed"), r"change on validation rows"))


def check_changes(runs, shown):
    """Compare a table of other recipes with their runs."""
    cells = {(run["data"], run["method"], run["change"]) for run in runs if run["features"] == "mixup"}
    names = {f"{cell[1]} on {TITLES[cell[0]]}, {cell[2] or 'as it is'}": cell for cell in cells}
    assert sorted(row[0] for row in shown) == sorted(names) != []
    for name, *row in shown:
        data, method, change = names[name]
        check_row(row, *(pairs(data, method, metric, change, runs) for metric in ("probe", "knn")))


def test_all_images_and_many_epochs():
    shown = table_rows(part("cifar-100"), r"augmentation \| epochs")
    runs = [run for run in RUNS if LONG in run["change"]]
    assert len(shown) == len({run["change"] for run in runs if run["features"] == "mixup"}) > 0
    for augmentation, epochs, count, *cells in shown:
        wanted = f"augment={ {'none': 'none', 'crop, flip, colours': 'default'}[augmentation] }"
        these = [run for run in runs if {f"epochs={epochs}", wanted} <= set(run["change"].split(", "))]
        (untrained,) = (run for run in runs if run["features"] == "untrained")
        for column, metric in ((0, "probe"), (4, "knn")):
            found = {mix: [r[metric] for r in these if r["features"] == mix] for mix in ("none", "mixup")}
            assert len(found["none"]) == len(found["mixup"]) == int(count)
            assert cells[column] == f"{untrained[metric]:.2f}"
            assert cells[column + 1 : column + 3] == [f"{mean(found[mix]):.2f}" for mix in ("none", "mixup")]
            check_gain(cells[column + 3], [b - a for a, b in zip(found["none"], found["mixup"], strict=True)], digits=2)


@pytest.mark.parametrize("data", TITLES)
def test_the_readme_has_the_same(data):
    (cells,) = [row for row in lines("README.md", TITLES[data]) if len(row) == 4]
    for method, cell in zip(METHODS, cells[1:], strict=True):
        probe = pairs(data, method, "probe")
        without, with_mix = (mean(values) for values in zip(*probe, strict=True))
        assert cell == f"{without:.1f} to {with_mix:.1f}: {gain(probe, 1)}"


def test_controls():
    for data, title in TITLES.items():
        (cells,) = [row for row in lines("docs/results/grid.md", title) if len(row) == 5]
        for column, (metric, control) in enumerate(
            ((metric, control) for metric in ("probe", "knn") for control in ("raw", "untrained")), start=1
        ):
            of_the_grid = [run for run in RUNS if not run["change"]]
            values = [run[metric] for run in of_the_grid if (run["data"], run["features"]) == (data, control)]
            assert cells[column] == (f"{mean(values):.2f}" if values else "not run")


def test_no_run_is_listed_twice_and_all_are_of_the_grid():
    keys = [(run["data"], run["method"], run["change"], run["features"], run["seed"]) for run in RUNS]
    assert len(set(keys)) == len(keys)
    assert {run["data"] for run in RUNS} == set(TITLES)
    assert all(re.fullmatch("none|mixup|raw|untrained", run["features"]) for run in RUNS)


ARMS = (
    *("raw columns", "untrained network", "none", "i-Mix", "dropout", "dropout + i-Mix", "SCARF", "SCARF + i-Mix"),
    *("SCARF + i-Mix + raw columns", "gradient boosting"),
)
TABLE_METRICS = {"probe_accuracy": ARMS, "knn_accuracy": ARMS[:8]}
TABLE_GAINS = (
    *(("i-Mix", "none"), ("dropout + i-Mix", "dropout"), ("SCARF + i-Mix", "SCARF"), ("i-Mix", "raw columns")),
    ("SCARF + i-Mix + raw columns", "raw columns"),
)
REPORT = json.loads((ROOT / "docs" / "figures" / "tables.json").read_text(encoding="utf-8"))


MOCO = json.loads((ROOT / "docs" / "figures" / "tables_moco.json").read_text(encoding="utf-8"))


def by_seed(metric, report=REPORT):
    """In percent, by table, arm and seed."""
    found = defaultdict(lambda: defaultdict(dict))
    for cell in report["cells"]:
        if metric in cell:
            found[cell["table"]][cell["arm"]][cell["seed"]] = 100 * cell[metric]
    return found


def rows_of(first, text):
    """The rows of each table of a section whose header begins so, by their first cell."""
    return [{row[0]: row[1:] for row in rows} for rows in tables_below(text, rf"table \| {first}")]


def test_every_way_has_its_seeds_on_every_table():
    seeds = range(5)
    for ways in by_seed("probe_accuracy").values():
        assert set(ways) == set(ARMS)
        for arm, found in ways.items():
            assert sorted(found) == ([0] if arm in ("raw columns", "gradient boosting") else list(seeds))


def test_accuracies_on_tables():
    for shown, (metric, arms) in zip(rows_of("raw", part("tables")), TABLE_METRICS.items(), strict=True):
        check_accuracies(shown, by_seed(metric), arms)


def check_accuracies(shown, found, arms):
    assert list(shown) == [*sorted(found), "mean"]
    averages = {table: [mean(found[table][arm].values()) for arm in arms] for table in found}
    averages["mean"] = [mean(column) for column in zip(*averages.values(), strict=True)]
    for table, cells in shown.items():
        assert cells == [f"{value:.1f}" for value in averages[table]]


def test_gains_on_tables():
    (shown,) = rows_of("i-Mix over none", part("tables"))
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
    by_metric = part("tables").split("Nearest neighbours")
    for text, metric in zip((by_metric[0], " ".join(by_metric[1:])), TABLE_METRICS, strict=True):
        check_sign_tests(text, by_seed(metric), count={"probe_accuracy": 9, "knn_accuracy": 7}[metric])


def check_sign_tests(text, found, count):
    """Compare all lines that say on how many tables one way is ahead of another."""
    pattern = (
        r"- ([^|]+?) is ahead of ([^|]+?) on (\d+) of (\d+) tables and behind on (\d+) "
        r"\(sign test p = ([\d.e-]+); ([+-]?[\d.]+) ± ([\d.]+) points, worst ([+-]?[\d.]+)\)"
    )
    lines = re.findall(pattern, " ".join(text.split()))
    assert len(lines) == count
    for one, other, ahead, tables, behind, p, average, spread, worst in lines:
        gains = [mean(ways[one].values()) - mean(ways[other].values()) for ways in found.values()]
        counts = sum(round(gain, 2) > 0 for gain in gains), sum(round(gain, 2) < 0 for gain in gains)
        assert (int(ahead), int(behind), int(tables)) == (*counts, len(gains))
        assert float(p) == pytest.approx(stats.binomtest(counts[0], sum(counts)).pvalue, rel=0.06)
        written = [float(number) for number in (average, spread, worst)]
        assert written == pytest.approx([mean(gains), stdev(gains), min(gains)], abs=0.051)


LEARNT = {"learnt_probe_accuracy": ARMS[1:8], "learnt_knn_accuracy": ARMS[1:8]}


def test_what_is_learnt_on_tables():
    text = part("tables", "What the network itself has learnt")
    by_probe, by_neighbours = text.split("By nearest neighbours")
    for half, (metric, arms) in zip((by_probe, by_neighbours), LEARNT.items(), strict=True):
        (shown,) = rows_of("untrained", half)
        check_accuracies(shown, by_seed(metric), arms)
        check_sign_tests(half, by_seed(metric), count=4)


def test_moco_on_tables():
    text = part("tables", "MoCo instead of N-pair")
    (shown,) = rows_of("raw", text)
    found = by_seed("probe_accuracy", MOCO)
    check_accuracies(shown, found, ARMS)
    assert sorted(found) == sorted(REPORT["tables"])
    by_probe, by_neighbours = text.split("By nearest neighbours")
    check_sign_tests(by_probe, found, count=9)
    check_sign_tests(by_neighbours, by_seed("knn_accuracy", MOCO), count=7)


FEW = json.loads((ROOT / "docs" / "figures" / "few_labels.json").read_text(encoding="utf-8"))
SHARES = FEW["recipe"]["labels"]
FEW_ARMS = (
    *("raw columns", "gradient boosting", "untrained, probe", "from scratch"),
    *("none, probe", "none, fine-tuned", "i-Mix, probe", "i-Mix, fine-tuned"),
)


def with_few_labels(share):
    """The mean over the seeds in percent, by arm and table."""
    found = defaultdict(lambda: defaultdict(list))
    for cell in FEW["cells"]:
        found[cell["arm"]][cell["table"]].append(100 * cell[str(share)])
    return {arm: {table: mean(values) for table, values in tables.items()} for arm, tables in found.items()}


def rows_below(header):
    """The rows of the table whose header begins so, by their first cell."""
    (rows,) = tables_below(part("tables", "Few labels"), header)
    return {row[0]: row[1:] for row in rows}


def test_few_labels_are_of_the_same_tables_seed_by_seed():
    seeds = {cell["seed"] for cell in FEW["cells"]}
    wanted = {(table, arm, seed) for table in REPORT["tables"] for arm in FEW_ARMS for seed in seeds}
    assert {(cell["table"], cell["arm"], cell["seed"]) for cell in FEW["cells"]} == wanted
    assert len(FEW["cells"]) == len(wanted)
    assert seeds == set(range(len(seeds)))
    assert all(
        FEW["tables"][name]["training_rows"] == sizes["training_rows"] for name, sizes in REPORT["tables"].items()
    )


def test_accuracies_with_few_labels():
    shown = rows_below("mean of 15 tables")
    assert tuple(shown) == FEW_ARMS
    for column, share in enumerate(SHARES):
        found = with_few_labels(share)
        for arm, cells in shown.items():
            assert cells[column] == f"{mean(found[arm].values()):.1f}"


def test_leads_with_few_labels():
    shown = rows_below(r"table \| labels")
    pairs = [
        ("i-Mix, probe", other) for other in ("raw columns", "gradient boosting", "untrained, probe", "none, probe")
    ]
    pairs.append(("i-Mix, fine-tuned", "from scratch"))
    found = [with_few_labels(share) for share in SHARES]
    assert list(shown) == sorted(REPORT["tables"])
    for table, (labels, *cells) in shown.items():
        assert labels == ", ".join(str(FEW["tables"][table]["labels"][str(share)]) for share in SHARES)
        for cell, (one, other) in zip(cells, pairs, strict=True):
            wanted = [ways[one][table] - ways[other][table] for ways in found]
            assert [float(number) for number in cell.split(", ")] == pytest.approx(wanted, abs=0.051)


def test_sign_tests_with_few_labels():
    shown = rows_below("ahead : behind of 15 tables")
    for pair, cells in shown.items():
        one, other = pair.split(" over ")
        for cell, share in zip(cells, SHARES, strict=True):
            found = with_few_labels(share)
            gains = [found[one][table] - found[other][table] for table in found[one]]
            counts = sum(round(gain, 2) > 0 for gain in gains), sum(round(gain, 2) < 0 for gain in gains)
            ahead, behind, gain, p = re.fullmatch(r"(\d+) : (\d+), ([+-]?[\d.]+), p = ([\d.e-]+)", cell).groups()
            assert (int(ahead), int(behind)) == counts
            assert float(gain) == pytest.approx(mean(gains), abs=0.051)
            assert float(p) == pytest.approx(stats.binomtest(counts[0], sum(counts)).pvalue, rel=0.06)


SERIES = json.loads((ROOT / "docs" / "figures" / "series.json").read_text(encoding="utf-8"))
WAVES = ("aligned phases", "random phases")
ON_SERIES = ("raw", "untrained", "same", "same, i-Mix", "jitter", "jitter, i-Mix")
SERIES_METRICS = {"1-NN": "nn", "linear probe": "probe"}


def on_series(data, features, metric):
    return {run["seed"]: run[metric] for run in SERIES if (run["data"], run["features"]) == (data, features)}


def gains_on_series(data, views, metric):
    without, with_mix = (on_series(data, features, metric) for features in (views, f"{views}, i-Mix"))
    return [with_mix[seed] - without[seed] for seed in sorted(without)]


def check_gain(text, gains, digits=1):
    """A mean, with Student's interval where the gains differ."""
    wanted = [mean(gains)]
    if max(gains) > min(gains):
        half = stats.t.ppf(0.975, len(gains) - 1) * stdev(gains) / len(gains) ** 0.5
        wanted += [wanted[0] - half, wanted[0] + half]
    assert [float(number) for number in re.findall(r"[+-]?\d+\.\d+", text)] == pytest.approx(
        wanted, abs=0.51 * 10**-digits
    )


def test_every_series_has_its_seeds():
    for data in {run["data"] for run in SERIES}:
        seeds = list(range(5))
        for features in ON_SERIES:
            once = features == "raw" and data not in WAVES
            assert sorted(on_series(data, features, "nn")) == ([0] if once else seeds)
    assert len({(run["data"], run["features"], run["seed"]) for run in SERIES}) == len(SERIES)


@pytest.mark.parametrize("name", SERIES_METRICS)
def test_accuracies_on_series(name):
    metric, text = SERIES_METRICS[name], part("time-series") + part("time-series", "Where i-Mix fails")
    shown = {row[0]: row[1:] for row in table_rows(text, name)}
    real = sorted({run["data"] for run in SERIES} - set(WAVES))
    averages = {
        data: [mean(on_series(data, features, metric).values()) for features in ON_SERIES] for data in (*real, *WAVES)
    }
    averages["mean"] = [mean(column) for column in zip(*(averages[data] for data in real), strict=True)]
    assert set(shown) == set(averages)
    for data, values in averages.items():
        assert shown[data][:6] == [f"{value:.1f}" for value in values]
        for cell, views in zip(shown[data][6:], ("same", "jitter"), strict=True):
            if data != "mean":
                check_gain(cell, gains_on_series(data, views, metric))


def test_sign_tests_over_series():
    pattern = (
        r"- ([\w -]+), (no jitter|jitter): ahead on (\d+) of (\d+) sets and behind on (\d+) "
        r"\(sign test p = ([\d.]+); ([+-]?[\d.]+) points in the mean, worst ([+-]?[\d.]+)\)"
    )
    lines = re.findall(pattern, " ".join(part("time-series").split()))
    assert len(lines) == 4
    real = {run["data"] for run in SERIES} - set(WAVES)
    for name, jitter, ahead, sets, behind, p, average, worst in lines:
        views = "same" if jitter == "no jitter" else "jitter"
        gains = [mean(gains_on_series(data, views, SERIES_METRICS[name])) for data in real]
        counts = sum(round(gain, 4) > 0 for gain in gains), sum(round(gain, 4) < 0 for gain in gains)
        assert (int(ahead), int(behind), int(sets)) == (*counts, len(real))
        assert float(p) == pytest.approx(stats.binomtest(counts[0], sum(counts)).pvalue, rel=0.06)
        assert [float(average), float(worst)] == pytest.approx([mean(gains), min(gains)], abs=0.051)


TRANSFER = json.loads((ROOT / "docs" / "figures" / "transfer.json").read_text(encoding="utf-8"))
PLACES = {**TITLES, "cifar10": "CIFAR-10"}


@pytest.mark.parametrize("first", ["data", "from, to"])
def test_few_labels_and_transfer(first):
    shown = table_rows(part("transfer"), first)
    cells = sorted({(run["data"], run["share"]) for run in TRANSFER})
    cells = [cell for cell in cells if len(set(cell[0].split(" to "))) == (1 if first == "data" else 2)]
    assert len(shown) == len(cells) > 0
    for row, (data, share) in zip(shown, cells, strict=True):
        runs = [run for run in TRANSFER if (run["data"], run["share"]) == (data, share)]
        (labels,) = {run["labels"] for run in runs}
        names = [PLACES[name] for name in dict.fromkeys(data.split(" to "))]
        assert row[:2] == [", ".join(names), f"{100 * share:g} %: {labels:,}"]
        seeds = range(int(row[2]))
        assert row[3] == f"{mean(run['probe'] for run in runs if run['features'] == 'untrained'):.1f}"
        for column, metric in ((4, "probe"), (7, "knn")):
            found = {mix: {r["seed"]: r[metric] for r in runs if r["features"] == mix} for mix in ("none", "mixup")}
            assert sorted(found["none"]) == sorted(found["mixup"]) == list(seeds)
            assert row[column : column + 2] == [f"{mean(found[mix].values()):.1f}" for mix in ("none", "mixup")]
            check_gain(row[column + 2], [found["mixup"][seed] - found["none"][seed] for seed in seeds])


@pytest.mark.parametrize(
    ("data", "share"),
    [("cifar10 to cifar10", 0.01), ("cifar100 to cifar10", 0.01), ("speechcommands to speechcommands", 0.1)],
)
def test_the_front_page_says_what_few_labels_gain(data, share):
    def accuracy(features):
        key = {"data": data, "share": share, "features": features}
        return mean(run["probe"] for run in TRANSFER if key.items() <= run.items())

    assert f"{accuracy('none'):.1f} to {accuracy('mixup'):.1f}" in front_page()


def test_the_front_page_says_what_is_learnt_on_tables():
    found = by_seed("learnt_probe_accuracy")
    gains = [mean(ways["i-Mix"].values()) - mean(ways["none"].values()) for ways in found.values()]
    better = sum(round(gain, 2) > 0 for gain in gains)
    assert f"is {mean(gains):.1f} points better with i-Mix, and better on {better};" in front_page()
    assert sorted(found) == sorted(REPORT["tables"])


def test_the_front_page_says_what_long_runs_gain():
    for epochs, augment in (40, "none"), (100, "default"):
        wanted = {LONG, f"epochs={epochs}", f"augment={augment}"}
        chosen = [run for run in RUNS if wanted <= set(run["change"].split(", "))]
        found = {run["features"]: run["probe"] for run in chosen}
        assert f"from {found['none']:.1f} to {found['mixup']:.1f} in {epochs}" in front_page()


def long_pair(method, width=8, epochs=500):
    """The probe without and with i-Mix, of one seed, at the paper's scale."""
    return [at_the_papers_scale(method, width, epochs, mix, "probe")[0] for mix in ("none", "mixup")]


def test_the_front_page_says_what_the_authors_recipe_gains():
    n_pair, moco, byol = (long_pair(method) for method in METHODS)
    moco_with_dropout, byol_with_dropout = (long_pair(f"{method}, dropout in both")[1] for method in METHODS[1:])
    wide, wide_with_mix = long_pair("N-pair", 32, 160)
    assert (
        f"N-pair goes from {n_pair[0]:.1f}, no better than the untrained network's {before_training(8, 'probe'):.1f}, "
        f"to {n_pair[1]:.1f}, MoCo v2 from {moco[0]:.1f} to {moco[1]:.1f} and BYOL from {byol[0]:.1f} to {byol[1]:.1f} "
        f"({moco_with_dropout:.1f} and {byol_with_dropout:.1f} with the input dropout that the authors switch off "
        f"beside i-Mix); N-pair at half their width, in 160 epochs, from {wide:.1f} to {wide_with_mix:.1f}: "
        f"{wide_with_mix - wide:.1f} points, where the paper has 3.6."
    ) in front_page()


def test_the_results_page_says_what_the_authors_recipe_gains():
    def gained(method, *scale):
        without, with_mix = long_pair(method, *scale)
        return f"{with_mix - without:.1f}"

    by_recipe = map(gained, METHODS)
    with_dropout = map(gained, ("N-pair", "MoCo v2, dropout in both", "BYOL, dropout in both"))
    page = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    said = "N-pair, MoCo and BYOL gain {}, {} and {} points, and {}, {} and {} with dropout in both runs"
    assert said.format(*by_recipe, *with_dropout) in page
    assert f"in 160 epochs, N-pair gains {gained('N-pair', 32, 160)}, where the paper has 3.6." in page


ASKED = json.loads((ROOT / "docs" / "figures" / "questions.json").read_text(encoding="utf-8"))


def question_of(run):
    """What a run is about, as the page's tables write it."""
    names = {"rows": "training rows", "augment": "augmentation", "mix": "mode", "lambda": "a lambda per"}
    names["inputmix"] = "InputMix, others"
    name = names.get(run["over"], run["over"])
    if run["change"]:
        name += {"pretrain-rows=50000": ", 50000 rows"}.get(run["change"], ", as many steps")
    return name, f"{TITLES[run['data']]}, {run['method']}"


def answers():
    """The runs by question and value, then by features and seed."""
    found = defaultdict(lambda: defaultdict(dict))
    for run in ASKED:
        found[question_of(run), run["value"]][run["features"]][run["seed"]] = run
    return found


def gains_of(runs, metric):
    without, with_mix = runs["none"], runs["mixup"]
    assert sorted(without) == sorted(with_mix) == list(range(len(without)))
    return [with_mix[seed][metric] - without[seed][metric] for seed in sorted(without)]


def test_the_papers_questions():
    shown, found = table_rows(part("questions"), "question"), answers()
    assert len(shown) == len(found)
    for name, data, value, pairs, without, with_mix, by_probe, by_knn in shown:
        runs = found[(name, data), value]
        assert int(pairs) == len(runs["none"])
        for cell, features in ((without, "none"), (with_mix, "mixup")):
            assert cell == f"{mean(run['probe'] for run in runs[features].values()):.1f}"
        check_gain(by_probe, gains_of(runs, "probe"))
        check_gain(by_knn, gains_of(runs, "knn"))


def test_how_the_gain_changes_between_the_ends_of_a_question():
    text, found = part("questions"), answers()
    shown = table_rows(text, "the gain, between")
    assert len(shown) == len({question for question, _ in found})
    for name, data, *cells in shown:
        question, ends = name.split(": ")
        for cell, metric in zip(cells, ("probe", "knn"), strict=True):
            first, last = (gains_of(found[(question, data), end], metric) for end in ends.split(" and "))
            check_gain(cell, [b - a for a, b in zip(first, last, strict=True)])


def test_without_imix_a_question_repeats_the_grid():
    """Where a value is that of the grid's recipe. The loss of a mixed batch has come to round otherwise since."""
    recipes = {("cifar100", "rows"): "10000", ("cifar100", "mix"): "mixup", ("speechcommands", "alpha"): "1"}
    for (data, over), value in recipes.items():
        key = {"data": data, "over": over, "value": value, "features": "none", "change": ""}
        runs = [run for run in ASKED if key.items() <= run.items()]
        assert len(runs) == 5
        for run in runs:
            same = {name: run[name] for name in ("data", "method", "change", "features", "seed")}
            (of_grid,) = [one for one in RUNS if same.items() <= one.items()]
            assert (run["probe"], run["knn"]) == (of_grid["probe"], of_grid["knn"])


PAPER = json.loads((ROOT / "docs" / "figures" / "paper.json").read_text(encoding="utf-8"))
VIEWS = {"default": ", dropout in both", "none": ", no dropout"}  # where they are not the recipe's


def line_of(run):
    """Method, width and epochs, as the table writes them."""
    options = dict(word.split("=") for word in run["change"].split(", "))
    return run["method"] + VIEWS.get(options.get("augment"), ""), int(options["width"]), int(options["epochs"])


def at_the_papers_scale(method, width, epochs, features, metric):
    """What was measured in a line of the table, seed by seed."""
    runs = [run for run in PAPER if run["features"] == features and line_of(run) == (method, width, epochs)]
    return {run["seed"]: run[metric] for run in runs}


def before_training(width, metric):
    """What the network of this width is worth before training."""
    runs = [run for run in PAPER if run["features"] == "untrained" and f"width={width}" in run["change"].split(", ")]
    return mean(run[metric] for run in runs)


def test_width_and_epochs():
    shown = table_rows(part("covertype", "Width and epochs"), r"method \| width")
    trained = {line_of(run) for run in PAPER if run["features"] == "mixup"}
    assert [(method, int(width), int(epochs)) for method, width, epochs, *_ in shown] == sorted(
        trained, key=lambda line: (METHODS.index(line[0].split(", ")[0]), *line)
    )
    for method, width, epochs, precision, pairs_here, *cells in shown:
        line = method, int(width), int(epochs)
        precisions = {"amp=bf16" in run["change"] for run in PAPER if run["method"] and line_of(run) == line}
        assert precisions == {precision == "bfloat16"}
        for column, metric in ((0, "probe"), (4, "knn")):
            without, with_mix = (at_the_papers_scale(*line, mix, metric) for mix in ("none", "mixup"))
            both = sorted(without.keys() & with_mix.keys())
            assert len(both) == int(pairs_here)
            assert cells[column] == f"{before_training(width, metric):.2f}"
            assert cells[column + 1 : column + 3] == [
                f"{mean(one[seed] for seed in both):.2f}" for one in (without, with_mix)
            ]
            check_gain(cells[column + 3], [with_mix[seed] - without[seed] for seed in both], digits=2)


RECIPE = json.loads((ROOT / "docs" / "figures" / "recipe.json").read_text(encoding="utf-8"))


def test_the_search_for_a_recipe():
    text = part("tables", "How the recipe came about")
    shown = {row[0]: row[1:] for row in table_rows(text, r"setting \| pairs")}
    assert set(shown) == {run["setting"] for run in RECIPE}
    for setting, (count, *cells) in shown.items():
        for cell, (features, metric) in zip(cells, (("own", "probe"), ("all", "probe"), ("all", "knn")), strict=True):
            found = defaultdict(dict)
            for run in RECIPE:
                if run["setting"] == setting:
                    found[run["table"], run["split"]][run["mix"]] = run[features][metric]
            gains = [pair["mixup"] - pair["none"] for pair in found.values()]
            assert int(count) == len(gains)
            averages = [mean(pair[mix] for pair in found.values()) for mix in ("none", "mixup")]
            wanted = [*averages, mean(gains), sum(gain > 0.005 for gain in gains), sum(gain < -0.005 for gain in gains)]
            assert [float(number) for number in re.findall(r"[+-]?\d+(?:\.\d+)?", cell)] == pytest.approx(
                wanted, abs=0.051
            )
    controls = {row[0]: row[1:] for row in table_rows(text, "before training")}
    names = {"raw columns": "raw", "encoded columns": "encoded", "untrained network": "own", "the two together": "all"}
    before = [run for run in RECIPE if run["mix"] == "untrained"]
    assert controls == {
        title: [f"{mean(run[features][metric] for run in before):.1f}" for metric in ("probe", "knn")]
        for title, features in names.items()
    }
