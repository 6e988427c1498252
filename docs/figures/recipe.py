"""Print what settings for tables of one's own are worth on the development tables: `python docs/figures/recipe.py`.

The runs come from `recipe.json`, which `recipe_runs.py` makes.
"""

import json
import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from runner.report.signed import signed

RUNS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
JUDGED = (("own", "probe"), ("all", "probe"), ("all", "knn"))


def found(setting: str, mix: str, features: str, metric: str) -> dict[tuple[str, int], float]:
    """What was measured, by table and split, in percent."""
    runs = [run for run in RUNS if (run["setting"], run["mix"]) == (setting, mix)]
    return {(run["table"], run["split"]): run[features][metric] for run in runs}


def table() -> str:
    """The mean over tables and splits without and with i-Mix, and in how many of them it is ahead and behind."""
    heads = [f"{title}: none, i-Mix, gain" for title in ("learnt", "handed on", "handed on, kNN")]
    rows = [f"| setting | pairs | {' | '.join(heads)} |", "| --- " * 5 + "|"]
    for setting in dict.fromkeys(run["setting"] for run in RUNS):
        cells = [setting, str(len(found(setting, "mixup", "all", "probe")))]
        for features, metric in JUDGED:
            without, with_mix = (found(setting, mix, features, metric) for mix in ("none", "mixup"))
            gains = [round(with_mix[key] - without[key], 2) for key in with_mix]
            ahead, behind = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
            averages = f"{mean(without.values()):.1f}, {mean(with_mix.values()):.1f}"
            cells.append(f"{averages}, {signed(mean(gains))} ({ahead} : {behind})")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def controls() -> str:
    """What there is before any training."""
    runs = [run for run in RUNS if run["mix"] == "untrained"]
    rows = ["| before training | linear probe | kNN |", "| --- | --- | --- |"]
    titles = {"raw": "raw columns", "encoded": "encoded columns", "own": "untrained network", "all": "the two together"}
    for features, title in titles.items():
        values = (mean(run[features][metric] for run in runs) for metric in ("probe", "knn"))
        rows.append(f"| {title} | {' | '.join(f'{value:.1f}' for value in values)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(controls(), table(), sep="\n\n")
    print(f"{mean(run['cpu_seconds'] for run in RUNS):.1f} s in the mean")
