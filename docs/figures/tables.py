"""Draw on how many tables which features are ahead of which, and print their figures: `python docs/figures/tables.py`.

The numbers come from `tables.json` and `tables_moco.json`, each the `report.json` of `examples/reproduce.py tables`.
"""

import json
import sys
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
from style import save

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from runner.many_tables import ARMS, DEVELOPMENT, JOINED, METRICS, PAIRS, RAW
from runner.report.wins import Cell, accuracies, compare, draw_matrix_on, gains, means, seeds_of

METHODS = {"tables": "N-pair", "tables-moco": "MoCo"}  # by the name of the pictures
GAINS = (
    *(("i-Mix", "none"), ("dropout + i-Mix", "dropout"), ("SCARF + i-Mix", "SCARF"), ("i-Mix", RAW)),
    (JOINED, RAW),
)


def cells_of(name: str) -> list[Cell]:
    """What was found on the tables that chose nothing."""
    path = Path(__file__).with_name(f"{name.replace('-', '_')}.json")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["table"] not in DEVELOPMENT]


def draw(name: str, ink: str) -> plt.Figure:
    """The win matrix of the linear probe."""
    figure, cells = plt.figure(figsize=(8.2, 6.4), layout="constrained"), cells_of(name)
    title = f"{METHODS[name]} on tables, linear probe, {seeds_of(cells)}"
    draw_matrix_on(figure, title, means(cells, "probe_accuracy", ARMS), ARMS)
    return figure


def page(name: str) -> str:
    """Accuracies, sign tests over the tables, and the gains with their intervals over the seeds, in Markdown."""
    parts, cells = [METHODS[name]], cells_of(name)
    for metric, (title, arms) in METRICS.items():
        found = means(cells, metric, arms)
        if not found:
            continue
        pairs = [pair for pair in PAIRS if set(pair) <= set(arms)]
        parts += [f"{title}, {seeds_of(cells)}", accuracies(found, arms)]
        parts.append("\n".join(f"- {compare(found, *pair)}" for pair in pairs))
    parts.append(gains(cells, "probe_accuracy", GAINS))
    return "\n\n".join(parts)


if __name__ == "__main__":
    for name in METHODS:
        print(page(name))
        save(name, partial(draw, name))
