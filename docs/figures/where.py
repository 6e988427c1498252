"""Draw where i-Mix stands in a training step: `python docs/figures/where.py`."""

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch
from style import OWN, PARTNER, REST, save

TOP, BOTTOM, HEIGHT = 1.7, 0.0, 0.7
# (x, y, width, text, color): the way to the query above, the way to the key below.
BOXES = [
    (0, 0.85, 1.3, "sample", REST),
    (1.9, 0.85, 1.5, "augment", REST),
    (4, TOP, 1.3, "view 1", REST),
    (6, TOP, 1.3, "imix", PARTNER),
    (8, TOP, 1.5, "network", REST),
    (10.2, TOP, 1.3, "query", OWN),
    (4, BOTTOM, 1.3, "view 2", REST),
    (7.6, BOTTOM, 1.9, "network\nor its target", REST),
    (10.2, BOTTOM, 1.3, "key", OWN),
    (12.4, 0.85, 1.3, "loss", OWN),
]
ARROWS = [
    ((1.3, 1.2), (1.9, 1.2)),
    ((3.4, 1.3), (4, 1.95)),
    ((3.4, 1.1), (4, 0.45)),
    ((5.3, 2.05), (6, 2.05)),
    ((7.3, 2.05), (8, 2.05)),
    ((9.5, 2.05), (10.2, 2.05)),
    ((5.3, 0.35), (7.6, 0.35)),
    ((9.5, 0.35), (10.2, 0.35)),
    ((11.5, 1.95), (12.4, 1.35)),
    ((11.5, 0.45), (12.4, 1.05)),
]


def draw(ink: str) -> plt.Figure:
    """Boxes, arrows, and the labels' own way from imix to the loss."""
    figure, axis = plt.subplots(figsize=(7.4, 1.9), layout="constrained")
    for x, y, width, text, color in BOXES:
        style = "round,pad=0,rounding_size=0.12"
        axis.add_patch(FancyBboxPatch((x, y), width, HEIGHT, boxstyle=style, fc=color + "33", ec=color))
        axis.text(x + width / 2, y + HEIGHT / 2, text, ha="center", va="center", fontsize=9)
    arrow = {"arrowstyle": "->", "color": ink, "lw": 0.8, "shrinkA": 0, "shrinkB": 0}
    for start, end in ARROWS:
        axis.annotate("", end, start, arrowprops=arrow)
    axis.plot([6.65, 6.65], [TOP, 1.2], color=ink, lw=0.8)
    axis.annotate("", (12.4, 1.2), (6.65, 1.2), arrowprops=arrow)
    for x, y, text, color in (
        (7.3, 1.02, "labels", ink),
        (8.8, 2.55, "queries are mixed", PARTNER),
        (6.45, 0.03, "keys never", REST),
    ):
        axis.text(x, y, text, ha="center", va="center", fontsize=9, color=color)
    axis.set(xlim=(-0.1, 13.8), ylim=(-0.1, 2.75))
    axis.axis("off")
    return figure


if __name__ == "__main__":
    save("where", draw)
