"""A progress bar where somebody watches, and a few lines where nobody does."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from runner.ranks import is_main


class Progress:
    """A bar with loss, rate and time left on a terminal; else a line for every tenth of the way."""

    def __init__(self, title: str, *, total: int, start: int = 0) -> None:
        self.title, self.total, self.step = title, total, start
        self.first, self.started = start, time.monotonic()
        self.bar = (
            tqdm(total=total, initial=start, desc=title, unit="step", dynamic_ncols=True)
            if sys.stderr.isatty() and is_main()
            else None
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def advance(self, loss: float | None) -> None:
        """Count one step; ``loss`` is the mean of the last finished epoch."""
        self.step += 1
        if self.bar is not None:
            if loss is not None:
                self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            self.bar.update()
        elif is_main() and self.step * 10 // self.total != (self.step - 1) * 10 // self.total:
            rate = (self.step - self.first) / max(time.monotonic() - self.started, 1e-9)
            left = (self.total - self.step) / rate
            last_loss = "" if loss is None else f"  loss {loss:.3f}"
            line = f"{self.title}  step {self.step}/{self.total}{last_loss}  {rate:.1f} steps/s  {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)
