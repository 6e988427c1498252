"""Draw on how many tables which features are ahead of which, and print their figures: `python docs/figures/tables.py`.

The numbers come from `tables.json`, the `report.json` of `examples/reproduce.py tables`.
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from style import save

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from runner.many_tables import ARMS, DEVELOPMENT, JOINED, METRICS, PAIRS, RAW
from runner.report.wins import accuracies, compare, draw_matrix_on, gains, means, seeds_of

REPORT = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
GAINS = (("i-Mix", "none"), ("SCARF + i-Mix", "SCARF"), ("i-Mix", RAW), (JOINED, RAW))
CELLS = [cell for cell in REPORT["cells"] if cell["table"] not in DEVELOPMENT]


def draw(ink: str) -> plt.Figure:
    """The win matrix of the linear probe."""
    figure = plt.figure(figsize=(7.2, 5.6), layout="constrained")
    draw_matrix_on(
        figure, f"{REPORT['title']}, linear probe, {seeds_of(CELLS)}", means(CELLS, "probe_accuracy", ARMS), ARMS
    )
    return figure


def page() -> str:
    """Accuracies, sign tests over the tables, and the gains with their intervals over the seeds, in Markdown."""
    parts = []
    for metric, (name, arms) in METRICS.items():
        found = means(CELLS, metric, arms)
        pairs = [pair for pair in PAIRS if set(pair) <= set(arms)]
        parts += [f"{name}, {seeds_of(CELLS)}", accuracies(found, arms)]
        parts.append("\n".join(f"- {compare(found, *pair)}" for pair in pairs))
    parts.append(gains(CELLS, "probe_accuracy", GAINS))
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(page())
    save("tables", draw)
