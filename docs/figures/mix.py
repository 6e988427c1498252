"""Draw what i-Mix does to a batch: `python docs/figures/mix.py`."""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from style import INKS, OWN, PARTNER, REST, save

from imix_aug import IMix


def draw(ink: str) -> plt.Figure:
    """Rows of a batch, their partners, the mixed rows and their virtual labels."""
    digits = load_digits()
    rows = [int((digits.target == digit).argmax()) for digit in (3, 0, 4)]
    x = torch.tensor(digits.images[rows] / 16, dtype=torch.float32).unsqueeze(1)
    x = torch.nn.functional.interpolate(x, size=40, mode="bicubic").clamp(0, 1)
    mixed, labels = IMix(alpha=1.0, generator=torch.Generator().manual_seed(32))(x)

    figure, axes = plt.subplots(
        len(x), 6, figsize=(7.4, 3.6), width_ratios=[1, 0.3, 1, 0.3, 1, 2], layout="constrained"
    )
    for i, (own, plus, partner, equals, result, bars) in enumerate(axes):
        j, lam = int(labels.partner[i]), float(labels.lam[i])
        for axis, image in ((own, x[i]), (partner, x[j]), (result, mixed[i])):
            axis.imshow(image[0], cmap="gray_r" if ink == INKS["light"] else "gray", vmin=0, vmax=1)
        for axis, text in ((plus, "+"), (equals, "=")):
            axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=16, transform=axis.transAxes)
        for axis in (own, plus, partner, equals, result):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        for axis, color, share in ((own, OWN, lam), (partner, PARTNER, 1 - lam)):
            axis.spines[:].set(visible=True, color=color, linewidth=2)
            axis.set_ylabel(f"{share:.2f} x", color=color, rotation=0, ha="right", va="center")
        colors = [OWN if k == i else PARTNER if k == j else REST for k in range(len(x))]
        bars.bar(range(len(x)), labels.dense()[i], color=colors, width=0.6)
        bars.set(ylim=(0, 1), yticks=[0, 1], xticks=range(len(x)), xticklabels=[f"key {k + 1}" for k in range(len(x))])
    for axis, title in zip(axes[0][[0, 2, 4, 5]], ("row", "partner", "mixed row", "its virtual label"), strict=True):
        axis.set_title(title, fontsize=10)
    return figure


if __name__ == "__main__":
    save("mix", draw)
