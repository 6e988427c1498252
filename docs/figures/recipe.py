"""Print what settings for tables of one's own are worth on the development tables: `python docs/figures/recipe.py`.

The runs come from `recipe.json`, which `recipe_runs.py` makes.
"""

import sys
from pathlib import Path
from statistics import mean

from runs import load_runs

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from runner.report.signed import signed
from runner.report.wins import wins

RUNS = load_runs("recipe")
JUDGED = (("own", "probe"), ("all", "probe"), ("all", "knn"))


def pairs(setting: str, features: str, metric: str) -> dict[tuple[str, int], dict[str, float]]:
    """What was measured without and with i-Mix, by table and split, in percent."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for run in RUNS:
        if run["setting"] == setting and run["mix"] != "untrained":
            found.setdefault((run["table"], run["split"]), {})[run["mix"]] = run[features][metric]
    return found


def table() -> str:
    """The mean over tables and splits without and with i-Mix, and in how many of them it is ahead and behind."""
    heads = [f"{title}: none, i-Mix, gain" for title in ("learnt", "handed on", "handed on, kNN")]
    rows = [f"| setting | pairs | {' | '.join(heads)} |", "| --- " * 5 + "|"]
    for setting in dict.fromkeys(run["setting"] for run in RUNS):
        cells = [setting, str(len(pairs(setting, *JUDGED[0])))]
        for features, metric in JUDGED:
            found = pairs(setting, features, metric)
            without, with_mix = (mean(pair[mix] for pair in found.values()) for mix in ("none", "mixup"))
            lead = "{} : {}".format(*wins(found, "mixup", "none"))
            cells.append(f"{without:.1f}, {with_mix:.1f}, {signed(with_mix - without)} ({lead})")
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
    print(f"{mean(run['cpu_seconds'] for run in RUNS):.1f} s in the mean", file=sys.stderr)
