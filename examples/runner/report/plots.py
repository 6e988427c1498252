"""Pictures of the results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib import colormaps, rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from runner.report.paired import paired
from runner.state.files import write_atomically

rcParams["text.parse_math"] = False  # a dollar in a name is a dollar

CONTROLS = {"raw": "#e3e6ea", "untrained": "#c9cfd6"}
COLOURS = {"none": "#9aa5b1", "mixup": "#2f6fdf", "cutmix": "#e07b39"}


def draw_comparison(
    path: Path, title: str, summary: dict[str, dict[str, tuple[float, float]]], names: Mapping[str, str]
) -> None:
    """Draw a bar for each control, mix and metric, with the standard deviation over the seeds."""
    figure = Figure(figsize=(6, 4.4), layout="constrained")
    axes = figure.add_subplot()
    metrics = list(next(iter(summary.values())))
    width = 0.8 / len(summary)
    for i, (mix, values) in enumerate(summary.items()):
        places = [j + (i - (len(summary) - 1) / 2) * width for j in range(len(metrics))]
        means, deviations = zip(*(values[metric] for metric in metrics), strict=True)
        label, colour = names.get(mix, label_of(mix)), {**CONTROLS, **COLOURS}[mix]
        bars = axes.bar(places, means, width * 0.92, yerr=deviations, capsize=4, label=label, color=colour)
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    low = min(m - d for values in summary.values() for m, d in values.values())
    high = max(m + d for values in summary.values() for m, d in values.values())
    margin = max(high - low, 1.0)
    axes.set_ylim(max(0.0, low - 1.5 * margin), min(108.0, high + 0.8 * margin))
    axes.set_xticks(range(len(metrics)), [metric.replace("_", " ") for metric in metrics])
    axes.set_ylabel("test accuracy in percent")
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)  # beside no bar is there room
    save_figure(figure, path)


def draw_curves(path: Path, title: str, losses: dict[str, list[list[float]]]) -> None:
    """Draw the loss of every run against the epochs, one colour a mix."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for mix, seeds in losses.items():
        for i, curve in enumerate(seeds):
            axes.plot(
                range(1, len(curve) + 1), curve, color=COLOURS[mix], alpha=0.8, label=None if i else label_of(mix)
            )
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss")
    axes.set_title(f"{title}\n(soft labels keep the loss with i-Mix higher)", fontsize=10)
    axes.legend()
    save_figure(figure, path)


def draw_map(path: Path, title: str, points: np.ndarray, labels: np.ndarray, classes: list[str]) -> None:
    """Draw features in two dimensions, coloured by class."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot()
    colours = colormaps["tab10" if len(classes) <= 10 else "tab20" if len(classes) <= 20 else "turbo"]
    for i, name in enumerate(classes):
        rows = points[labels == i]
        colour = colours(i) if len(classes) <= 20 else colours(i / (len(classes) - 1))
        axes.scatter(rows[:, 0], rows[:, 1], s=8, color=colour, label=name)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title)
    if len(classes) <= 20:
        axes.legend(markerscale=2, fontsize=8)
    save_figure(figure, path)


def draw_beside(path: Path, title: str, lines: list[dict[str, Any]]) -> None:
    """Draw what came out as bars, and what was published as a line across each."""
    figure = Figure(figsize=(max(5.0, 1.6 * len(lines) + 2), 4.5), layout="constrained")
    axes = figure.add_subplot()
    lowest = 100.0
    for i, mix in enumerate(("none", "mixup")):
        found = [line["found"][mix] for line in lines]
        places = [j + 0.4 * (i - 0.5) for j in range(len(lines))]
        heights, deviations = [mean(one) for one in found], [stdev(one) if len(one) > 1 else 0.0 for one in found]
        bars = axes.bar(
            places, heights, 0.37, yerr=deviations, capsize=4, color=COLOURS[mix], label=f"here, {label_of(mix)}"
        )
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
        published = [(place, line["published"][mix]) for place, line in zip(places, lines, strict=True)]
        published = [(place, value) for place, value in published if value is not None]
        for j, (place, value) in enumerate(published):
            label = "published" if i == j == 0 else None
            axes.plot([place - 0.19, place + 0.19], [value, value], color="black", linewidth=2, label=label)
        lowest = min([lowest, *heights, *(value for _, value in published)])
    axes.set_ylim(max(0.0, lowest - 8), 104)
    axes.set_xticks(range(len(lines)), [line["row"] for line in lines], rotation=20, ha="right")
    axes.set_ylabel("linear probe, percent")
    axes.set_title(title)
    axes.legend(loc="lower right", fontsize=8)
    save_figure(figure, path)


def draw_against(quantity: str, path: Path, title: str, lines: list[dict[str, Any]]) -> None:
    """Draw the accuracy without and with i-Mix against what an ablation varies, and the gain with its 95 % interval."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    accuracy, gain = figure.subplots(1, 2)
    places = range(len(lines))
    for mix in ("none", "mixup"):
        found = [line["found"][mix] for line in lines]
        means, deviations = [mean(one) for one in found], [stdev(one) if len(one) > 1 else 0.0 for one in found]
        accuracy.plot(places, means, marker="o", color=COLOURS[mix], label=label_of(mix))
        _draw_band(accuracy, [(m - d, m + d) for m, d in zip(means, deviations, strict=True)], COLOURS[mix])
    pairs = [paired(*(dict(enumerate(line["found"][mix])) for mix in ("mixup", "none"))) for line in lines]
    gain.axhline(0, color="black", linewidth=0.8)
    gain.plot(places, [pair.gain for pair in pairs if pair], marker="o", color=COLOURS["mixup"])
    _draw_band(gain, [(pair.low, pair.high) for pair in pairs if pair], COLOURS["mixup"])
    for axes in (accuracy, gain):
        axes.set_xticks(places, [line["value"] for line in lines])
        axes.set_xlabel(quantity)
    accuracy.set_ylabel("linear probe, percent (± deviation)")
    accuracy.legend()
    gain.set_ylabel("gain, points (95 % interval)")
    figure.suptitle(title)
    save_figure(figure, path)


def _draw_band(axes: Axes, ends: list[tuple[float | None, float | None]], colour: str) -> None:
    """Shade between the ends, where there are any."""
    low, high = np.array(ends, dtype=float).T  # None becomes NaN
    axes.fill_between(range(len(ends)), low, high, color=colour, alpha=0.2, linewidth=0)


def label_of(mix: str) -> str:
    """What a mix is called in a legend."""
    return {"none": "without i-Mix", "untrained": "untrained network"}.get(mix, f"i-Mix ({mix})")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    write_atomically(path, lambda file: FigureCanvasAgg(figure).print_png(file))
