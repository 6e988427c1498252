"""A sheet of mixed inputs with their lambdas, so that one sees what the network is shown."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from imix_aug import IMix
from runner.ranks import is_main
from runner.report.board import Board
from runner.report.plots import save_figure

ROWS = 8


def some_of(x: Tensor) -> Tensor:
    """A few rows from all over: folders are read class by class."""
    return x[torch.linspace(0, len(x) - 1, ROWS).long()]


@torch.no_grad()
def save_mixed(path: Path, imix: IMix, inputs: Tensor, board: Board) -> None:
    """Draw inputs, their partners and what becomes of both."""
    if not is_main() or path.exists():
        return
    with torch.random.fork_rng():  # the run itself must not notice
        mixed, labels = imix(inputs)
    rows = {"input": inputs, "partner": inputs[labels.partner], "mixed": mixed}
    low, high = inputs.amin(), inputs.amax()
    figure = Figure(figsize=(1.2 * len(inputs), 4.2), layout="constrained")
    for i, (name, pictures) in enumerate(rows.items()):
        for j, picture in enumerate(((pictures - low) / (high - low).clamp(min=1e-6)).cpu()):
            axes = figure.add_subplot(len(rows), len(inputs), i * len(inputs) + j + 1)
            if len(picture) == 3:
                axes.imshow(picture.permute(1, 2, 0))
            else:  # one channel: ink on paper, or a spectrogram with time to the right
                axes.imshow(picture[0], cmap="magma", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            if j == 0:
                axes.set_ylabel(name)
            if name == "mixed":
                axes.set_xlabel(f"lambda {labels.lam[j].item():.2f}")
    save_figure(figure, path)
    board.picture(path)
