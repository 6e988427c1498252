"""Draw what the examples reached: `python docs/figures/results.py`.

The numbers come from `results.json`, one entry per run: what `examples/` wrote to their own `results.json`.
"""

import json
from pathlib import Path
from statistics import mean, stdev

import matplotlib.pyplot as plt
from style import OWN, REST, save

RUNS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
METHODS = {"npair": "N-pair", "moco": "MoCo v2", "byol": "BYOL"}
TITLES = {"covtype": "UCI Covertype, 5 seeds", "fsdd": "spoken digits, 3 seeds", "cifar10": "CIFAR-10, 3 seeds"}


def accuracies(data: str, method: str, mix: str) -> list[float]:
    """The linear probe's, in percent, a seed each."""
    return [
        100 * run["probe_accuracy"] for run in RUNS if (run["data"], run["method"], run["mix"]) == (data, method, mix)
    ]


def draw(ink: str) -> plt.Figure:
    """A panel for each data set: bars without and with i-Mix for each method, deviations over the seeds as whiskers."""
    figure, panels = plt.subplots(1, len(TITLES), figsize=(9, 3.1), layout="constrained")
    for axis, (data, title) in zip(panels, TITLES.items(), strict=True):
        lowest, highest = 100.0, 0.0
        for side, mix, color, label in ((-0.2, "none", REST, "without"), (0.2, "mixup", OWN, "with i-Mix")):
            found = [accuracies(data, method, mix) for method in METHODS]
            means, spreads = [mean(each) for each in found], [stdev(each) if len(each) > 1 else 0 for each in found]
            places = [place + side for place in range(len(METHODS))]
            bars = axis.bar(places, means, 0.38, yerr=spreads, color=color, ecolor=ink, capsize=2, label=label)
            axis.bar_label(bars, fmt="%.1f", padding=1, fontsize=6.5)
            lowest = min(lowest, *(value - spread for value, spread in zip(means, spreads, strict=True)))
            highest = max(highest, *(value + spread for value, spread in zip(means, spreads, strict=True)))
        axis.set_ylim(lowest - 0.6 * (highest - lowest), highest + 0.15 * (highest - lowest))
        axis.set_xticks(range(len(METHODS)), METHODS.values(), fontsize=8)
        axis.set_title(title, fontsize=10)
    panels[0].set_ylabel("linear probe, percent")
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside upper center", ncols=2)
    return figure


if __name__ == "__main__":
    save("results", draw)
