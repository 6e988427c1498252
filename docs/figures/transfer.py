"""Print the tables of few labels and of transfer: `python docs/figures/transfer.py`.

The runs come from `transfer.json`, which `gather.py` collects.
"""

import sys
from pathlib import Path
from statistics import mean

from runs import by_seed, load_runs

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from runner.report.paired import bold_if_sure, paired

RUNS = load_runs("transfer")
TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "speechcommands": "spoken commands"}


def found(data: str, share: float, features: str, metric: str) -> dict[int, float]:
    """What was measured, seed by seed, in percent."""
    return by_seed(RUNS, metric, data=data, share=share, features=features)


def table(*, home: bool) -> str:
    """Accuracies and gains, a line for each data set that is probed and each share of its labels."""
    first = "data" if home else "from, to"
    heads = ["labels", "pairs", "untrained", "without", "with i-Mix", "gain", "kNN: without", "with", "gain"]
    rows = [f"| {first} | {' | '.join(heads)} |", "| --- " * (1 + len(heads)) + "|"]
    for data, share in sorted({(run["data"], run["share"]) for run in RUNS}):
        source, _, target = data.partition(" to ")
        if (source == target) != home:
            continue
        labels = {run["labels"] for run in RUNS if (run["data"], run["share"]) == (data, share)}
        name = TITLES[source] if home else f"{TITLES[source]}, {TITLES[target]}"
        cells = [name, f"{100 * share:g} %: {labels.pop():,}"]
        cells.append(str(len(found(data, share, "none", "probe"))))
        cells.append(f"{mean(found(data, share, 'untrained', 'probe').values()):.1f}")
        for metric in ("probe", "knn"):
            without, with_mix = (found(data, share, mix, metric) for mix in ("none", "mixup"))
            cells += [f"{mean(without.values()):.1f}", f"{mean(with_mix.values()):.1f}"]
            cells.append(bold_if_sure(paired(with_mix, without)))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table(home=True), table(home=False), sep="\n\n")
