"""What one run is: its configuration, its folder, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.settings import Settings


@dataclass(frozen=True)
class Experiment:
    """One of the runs that a command makes: its settings with one mix and one seed."""

    settings: Settings
    mix: str
    seed: int

    @property
    def configuration(self) -> dict[str, Any]:
        """All that decides the outcome, as plain values."""
        return {**self.settings.configuration(), "mix": self.mix, "seed": self.seed}

    @property
    def folder(self) -> Path:
        """Where the run leaves its files."""
        return self.settings.out / "runs" / f"{self.settings.method}-{self.mix}-seed{self.seed}"

    @property
    def checkpoint(self) -> Path:
        """Where the run stands."""
        return self.folder / "checkpoint.pt"

    @property
    def title(self) -> str:
        """What the run is called wherever a person sees it."""
        return f"{self.settings.method} {self.mix} seed {self.seed}"
