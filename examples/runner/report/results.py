"""What came out: ``results.json``, the table, and ``comparison.png``."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

import imix_aug
from runner.pace import Pace
from runner.report.board import Board
from runner.report.plots import COLOURS, draw_comparison, draw_curves
from runner.settings import Settings
from runner.state.checkpoint import naming, read_checkpoint, refuse_differences
from runner.state.experiment import Experiment
from runner.state.files import write_text
from runner.state.form import check_form, number

METRICS = {"probe_accuracy": "linear probe", "knn_accuracy": "kNN"}


class Results:
    """The runs in a folder, those of earlier commands too; written anew after each, so that none is ever lost."""

    def __init__(self, settings: Settings, data_name: str) -> None:
        self.settings, self.title = settings, f"{data_name}, {settings.method}"
        self.path = settings.out / "results.json"
        self.runs: list[dict[str, Any]] = self._earlier() if settings.resume else []

    def _earlier(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        runs = read_results(self.path)
        for run in runs:
            experiment = Experiment(self.settings, run["mix"], run["seed"])
            refuse_differences(self.path, run["config"], experiment.configuration)
        return runs

    def add(self, experiment: Experiment, metrics: dict[str, float], pace: Pace) -> None:
        """Note one finished run."""
        mix, seed = experiment.mix, experiment.seed
        self.runs = [run for run in self.runs if (run["mix"], run["seed"]) != (mix, seed)]
        self.runs.append(
            {
                "method": self.settings.method,
                "mix": mix,
                "seed": seed,
                "metrics": metrics,
                "config": experiment.configuration,
                **pace.summary(),
                "device": str(self.settings.device),
                "versions": {
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "imix_aug": imix_aug.__version__,
                },
            }
        )
        self.runs.sort(key=lambda run: (list(COLOURS).index(run["mix"]), run["seed"]))
        write_text(self.path, json.dumps({"runs": self.runs}, indent=2) + "\n")

    def finish(self) -> None:
        """Print the table and draw the bars."""
        print(f"\n{self.title}: accuracy in percent\n")
        print(format_table(summarize(self.runs), Counter(run["mix"] for run in self.runs)))
        bars, curves = self.settings.out / "comparison.png", self.settings.out / "curves.png"
        draw_comparison(bars, self.title, summarize(self.runs))
        draw_curves(curves, self.title, self._losses())
        board = Board(self.settings.out, on=self.settings.tensorboard)
        board.picture(bars)
        board.picture(curves)
        print(f"\n{self.path}, {bars}, {curves}")

    def _losses(self) -> dict[str, list[list[float]]]:
        losses: dict[str, list[list[float]]] = {}
        for run in self.runs:
            path = Experiment(self.settings, run["mix"], run["seed"]).checkpoint
            if path.exists():
                losses.setdefault(run["mix"], []).append(read_checkpoint(path)["progress"]["losses"])
        return losses


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read the runs of a ``results.json``, and refuse one that is damaged."""
    with naming(path):
        runs = json.loads(path.read_bytes())["runs"]
        for run in runs:
            if run["mix"] not in COLOURS:
                raise ValueError(f"mix is {run['mix']!r}")
            check_form("config", run["config"], {})
            number("seed", run["seed"], whole=True)
            for metric in METRICS:
                number(metric, run["metrics"][metric], most=1)
    return runs


def summarize(runs: list[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and standard deviation in percent of every metric, for every mix."""
    summary: dict[str, dict[str, tuple[float, float]]] = {}
    for mix in dict.fromkeys(run["mix"] for run in runs):
        same = [run["metrics"] for run in runs if run["mix"] == mix]
        summary[mix] = {}
        for metric in METRICS:
            values = [100 * metrics[metric] for metrics in same]
            summary[mix][metric] = (mean(values), stdev(values) if len(values) > 1 else 0.0)
    return summary


def format_table(summary: dict[str, dict[str, tuple[float, float]]], seeds: Mapping[str, int]) -> str:
    """A table to read: one row a mix, each metric with its gain over ``none``."""
    rows = [["mix", "seeds", *(cell for name in METRICS.values() for cell in (name, "gain"))]]
    for mix, metrics in summary.items():
        row = [mix, str(seeds[mix])]
        for metric in METRICS:
            average, deviation = metrics[metric]
            gain = average - summary["none"][metric][0] if "none" in summary and mix != "none" else None
            deviations = f" +- {deviation:.2f}" if seeds[mix] > 1 else ""
            row += [f"{average:.2f}{deviations}", "" if gain is None else f"{gain:+.2f}"]
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
