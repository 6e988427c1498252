"""Open what a run has left behind: its encoder, the data it was trained on or others, and how to feed it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runner.data.dataset import Dataset
from runner.domain import Domain, Task
from runner.domains.image import IMAGES
from runner.domains.speech import SPEECH
from runner.domains.tabular import TABULAR
from runner.errors import Refused
from runner.settings import CIRCUMSTANCES, Settings
from runner.state.checkpoint import naming, read_checkpoint
from runner.state.form import check_form

DOMAINS: dict[str, Domain] = {domain.name: domain for domain in (TABULAR, SPEECH, IMAGES)}


def open_run(
    checkpoint: Path,
    device: torch.device,
    *,
    data: str | None = None,
    label: str | None = None,
    drop: Sequence[str] | None = None,
    root: str | None = None,
    load: Callable[[Mapping[str, Any]], Dataset] | None = None,
) -> tuple[nn.Module, Task]:
    """Return the encoder with its weights, and the data with what makes network inputs of them.

    ``data``: other data than it was trained on, with their own ``label`` and columns to ``drop``; ``root``: where
    downloads are kept; ``load``: what reads them, by default as the domain does.
    """
    state = read_checkpoint(checkpoint)
    config = dict(state["config"])
    if data is not None:
        config.update(data=data, label=label, drop=drop, words=None, train_rows=None)
    else:
        config.update({key: value for key, value in {"label": label, "drop": drop}.items() if value is not None})
    with naming(checkpoint):
        domain = DOMAINS[config["domain"]]
        settings = _as_settings(domain, config, device)
    dataset = (load or domain.load)({**config, "data_root": root})
    with naming(checkpoint):
        task = domain.task(settings, dataset.to(device))
        check_form("input", state["parts"]["input"], task.to_input.state_dict())
        task.to_input.load_state_dict(state["parts"]["input"])
        with torch.device("meta"):  # of sizes that are nowhere near, no memory should be asked for
            form = task.build_encoder().state_dict()
    weights = {k.removeprefix("encoder."): w for k, w in state["parts"]["method"].items() if k.startswith("encoder.")}
    try:
        check_form("encoder", weights, form)
        encoder = task.build_encoder()
        encoder.load_state_dict(weights)
    except ValueError as reason:
        raise Refused(f"{checkpoint}: the encoder does not take inputs such as {dataset.name}'s ({reason})") from reason
    return encoder.to(device).eval(), task


def _as_settings(domain: Domain, config: dict, device: torch.device) -> Settings:
    names = {field.name for field in fields(domain.settings)}
    circumstances = dict.fromkeys(CIRCUMSTANCES & names)
    return domain.settings(**{**circumstances, **{k: v for k, v in config.items() if k in names}, "device": device})
