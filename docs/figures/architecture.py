"""Draw the house: `python docs/figures/architecture.py`."""

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch
from style import OWN, PARTNER, REST, save

# (x, y, width, text, color); the top floor is what users import.
BOXES = [
    (0, 3, 4.2, "IMix\nInputMix", OWN),
    (4.4, 3, 2.3, "Virtual\nLabels", OWN),
    (6.9, 3, 2.3, "imix_*\n_loss", OWN),
    (9.4, 3, 1.7, "IMix\nLoss", OWN),
    (11.3, 3, 2.1, "Negative\nQueue", OWN),
    (0, 2, 2, "_mixing\ndraw", REST),
    (2.2, 2, 2, "_mixing\noperators", PARTNER),
    (6.9, 2, 3.3, "_contrast\npositives, left out", REST),
    (10.4, 2, 3, "_keys\nown, all ranks'", REST),
    (3.6, 1, 3.1, "plain: a batch\non the CPU", PARTNER),
    (6.9, 1, 6.5, "_cross_entropy: positives weighed\nagainst a sweep over the rest", PARTNER),
    (6.9, 0, 3.3, "blocked\nevery device", PARTNER),
    (10.4, 0, 3, "triton\nCUDA", PARTNER),
]
ARROWS = [  # from what calls, to what is called
    ((1, 3), (1, 2.66)),
    ((3.2, 3), (3.2, 2.66)),
    ((8.05, 3), (8.05, 2.66)),
    ((7.1, 3), (5.3, 1.66)),
    ((12.35, 3), (12.35, 2.66)),
    ((10.2, 2.33), (10.4, 2.33)),
    ((11.9, 2), (11.9, 1.66)),
    ((8.55, 1), (8.55, 0.66)),
    ((11.9, 1), (11.9, 0.66)),
]


def draw(ink: str) -> plt.Figure:
    """Boxes, and arrows from what calls to what is called."""
    figure, axis = plt.subplots(figsize=(5.6, 2.9), layout="constrained")
    for x, y, width, text, color in BOXES:
        style = "round,pad=0,rounding_size=0.12"
        axis.add_patch(FancyBboxPatch((x, y), width, 0.66, boxstyle=style, fc=color + "33", ec=color))
        axis.text(x + width / 2, y + 0.33, text, ha="center", va="center", fontsize=8.5)
    for start, end in ARROWS:
        arrow = {"arrowstyle": "->", "color": ink, "lw": 0.8, "shrinkA": 0, "shrinkB": 0}
        axis.annotate("", end, start, arrowprops=arrow)
    axis.set(xlim=(-0.1, 13.5), ylim=(-0.1, 3.75))
    axis.axis("off")
    return figure


if __name__ == "__main__":
    save("architecture", draw)
