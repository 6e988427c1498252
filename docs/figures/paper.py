"""Draw Covertype by the authors' recipe against width and epochs, and print its table: `python docs/figures/paper.py`.

The runs come from `paper.json`, which `gather.py` collects.
"""

import sys
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from runs import by_seed, changes, load_runs, means_of_pairs
from style import OWN, PARTNER, REST, save

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from runner.paper import METHOD_NAMES, PUBLISHED
from runner.report.paired import paired, with_interval

VIEWS = {"default": ", dropout in both", "none": ", no dropout"}  # where they are not the recipe's
PRECISIONS = {"bf16": "bfloat16", None: "float32"}
RUNS = load_runs("paper")
for run in RUNS:
    options = changes(run)
    run |= {"width": int(options["width"]), "epochs": int(options["epochs"])}
    run["precision"] = PRECISIONS[options.get("amp")]
    if run["method"] and "augment" in options:
        run["method"] += VIEWS[options["augment"]]
METRICS = ("probe", "knn")
AT = 40  # epochs, at which widths are compared
STYLES = {8: ":", 16: "-.", 32: "-"}  # of the widths whose epochs are compared
WAYS = {"none": (PARTNER, "s", "without i-Mix"), "mixup": (OWN, "o", "with i-Mix")}
THEIRS = {METHOD_NAMES[method]: figures for method, figures in PUBLISHED["tabular", "covtype"].items()}


def found(features: str, metric: str, **key: object) -> dict[int, float]:
    """What was measured, seed by seed, in percent."""
    return by_seed(RUNS, metric, features=features, **key)


def untrained(width: int, metric: str) -> float:
    """What the network of this width is worth before training."""
    return mean(found("untrained", metric, width=width).values())


def cells() -> list[tuple[str, int, int]]:
    """All methods, widths and epochs that were trained both ways."""
    without, with_mix = (
        {(run["method"], run["width"], run["epochs"]) for run in RUNS if run["features"] == mix}
        for mix in ("none", "mixup")
    )
    return sorted(without & with_mix, key=lambda cell: ([*THEIRS].index(cell[0].split(", ")[0]), *cell))


def table() -> str:
    """Accuracies and gains, in Markdown."""
    heads = ["precision", "pairs", "untrained", "without", "with i-Mix", "gain"]
    heads += ["kNN: untrained", "without", "with", "gain"]
    rows = [f"| method | width | epochs | {' | '.join(heads)} |", "| --- " * (3 + len(heads)) + "|"]
    for method, width, epochs in cells():
        line = [method, str(width), str(epochs), precision(method, width, epochs)]
        for metric in METRICS:
            without, with_mix = (
                found(mix, metric, method=method, width=width, epochs=epochs) for mix in ("none", "mixup")
            )
            pair = paired(with_mix, without)
            line += [str(pair.pairs)] if metric == "probe" else []
            levels = (untrained(width, metric), *means_of_pairs(without, with_mix))
            line += [*(f"{level:.2f}" for level in levels), with_interval(pair, 2)]
        rows.append(f"| {' | '.join(line)} |")
    return "\n".join(rows)


def precision(method: str, width: int, epochs: int) -> str:
    """In what the runs of a cell multiplied, which is one for all of them."""
    key = {"method": method, "width": width, "epochs": epochs}
    (one,) = {run["precision"] for run in RUNS if key.items() <= run.items()}
    return one


def raw() -> str:
    """What the columns are worth, which no width changes."""
    (one,) = {(run["probe"], run["knn"]) for run in RUNS if run["features"] == "raw"}
    return "raw columns {:.2f} by the probe, {:.2f} by kNN".format(*one)


def draw(ink: str) -> plt.Figure:
    """A column for each method: accuracy against width, and below it against the epochs, a line for each width."""
    figure, (above, below) = plt.subplots(2, 3, figsize=(9, 5.6), layout="constrained", sharex="row", sharey=True)
    trained = cells()
    widths = sorted({run["width"] for run in RUNS if run["features"] == "untrained"})
    before = [untrained(width, "probe") for width in widths]
    lengths = sorted({epochs for method, width, epochs in trained if method in THEIRS and width in STYLES})
    for axis, method in zip(above, THEIRS, strict=True):
        axis.plot(widths, before, "^:", color=REST, markersize=4, label="untrained")
        both_ways(axis, {cell[1]: cell for cell in trained if (cell[0], cell[2]) == (method, AT)}, "-")
        finish(axis, method, f"{method}, {AT} epochs", "width", widths)
    for axis, method in zip(below, THEIRS, strict=True):
        for width, style in STYLES.items():
            both_ways(axis, {cell[2]: cell for cell in trained if cell[:2] == (method, width)}, style)
        finish(axis, method, method, "epochs", lengths)
    styles = [Line2D([], [], linestyle=style, color=ink, label=f"width {width}") for width, style in STYLES.items()]
    below[1].legend(handles=styles, fontsize=7, loc="lower left")
    for axis in (above[0], below[0]):
        axis.set_ylabel("linear probe, percent", fontsize=8)
    figure.legend(*above[0].get_legend_handles_labels(), fontsize=8, loc="outside upper center", ncols=5)
    return figure


def both_ways(axis: plt.Axes, at: dict[int, tuple[str, int, int]], style: str) -> None:
    """Draw accuracy without and with i-Mix, of a cell at each of these places."""
    for mix, (color, mark, label) in WAYS.items():
        levels = [
            mean(found(mix, "probe", method=method, width=width, epochs=epochs).values())
            for method, width, epochs in at.values()
        ]
        axis.plot([*at], levels, mark + style, color=color, markersize=4, label=label)


def finish(axis: plt.Axes, method: str, title: str, along: str, values: list[int]) -> None:
    """Draw what the paper reports, and name the values that were run, on an axis in powers of two."""
    for (color, _, label), level in zip(WAYS.values(), THEIRS[method], strict=True):
        axis.axhline(level, color=color, linewidth=0.8, linestyle="--", label=f"{label}, the paper")
    axis.set_xscale("log", base=2)
    axis.set_xticks(values, [str(value) for value in values])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(along, fontsize=8)


if __name__ == "__main__":
    print(table(), raw(), sep="\n\n")
    trained = sorted(
        (run["cpu_seconds"], run["width"], run["epochs"]) for run in RUNS if run["features"] in ("none", "mixup")
    )
    print(
        "seconds of processor time per run:", ", ".join(f"{s:.0f} ({w}, {e})" for s, w, e in trained), file=sys.stderr
    )
    save("paper", draw)
