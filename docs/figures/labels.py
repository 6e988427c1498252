"""Draw the distribution of lambda and the label matrices: `python docs/figures/labels.py`."""

import matplotlib.pyplot as plt
import torch
from style import save

from imix_aug import IMix, VirtualLabels


def draw(ink: str) -> plt.Figure:
    """Histograms of drawn lambdas for three alphas, and the labels of a batch without and with i-Mix."""
    figure, (shares, plain, mixed) = plt.subplots(1, 3, figsize=(7.4, 2.6), layout="constrained")
    for alpha, color in ((0.2, "#54a24b"), (1.0, "#2f7ed8"), (2.0, "#f28f2c")):
        _, labels = IMix(alpha, generator=torch.Generator().manual_seed(0))(torch.zeros(200_000))
        shares.hist(labels.lam, bins=50, range=(0.5, 1), density=True, histtype="step", color=color, label=f"{alpha}")
    shares.set(title="share of a row's own, by alpha", xlabel=r"$\lambda$", ylim=(0, 8), yticks=[])
    shares.legend(loc="upper left")
    _, labels = IMix(generator=torch.Generator().manual_seed(3))(torch.zeros(8))
    matrices = (plain, VirtualLabels.identity(8), "virtual labels, plain"), (mixed, labels, "with i-Mix")
    for axis, each, title in matrices:
        axis.imshow(each.dense(), cmap="Blues", vmin=0, vmax=1)
        axis.set(title=title, xlabel="key", ylabel="query", xticks=[], yticks=[])
    for axis in figure.axes:
        axis.title.set_fontsize(10)
    return figure


if __name__ == "__main__":
    save("labels", draw)
