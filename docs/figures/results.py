"""Draw the gains of i-Mix and print their table: `python docs/figures/results.py`.

The runs come from `results.json`, which `gather.py` collects, and those on validation rows from `validation.json`.
"""

import sys
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
from runs import Run, by_seed, changes, load_runs, means_of_pairs
from style import OWN, PARTNER, save

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from runner.report.paired import Paired, paired, with_interval

RUNS, VALIDATION = load_runs("results"), load_runs("validation")
TITLES = {"covtype": "Covertype", "cifar100": "CIFAR-100", "speechcommands": "spoken commands"}
METHODS = ("N-pair", "MoCo v2", "BYOL")
LONG = "pretrain-rows=50000"  # the runs of more than seconds
METRICS = {"probe": "linear probe", "knn": "kNN"}


def found(
    data: str, method: str | None, features: str, metric: str, change: str = "", runs: list[Run] = RUNS
) -> dict[int, float]:
    """What was measured, seed by seed, in percent."""
    return by_seed(runs, metric, data=data, method=method, change=change, features=features)


def compare(
    data: str, method: str, metric: str, change: str = "", runs: list[Run] = RUNS
) -> tuple[float, float, Paired]:
    """The means over the seeds that both have, and their difference."""
    without, with_mix = (found(data, method, mix, metric, change, runs) for mix in ("none", "mixup"))
    return *means_of_pairs(without, with_mix), paired(with_mix, without)


def seconds(data: str, method: str, change: str = "") -> float:
    """Processor time of one run's pretraining, the mean over both."""
    key = {"data": data, "method": method, "change": change}
    return mean(run["cpu_seconds"] for run in RUNS if key.items() <= run.items())


def judged(data: str, method: str, change: str = "", runs: list[Run] = RUNS) -> list[str]:
    """What a row of a table says of a cell."""
    cells = [str(compare(data, method, "probe", change, runs)[2].pairs)]
    for metric in METRICS:
        without, with_mix, pair = compare(data, method, metric, change, runs)
        better = [f"{with_mix:.2f}", f"**{with_mix:.2f}**"][pair.low is not None and pair.low > 0]
        cells += [f"{without:.2f}", better, with_interval(pair, 2)]
        if metric == "probe":
            cells += [str(pair.ahead), f"{in_words(pair.p_t)}, {in_words(pair.p_sign)}"]
    return cells


def table() -> str:
    """The grid, in Markdown."""
    rows = ["| data | method | pairs | without | with i-Mix | gain | ahead | p: t, sign | kNN: without | with | gain |"]
    rows.append("| --- " * 11 + "|")
    for data, title in TITLES.items():
        for method in METHODS:
            rows.append(f"| {' | '.join([title, method, *judged(data, method)])} |")
    return "\n".join(rows)


