"""Open what a run has left behind: its encoder, the data it was trained on or others, and how to feed it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch
from torch import nn

from runner.domain import Domain, Task
from runner.domains.image import IMAGES
from runner.domains.speech import SPEECH
from runner.domains.tabular import TABULAR
from runner.errors import Refused
from runner.settings import CIRCUMSTANCES, Settings
from runner.state.checkpoint import read_checkpoint

DOMAINS: dict[str, Domain] = {domain.name: domain for domain in (TABULAR, SPEECH, IMAGES)}


def open_run(
    checkpoint: Path,
    device: torch.device,
    *,
    data: str | None = None,
    label: str | None = None,
    root: str | None = None,
) -> tuple[nn.Module, Task]:
    """Return the encoder with its weights, and the data with what makes network inputs of them.

    ``data``: other data than it was trained on, with their own ``label``; ``root``: where downloads are kept.
    """
    state = read_checkpoint(checkpoint)
    config = dict(state["config"])
    if data is not None:
        config.update(data=data, label=label)
    elif label is not None:
        config["label"] = label
    domain = DOMAINS[config["domain"]]
    dataset = domain.load({**config, "data_root": root})
    task = domain.task(_as_settings(domain, config, device), dataset.to(device))
    task.to_input.load_state_dict(state["parts"]["input"])
    encoder = task.build_encoder()
    weights = state["parts"]["method"]
    try:
        encoder.load_state_dict(
            {key.removeprefix("encoder."): w for key, w in weights.items() if key.startswith("encoder.")}
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise Refused(f"{checkpoint}: the encoder does not take inputs such as {dataset.name}'s ({reason})") from error
    return encoder.to(device).eval(), task


def _as_settings(domain: Domain, config: dict, device: torch.device) -> Settings:
    names = {field.name for field in fields(domain.settings)}
    circumstances = dict.fromkeys(CIRCUMSTANCES)
    return domain.settings(**{**circumstances, **{k: v for k, v in config.items() if k in names}, "device": device})
