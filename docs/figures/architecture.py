"""Draw the house: `python docs/figures/architecture.py`."""

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch
from style import OWN, PARTNER, REST, save

# (x, y, width, text, color), on a grid of 12 columns; the top floor is what users import.
BOXES = [
    (0, 3, 3.8, "IMix, InputMix", OWN),
    (4.1, 3, 3.8, "imix_*_loss, IMixLoss", OWN),
    (8.2, 3, 1.9, "VirtualLabels", OWN),
    (10.3, 3, 1.9, "NegativeQueue", OWN),
    (0, 2, 3.8, "_draw: partners, lambdas, boxes", REST),
    (4.1, 2, 3.8, "logsumexp - <query, target>", REST),
    (8.2, 2, 4, "_distributed: keys of all ranks", REST),
    (4.1, 1, 8.1, "_ops: row log-sum-exp, one operator, its gradients", PARTNER),
    (4.1, 0, 2.5, "reference: the oracle", REST),
    (6.9, 0, 2.5, "blocked: every device", REST),
    (9.7, 0, 2.5, "triton: CUDA", REST),
]
ARROWS = [(1.9, 3, 2), (6, 3, 2), (10.2, 2, 1), (6, 2, 1), (5.35, 1, 0), (8.15, 1, 0), (10.95, 1, 0)]


def draw(ink: str) -> plt.Figure:
    """Boxes, and arrows from what calls to what is called."""
    figure, axis = plt.subplots(figsize=(7.4, 3), layout="constrained")
    for x, y, width, text, color in BOXES:
        style = "round,pad=0,rounding_size=0.12"
        axis.add_patch(FancyBboxPatch((x, y), width, 0.6, boxstyle=style, fc=color + "33", ec=color))
        axis.text(x + width / 2, y + 0.3, text, ha="center", va="center", fontsize=7.5)
    for x, top, bottom in ARROWS:
        axis.annotate("", (x, bottom + 0.6), (x, top), arrowprops={"arrowstyle": "->", "color": ink, "lw": 0.8})
    axis.set(xlim=(-0.1, 12.3), ylim=(-0.1, 3.7))
    axis.axis("off")
    return figure


if __name__ == "__main__":
    save("architecture", draw)
