"""Draw Covertype by the authors' recipe against width and epochs, and print its table: `python docs/figures/paper.py`.

The runs come from `paper.json`, which `gather.py` collects.
"""

import json
import re
import sys
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator
from style import OWN, PARTNER, REST, save

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from runner.paper import METHOD_NAMES, PUBLISHED
from runner.report.paired import paired, with_interval

RUNS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
for run in RUNS:  # the one change that is not of size: MoCo's i-Mix beside dropout, whose place it takes in theirs
    if run["method"] and "augment=default" in run["change"]:
        run["method"] += ", dropout in both"
METRICS = ("probe", "knn")
AT = 40  # epochs, at which widths are compared
THEIRS = {METHOD_NAMES[method]: figures for method, figures in PUBLISHED["tabular", "covtype"].items()}


def size(run: dict) -> tuple[int, int]:
    """Width and epochs of a run."""
    width, epochs = (re.search(rf"{option}=(\d+)", run["change"]) for option in ("width", "epochs"))
    return int(width[1]), int(epochs[1])


def found(method: str | None, width: int, epochs: int | None, features: str, metric: str) -> dict[int, float]:
    """What was measured, seed by seed, in percent; controls have no epochs."""
    runs = [run for run in RUNS if (run["method"], run["features"]) == (method, features)]
    return {run["seed"]: run[metric] for run in runs if size(run)[0] == width and epochs in (None, size(run)[1])}


def cells() -> list[tuple[str, int, int]]:
    """All methods, widths and epochs that were trained both ways."""
    trained = [{(run["method"], *size(run)) for run in RUNS if run["features"] == mix} for mix in ("none", "mixup")]
    return sorted(trained[0] & trained[1], key=lambda cell: ([*THEIRS].index(cell[0].split(", ")[0]), *cell))


def table() -> str:
    """Accuracies and gains, in Markdown."""
    heads = ["pairs", "untrained", "without", "with i-Mix", "gain", "kNN: untrained", "without", "with", "gain"]
    rows = [f"| method | width | epochs | {' | '.join(heads)} |", "| --- " * (3 + len(heads)) + "|"]
    for method, width, epochs in cells():
        line = [method, str(width), str(epochs)]
        for metric in METRICS:
            untrained = found(None, width, None, "untrained", metric)
            without, with_mix = (found(method, width, epochs, mix, metric) for mix in ("none", "mixup"))
            pair = paired(with_mix, without)
            line += [str(pair.pairs)] if metric == "probe" else []
            line.append(f"{mean(untrained.values()):.2f}")
            both = without.keys() & with_mix.keys()
            line += [f"{mean(one[seed] for seed in both):.2f}" for one in (without, with_mix)]
            line.append(with_interval(pair, 2))
        rows.append(f"| {' | '.join(line)} |")
    return "\n".join(rows)


def raw() -> str:
    """What the columns are worth, which no width changes."""
    (one,) = {(run["probe"], run["knn"]) for run in RUNS if run["features"] == "raw"}
    return "raw columns {:.2f} by the probe, {:.2f} by kNN".format(*one)


def draw(ink: str) -> plt.Figure:
    """A panel for each method: accuracy against width; and one of N-pair against the epochs, width by width."""
    figure, panels = plt.subplots(1, 4, figsize=(10.4, 3.2), layout="constrained", sharey=True)
    for axis, (method, theirs) in zip(panels, THEIRS.items(), strict=False):
        widths = [width for one, width, epochs in cells() if (one, epochs) == (method, AT)]
        untrained = sorted({size(run)[0] for run in RUNS if run["features"] == "untrained"})
        levels = [mean(found(None, width, None, "untrained", "probe").values()) for width in untrained]
        axis.plot(untrained, levels, "^:", color=REST, markersize=4, label="untrained")
        for mix, color, mark, label in (("none", PARTNER, "s", "without i-Mix"), ("mixup", OWN, "o", "with i-Mix")):
            levels = [mean(found(method, width, AT, mix, "probe").values()) for width in widths]
            axis.plot(widths, levels, mark + "-", color=color, markersize=4, label=label)
            axis.axhline(theirs[mix != "none"], color=color, linewidth=0.8, linestyle="--", label=f"{label}, the paper")
        on_octaves(axis, untrained)
        axis.set_title(f"{method}, {AT} epochs", fontsize=9)
        axis.set_xlabel("width", fontsize=8)
    panels[0].set_ylabel("linear probe, percent", fontsize=8)
    axis, styles = panels[3], {8: "--", 16: "-"}
    lengths = sorted({epochs for method, width, epochs in cells() if method == "N-pair" and width in styles})
    for width, style in styles.items():
        epochs = [one for method, w, one in cells() if (method, w) == ("N-pair", width)]
        for mix, color, mark in (("none", PARTNER, "s"), ("mixup", OWN, "o")):
            levels = [mean(found("N-pair", width, one, mix, "probe").values()) for one in epochs]
            axis.plot(epochs, levels, mark + style, color=color, markersize=4)
        axis.plot([], [], style, color=ink, label=f"width {width}")
    on_octaves(axis, lengths)
    axis.set_title("N-pair", fontsize=9)
    axis.set_xlabel("epochs", fontsize=8)
    axis.legend(fontsize=7)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside upper center", ncols=5)
    return figure


def on_octaves(axis: plt.Axes, values: list[int]) -> None:
    """Count in powers of two, and name the values that were run."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(values, [str(value) for value in values])
    axis.xaxis.set_minor_locator(NullLocator())


if __name__ == "__main__":
    print(table(), raw(), sep="\n\n")
    trained = [(run["cpu_seconds"], *size(run)) for run in RUNS if run["features"] in ("none", "mixup")]
    print("seconds of processor time per run:", ", ".join(f"{s:.0f} ({w}, {e})" for s, w, e in sorted(trained)))
    save("paper", draw)
