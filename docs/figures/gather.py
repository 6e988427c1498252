"""Collect what `examples/reproduce.py` measured: `python docs/figures/gather.py runs/reproduce/table1-cpu`.

Takes any number of its folders and puts their runs, a line each, into `results.json` beside this file, those of
transfer into `transfer.json`, of ablations into `questions.json`, and at the paper's scale into `paper.json`; all into
another with `--file validation`. Runs that are there already are replaced, those of other data and methods stay.
"""

import argparse
import json
from pathlib import Path

from runs import load_runs, save_runs


def entries(report: dict) -> list[dict]:
    """A line for each run and each control of a `report.json`; accuracies in percent, seconds of processor time."""
    found, change = [], report["title"].partition(", ")[2]  # what --change said, such as epochs=24
    for line in report["rows"]:
        for mix, runs in line.get("runs", {}).items():
            found += [entry(line, run, mix, change) for run in runs]
        for control, judged in line.get("controls", {}).items():
            found += [entry(line, one, control, change) for one in judged]
    return found


def entry(line: dict, run: dict, features: str, change: str) -> dict:
    """One run, trained with a mix, or one control."""
    is_control = "control" in run
    kept = {
        "data": line["data"],
        "method": None if is_control else line["method"],
        "change": change,
        "features": features,
    }
    if "labels" in line:
        kept |= {"share": line["labels"], "labels": run["labels"]}
    if "over" in line:
        kept |= {"over": line["over"], "value": line["value"]}
    kept |= {"seed": run["seed"], "probe": round(100 * run["metrics"]["probe_accuracy"], 4)}
    kept["knn"] = round(100 * run["metrics"]["knn_accuracy"], 4)
    return {**kept, "cpu_seconds": run["cpu_seconds"]} if "cpu_seconds" in run else kept


def identity(one: dict) -> tuple:
    """What tells a run from all others."""
    asked = one.get("share", 1.0), one.get("over", ""), one.get("value", "")
    return one["data"], one["method"] or "", one["change"], *asked, one["features"], one["seed"]


def file_of(report: dict) -> str:
    """The file to which the runs of a `report.json` belong."""
    if report["title"].startswith("Transfer"):
        return "transfer"
    if "at scale paper" in report["title"]:
        return "paper"
    return "questions" if any("over" in line for line in report["rows"]) else "results"


def main() -> None:
    """Merge the reports in these folders into the files."""
    parser = argparse.ArgumentParser(description="Collect what reproduce.py measured.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--file", metavar="NAME", help="put all runs into NAME.json")
    args = parser.parse_args()
    for folder in args.folders:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        name = args.file or file_of(report)
        known = {identity(one): one for one in [*load_runs(name), *entries(report)]}
        save_runs(name, (known[key] for key in sorted(known)))


if __name__ == "__main__":
    main()
