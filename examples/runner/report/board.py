"""TensorBoard: the scalars of a run while it trains, and the pictures as soon as they are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from runner.ranks import is_main


class Board:
    """Write to a folder for ``tensorboard --logdir``; unless it is ``on``, nothing is written."""

    def __init__(self, folder: Path, *, on: bool) -> None:
        self.writer = None
        if on and is_main():
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            self.writer = SummaryWriter(str(folder))

    def scalars(self, step: int, **values: float) -> None:
        """Add one point to each curve."""
        if self.writer is None:
            return
        for name, value in values.items():
            self.writer.add_scalar(name.replace("_", " "), value, step)
        self.writer.flush()

    def picture(self, path: Path, step: int = 0) -> None:
        """Show a PNG file."""
        if self.writer is None:
            return
        self.writer.add_image(path.stem, np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")
        self.writer.flush()