def summary() -> str:
    """The grid in a few words, for the README: a data set a line."""
    rows = [f"| linear probe, percent | {' | '.join(METHODS)} |", "| --- " * (1 + len(METHODS)) + "|"]
    for data, title in TITLES.items():
        cells = [title]
        for method in METHODS:
            without, with_mix, pair = compare(data, method, "probe")
            cells.append(f"{without:.1f} to {with_mix:.1f}: {with_interval(pair)}")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def long() -> str:
    """CIFAR-100, all images and many epochs, in Markdown."""
    heads = ("untrained", "without", "with i-Mix", "gain")
    rows = [f"| augmentation | epochs | pairs | {' | '.join(heads)} | kNN: {' | '.join(heads)} |", "| --- " * 11 + "|"]
    (untrained,) = (run for run in RUNS if LONG in run["change"] and run["features"] == "untrained")
    augmentations = {"none": "none", "default": "crop, flip, colours"}
    trained = [(changes(run), run) for run in RUNS if LONG in run["change"] and run["features"] == "mixup"]
    trained.sort(key=lambda one: (list(augmentations).index(one[0]["augment"]), int(one[0]["epochs"])))
    for options, run in trained:
        cells = [augmentations[options["augment"]], options["epochs"]]
        for metric in METRICS:
            without, with_mix, pair = compare(run["data"], run["method"], metric, run["change"])
            cells += [str(pair.pairs)] if metric == "probe" else []
            cells += [f"{untrained[metric]:.2f}", f"{without:.2f}", f"{with_mix:.2f}", with_interval(pair, 2)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def changed(runs: list[Run], rows_judged: str) -> str:
    """Cells by another recipe, in Markdown."""
    heads = "pairs | without | with i-Mix | gain | ahead | p: t, sign | kNN: without | with | gain"
    rows = [f"| change on {rows_judged} | {heads} |", "| --- " * 10 + "|"]
    cells = {(run["data"], run["method"], run["change"]) for run in runs if run["features"] == "mixup"}
    for data, method, change in sorted(cells):
        row = [f"{method} on {TITLES[data]}, {change or 'as it is'}", *judged(data, method, change, runs)]
        rows.append(f"| {' | '.join(row)} |")
    return "\n".join(rows)


def controls() -> str:
    """What there is before any training, in Markdown."""
    rows = ["| data | raw input | untrained network | raw: kNN | untrained: kNN |", "| --- " * 5 + "|"]
    for data, title in TITLES.items():
        cells = [title]
        for metric in METRICS:
            for control in ("raw", "untrained"):
                values = found(data, None, control, metric).values()
                cells.append(f"{mean(values):.2f}" if values else "not run")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def halves() -> str:
    """The gains of the grid by the probe, of the ten pairs that were planned and of the ten after them, in Markdown."""
    rows = ["| data | method | first ten: gain | p | second ten: gain | p |", "| --- " * 6 + "|"]
    tens = [[run for run in RUNS if run["seed"] in seeds] for seeds in (range(10), range(10, 20))]
    for data, title in TITLES.items():
        for method in METHODS:
            row = [title, method]
            for runs in tens:
                pair = compare(data, method, "probe", runs=runs)[2]
                row += [with_interval(pair, 2), in_words(pair.p_t)]
            rows.append(f"| {' | '.join(row)} |")
    return "\n".join(rows)


def in_words(p: float | None) -> str:
    """A p-value to two digits."""
    return "-" if p is None else "< 0.0001" if p < 0.0001 else f"{p:.2g}"


def draw(ink: str) -> plt.Figure:
    """A panel for each data set: the mean gain of each method with its 95 % interval, in the probe and in kNN."""
    figure, panels = plt.subplots(1, len(TITLES), figsize=(9, 2.6), layout="constrained", sharey=True)
    for axis, (data, title) in zip(panels, TITLES.items(), strict=True):
        axis.axvline(0, color=ink, linewidth=0.8)
        for side, metric, color, mark in ((0.13, "probe", OWN, "o"), (-0.13, "knn", PARTNER, "s")):
            pairs = [compare(data, method, metric)[2] for method in METHODS]
            ends = [[p.gain - p.low for p in pairs], [p.high - p.gain for p in pairs]]
            places = [side - place for place in range(len(METHODS))]
            gains = [p.gain for p in pairs]
            axis.errorbar(
                gains, places, xerr=ends, fmt=mark, color=color, capsize=3, markersize=5, label=METRICS[metric]
            )
        axis.set_yticks([-place for place in range(len(METHODS))], METHODS)
        axis.set_ylim(-len(METHODS) + 0.5, 0.6)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("gain, points", fontsize=8)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside upper center", ncols=2)
    return figure


if __name__ == "__main__":
    print(table(), halves(), long(), controls(), summary(), sep="\n\n", end="\n\n")
    short = [run for run in RUNS if run["change"] and LONG not in run["change"]]
    print(changed(short, "the test rows"), end="\n\n")
    print(changed(VALIDATION, "validation rows"))
    for data, title in TITLES.items():
        print(title, {method: f"{seconds(data, method):.1f} s" for method in METHODS}, file=sys.stderr)
    save("results", draw)
