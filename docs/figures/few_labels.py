"""Draw how accurate each way is with few labels, and print its figures: `python docs/figures/few_labels.py`.

The numbers come from `few_labels.json`, the `report.json` of `examples/reproduce.py tables --labels ...`.
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from style import save

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from runner.few_labels import ARMS
from runner.many_tables import DEVELOPMENT
from runner.report.shares import averages, draw_shares_on, duels, leads
from runner.report.wins import means, seeds_of

REPORT = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
LEADS = (
    *(("i-Mix, probe", other) for other in ("raw columns", "gradient boosting", "untrained, probe", "none, probe")),
    ("i-Mix, fine-tuned", "from scratch"),
)
DUELS = (
    *LEADS[:-1],
    ("none, probe", "untrained, probe"),
    *(("i-Mix, fine-tuned", other) for other in ("from scratch", "none, fine-tuned")),
    ("none, fine-tuned", "from scratch"),
)
CELLS = [cell for cell in REPORT["cells"] if cell["table"] not in DEVELOPMENT]
FOUND = {share: means(CELLS, str(share), ARMS) for share in REPORT["recipe"]["labels"]}


def draw(ink: str) -> plt.Figure:
    """The mean over the tables against the share of the labels."""
    figure = plt.figure(figsize=(6.4, 4.0), layout="constrained")
    draw_shares_on(figure, f"Mean of {len(min(FOUND.values(), key=len))} tables, {seeds_of(CELLS)}", FOUND, ARMS)
    return figure


def page() -> str:
    """Means over the tables, sign tests over them, and the leads on each, in Markdown."""
    parts = [seeds_of(CELLS), averages(FOUND, ARMS), duels(FOUND, DUELS), leads(FOUND, LEADS, REPORT["tables"])]
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(page())
    save("few-labels", draw)
