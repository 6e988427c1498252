"""What came out: ``results.json``, the table, and ``comparison.png``."""

from __future__ import annotations

import argparse
import json
import platform
from collections import Counter
from collections.abc import Mapping
from statistics import mean, stdev
from typing import Any

import torch

import imix_aug
from common.board import Board
from common.checkpoint import CheckpointError, read_checkpoint, refuse_differences, write_atomically
from common.experiment import configuration, run_folder
from common.pace import Pace
from common.plots import COLOURS, draw_comparison, draw_curves

METRICS = {"probe_accuracy": "linear probe", "knn_accuracy": "kNN"}


class Results:
    """The runs in a folder, those of earlier commands too; written anew after each, so that none is ever lost."""

    def __init__(self, args: argparse.Namespace, data_name: str) -> None:
        self.args, self.title = args, f"{data_name}, {args.method}"
        self.path = args.out / "results.json"
        self.runs: list[dict[str, Any]] = self._earlier() if args.resume else []

    def _earlier(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        try:
            runs = json.loads(self.path.read_text())["runs"]
            for run in runs:
                here = configuration(self.args, run["mix"], run["seed"])
                refuse_differences(self.path, run["config"], json.loads(json.dumps(here, default=str)))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.path}: not the results of these examples ({error})") from error
        return runs

    def add(self, mix: str, seed: int, metrics: dict[str, float], pace: Pace) -> None:
        """Note one finished run."""
        self.runs = [run for run in self.runs if (run["mix"], run["seed"]) != (mix, seed)]
        self.runs.append(
            {
                "method": self.args.method,
                "mix": mix,
                "seed": seed,
                "metrics": metrics,
                "config": configuration(self.args, mix, seed),
                **pace.summary(),
                "device": str(self.args.device),
                "versions": {
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "imix_aug": imix_aug.__version__,
                },
            }
        )
        self.runs.sort(key=lambda run: (list(COLOURS).index(run["mix"]), run["seed"]))
        text = json.dumps({"runs": self.runs}, indent=2, default=str) + "\n"
        write_atomically(self.path, lambda file: file.write(text.encode()))

    def finish(self) -> None:
        """Print the table and draw the bars."""
        print(f"\n{self.title}: accuracy in percent\n")
        print(format_table(summarize(self.runs), Counter(run["mix"] for run in self.runs)))
        bars, curves = self.args.out / "comparison.png", self.args.out / "curves.png"
        draw_comparison(bars, self.title, summarize(self.runs))
        draw_curves(curves, self.title, self._losses())
        board = Board(self.args, self.args.out)
        board.picture(bars)
        board.picture(curves)
        print(f"\n{self.path}, {bars}, {curves}")

    def _losses(self) -> dict[str, list[list[float]]]:
        losses: dict[str, list[list[float]]] = {}
        for run in self.runs:
            path = run_folder(self.args, run["mix"], run["seed"]) / "checkpoint.pt"
            if path.exists():
                losses.setdefault(run["mix"], []).append(read_checkpoint(path)["progress"]["losses"])
        return losses


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
            spread = f" +- {deviation:.2f}" if seeds[mix] > 1 else ""
            row += [f"{average:.2f}{spread}", "" if gain is None else f"{gain:+.2f}"]
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
