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
from runner.report.conclusion import conclude
from runner.report.plots import COLOURS, CONTROLS, draw_comparison, draw_curves
from runner.report.signed import signed
from runner.settings import Settings
from runner.state.checkpoint import naming, read_checkpoint, refuse_differences
from runner.state.experiment import Experiment
from runner.state.files import write_text
from runner.state.form import check_form, number

METRICS = {"probe_accuracy": "linear probe", "knn_accuracy": "kNN"}


class Results:
    """The runs in a folder, those of earlier commands too; written anew after each, so that none is ever lost.

    Beside the runs stand the controls: what the same probe finds in the raw input, and in the untrained network.
    """

    def __init__(self, settings: Settings, data_name: str, raw_name: str) -> None:
        self.settings, self.title, self.raw_name = settings, f"{data_name}, {settings.method}", raw_name
        self.path = settings.out / "results.json"
        self.runs: list[dict[str, Any]] = []
        self.controls: list[dict[str, Any]] = []
        if settings.resume and self.path.exists():
            self.runs, self.controls = read_results(self.path)
        for run in self.runs:
            experiment = Experiment(settings, run["mix"], run["seed"])
            refuse_differences(self.path, run["config"], experiment.configuration)

    def has(self, experiment: Experiment) -> bool:
        """Whether an earlier command has trained and judged it."""
        return any((run["mix"], run["seed"]) == (experiment.mix, experiment.seed) for run in self.runs)

    def has_control(self, name: str, seed: int) -> bool:
        """Whether an earlier command has judged it."""
        return any((control["control"], control["seed"]) == (name, seed) for control in self.controls)

    def add_control(self, name: str, seed: int, metrics: dict[str, Any]) -> None:
        """Note what there is before any training."""
        self.controls.append({"control": name, "seed": seed, "metrics": metrics})
        self._write()

    def add(self, experiment: Experiment, metrics: dict[str, Any], pace: Pace) -> None:
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
        self._write()

    def _write(self) -> None:
        kept = {"runs": self.runs, "controls": self.controls, "conclusion": self.conclusion()}
        write_text(self.path, json.dumps(kept, indent=2) + "\n")

    def finish(self) -> None:
        """Print the table and what it shows, and draw the bars."""
        summary, seeds = summarize([*self.controls, *self.runs]), Counter(map(name_of, [*self.controls, *self.runs]))
        print(f"\n{self.title}: accuracy in percent\n")
        print(format_table(summary, seeds, {"raw": f"raw {self.raw_name}"}))
        if conclusion := self.conclusion():
            print(f"\n{conclusion}")
        if self.settings.probe == "sgd":
            print(f"\n{format_rates([*self.controls, *self.runs])}")
        bars, curves = self.settings.out / "comparison.png", self.settings.out / "curves.png"
        draw_comparison(bars, self.title, summary, {"raw": f"raw {self.raw_name}"})
        draw_curves(curves, self.title, self._losses())
        board = Board(self.settings.out, on=self.settings.tensorboard)
        board.picture(bars)
        board.picture(curves)
        print(f"\n{self.path}, {bars}, {curves}")

    def conclusion(self) -> str:
        """What the runs show, in one sentence."""
        found: dict[str, dict[int, float]] = {}
        for one in (*self.controls, *self.runs):
            found.setdefault(name_of(one), {})[one["seed"]] = 100 * one["metrics"]["probe_accuracy"]
        return conclude(found, self.raw_name)

    def _losses(self) -> dict[str, list[list[float]]]:
        losses: dict[str, list[list[float]]] = {}
        for run in self.runs:
            path = Experiment(self.settings, run["mix"], run["seed"]).checkpoint
            if path.exists():
                losses.setdefault(run["mix"], []).append(read_checkpoint(path)["progress"]["losses"])
        return losses


def read_results(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read the runs and the controls of a ``results.json``, and refuse one that is damaged."""
    with naming(path):
        found = json.loads(path.read_bytes())
        runs, controls = found["runs"], found.get("controls", [])
        for kind, known, several in (("mix", COLOURS, runs), ("control", CONTROLS, controls)):
            for one in several:
                if one[kind] not in known:
                    raise ValueError(f"{kind} is {one[kind]!r}")
                number("seed", one["seed"], whole=True)
                for metric in METRICS:
                    number(metric, one["metrics"][metric], most=1)
        for run in runs:
            check_form("config", run["config"], {})
    return runs, controls


def name_of(one: Mapping[str, Any]) -> str:
    """The row that a run or a control belongs to."""
    return one.get("control") or one["mix"]


def summarize(runs: list[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and standard deviation in percent of every metric, for every control and mix."""
    summary: dict[str, dict[str, tuple[float, float]]] = {}
    for mix in dict.fromkeys(map(name_of, runs)):
        same = [run["metrics"] for run in runs if name_of(run) == mix]
        summary[mix] = {}
        for metric in METRICS:
            values = [100 * metrics[metric] for metrics in same]
            summary[mix][metric] = (mean(values), stdev(values) if len(values) > 1 else 0.0)
    return summary


def format_rates(runs: list[dict[str, Any]]) -> str:
    """What each rate of the paper's probe gave, run by run; the table has the best."""
    rows = ["linear probe at each rate (above: the best of a run, chosen on the test rows, as in the paper)"]
    for run in runs:
        rates = ", ".join(f"{rate}: {100 * found:.2f}" for rate, found in run["metrics"]["sgd_probe"].items())
        rows.append(f"{name_of(run)} seed {run['seed']}  {rates}")
    return "\n".join(rows)


def format_table(
    summary: dict[str, dict[str, tuple[float, float]]], seeds: Mapping[str, int], names: Mapping[str, str]
) -> str:
    """A table to read: one row per control and mix, each metric with the gain of a mix over ``none``."""
    rows = [["mix", "seeds", *(cell for name in METRICS.values() for cell in (name, "gain"))]]
    for mix, metrics in summary.items():
        row = [names.get(mix, mix), str(seeds[mix])]
        for metric in METRICS:
            average, deviation = metrics[metric]
            gain = (
                average - summary["none"][metric][0] if "none" in summary and mix not in ("none", *CONTROLS) else None
            )
            deviations = f" +- {deviation:.2f}" if seeds[mix] > 1 else ""
            row += [f"{average:.2f}{deviations}", "" if gain is None else signed(gain, 2)]
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
