"""What saved encoders are worth on data that they were not trained on, and with few of the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from runner.controls import untrained_encoder
from runner.data.dataset import Dataset, draw_labels, keep_rows, thin
from runner.evaluate import evaluate
from runner.state.checkpoint import read_checkpoint
from runner.state.saved import DOMAINS, open_run


class SavedRuns:
    """Runs of one domain, judged on the same data, which are read once."""

    def __init__(self, domain: str, data: str, root: str | None, device: torch.device) -> None:
        self._domain, self._name, self._root, self._device = domain, data, root, device
        self._data: Dataset | None = None

    def judge(
        self, checkpoint: Path, shares: Sequence[float], seed: int, probe: str, *, trained: bool = True
    ) -> list[dict[str, Any]]:
        """Judge one run, or its network before training, with each share of the labels."""
        encoder, task = open_run(checkpoint, self._device, data=self._name, root=self._root, load=self._load)
        config = read_checkpoint(checkpoint)["config"]
        if not trained:
            encoder = untrained_encoder(task, seed, min(config["batch_size"], len(task.data.train_y)), self._device)
        found = []
        for share in shares:
            data = labelled(task.data, share, seed, config.get("probe_rows"))
            metrics = evaluate(encoder, data, task.to_input, probe)
            found.append({"seed": seed, "labels": len(data.train_y), "metrics": metrics})
        return found

    def _load(self, config: Mapping[str, Any]) -> Dataset:
        if self._data is None:
            self._data = DOMAINS[self._domain].load(config)
        return self._data


def labelled(data: Dataset, share: float, seed: int, most: int | None) -> Dataset:
    """Keep this share of the labels of each class, drawn by the seed, and at most so many training and test rows."""
    if share < 1:
        data = keep_rows(data, draw_labels(data.train_y, share, seed))
    return thin(data, most) if most else data
