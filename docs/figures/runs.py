"""The runs behind the pages: JSON files beside these scripts, a run a line, accuracies in percent."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean

HERE = Path(__file__).parent
Run = dict


def load_runs(name: str) -> list[Run]:
    """All runs of a file; none where it is yet to be made."""
    path = HERE / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def save_runs(name: str, runs: Iterable[Run]) -> None:
    """Write them in this order."""
    lines = ",\n".join(map(json.dumps, runs))
    (HERE / f"{name}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def by_seed(runs: Iterable[Run], metric: str, **key: object) -> dict[int, float]:
    """What was measured in the runs that have all of ``key``, seed by seed."""
    return {run["seed"]: run[metric] for run in runs if key.items() <= run.items()}


def changes(run: Run) -> dict[str, str]:
    """The options that ``--change`` set."""
    return dict(word.split("=") for word in run["change"].split(", ")) if run["change"] else {}


def means_of_pairs(without: Mapping[int, float], with_mix: Mapping[int, float]) -> tuple[float, float]:
    """The mean of each over the seeds that both have."""
    both = without.keys() & with_mix.keys()
    return mean(without[seed] for seed in both), mean(with_mix[seed] for seed in both)
