"""Draw on how many tables which features are ahead of which: `python docs/figures/tables.py`.

The numbers come from `tables.json`, the `report.json` of `examples/reproduce.py tables`.
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from style import save

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from runner.many_tables import ARMS, DEVELOPMENT
from runner.report.wins import draw_matrix_on, means, seeds_of

REPORT = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
CELLS = [cell for cell in REPORT["cells"] if cell["table"] not in DEVELOPMENT]


def draw(ink: str) -> plt.Figure:
    """The win matrix of the linear probe."""
    figure = plt.figure(figsize=(7.2, 5.6), layout="constrained")
    draw_matrix_on(
        figure, f"{REPORT['title']}, linear probe, {seeds_of(CELLS)}", means(CELLS, "probe_accuracy", ARMS), ARMS
    )
    return figure


if __name__ == "__main__":
    save("tables", draw)
