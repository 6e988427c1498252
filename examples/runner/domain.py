"""What a domain (tables, images, speech) brings to the training loop that all share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from runner.data.dataset import Dataset
from runner.data.files import Change
from runner.settings import Settings


@dataclass(frozen=True)
class Task:
    """A data set on its device, and how to learn from it."""

    data: Dataset
    to_input: nn.Module  # rows of the data to what the network sees
    build_encoder: Callable[[], nn.Module]  # with new weights each time
    augmented: Callable[[Tensor], Tensor]  # rows of the data to one view of them, an input of the network
    raw_name: str  # what the input is called beside the features
    pictures: bool = True  # network inputs are images or spectrograms, which one can look at
    changed: Change | None = None  # one image to one view of it, where the data are files


class Domain(Protocol):
    """Tables, images or speech: its own options, loader, recipes and task."""

    name: str
    description: str
    data_help: str
    named: tuple[str, ...]  # the data sets that have a name
    augmentations: tuple[str, ...]
    settings: type[Settings]

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the options that no other domain has."""

    def load(self, given: Mapping[str, Any]) -> Dataset:
        """Load what the command line names."""

    def recipe(self, data_name: str, device: torch.device) -> dict[str, Any]:
        """What the command line leaves open, for this data set."""

    def task(self, settings: Settings, data: Dataset) -> Task:
        """Make ready to train on data that lie on their device."""
