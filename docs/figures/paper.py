"""Draw Covertype by the authors' recipe against width and epochs, and print its table: `python docs/figures/paper.py`.

The runs come from `paper.json`, which `gather.py` collects.
"""

import sys
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
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
    """A panel for each method: accuracy against width; and one of N-pair against the epochs, width by width."""
    figure, panels = plt.subplots(1, 4, figsize=(10.4, 3.2), layout="constrained", sharey=True)
    for axis, (method, theirs) in zip(panels, THEIRS.items(), strict=False):
        widths = [width for one, width, epochs in cells() if (one, epochs) == (method, AT)]
        before = sorted({run["width"] for run in RUNS if run["features"] == "untrained"})
        levels = [untrained(width, "probe") for width in before]
        axis.plot(before, levels, "^:", color=REST, markersize=4, label="untrained")
        for mix, color, mark, label in (("none", PARTNER, "s", "without i-Mix"), ("mixup", OWN, "o", "with i-Mix")):
            at = ({"method": method, "width": width, "epochs": AT} for width in widths)
            levels = [mean(found(mix, "probe", **key).values()) for key in at]
            axis.plot(widths, levels, mark + "-", color=color, markersize=4, label=label)
            axis.axhline(theirs[mix != "none"], color=color, linewidth=0.8, linestyle="--", label=f"{label}, the paper")
        on_octaves(axis, before)
        axis.set_title(f"{method}, {AT} epochs", fontsize=9)
        axis.set_xlabel("width", fontsize=8)
    panels[0].set_ylabel("linear probe, percent", fontsize=8)
    axis, styles = panels[3], {8: ":", 16: "--", 32: "-"}
    lengths = sorted({epochs for method, width, epochs in cells() if method == "N-pair" and width in styles})
    for width, style in styles.items():
        epochs = [one for method, w, one in cells() if (method, w) == ("N-pair", width)]
        for mix, color, mark in (("none", PARTNER, "s"), ("mixup", OWN, "o")):
            at = ({"method": "N-pair", "width": width, "epochs": one} for one in epochs)
            levels = [mean(found(mix, "probe", **key).values()) for key in at]
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
    trained = sorted(
        (run["cpu_seconds"], run["width"], run["epochs"]) for run in RUNS if run["features"] in ("none", "mixup")
    )
    print(
        "seconds of processor time per run:", ", ".join(f"{s:.0f} ({w}, {e})" for s, w, e in trained), file=sys.stderr
    )
    save("paper", draw)
