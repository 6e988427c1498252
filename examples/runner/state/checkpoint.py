"""Checkpoints that only their own configuration can continue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from runner.errors import Refused
from runner.ranks import gather, is_main, rank
from runner.state.files import write_atomically


def save_checkpoint(path: Path, config: dict[str, Any], progress: dict[str, Any], parts: dict[str, Any]) -> None:
    """Write the state of every part, the random states of all ranks, and how far the run has come."""
    state = {
        "config": config,
        "progress": progress,
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "random": gather(_random_state()),
    }
    if is_main():
        write_atomically(path, lambda file: torch.save(state, file))


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint: tensors and plain values alone, so that a file from elsewhere cannot run code."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what unpickling raises depends on the bytes that it stumbles over
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refused(f"{path}: not a checkpoint that can be read ({reason})") from error
    if not isinstance(state, dict) or not {"config", "progress", "parts", "random"} <= state.keys():
        raise Refused(f"{path}: not a checkpoint of these examples")
    return state


def load_checkpoint(path: Path, config: dict[str, Any], parts: dict[str, Any]) -> dict[str, Any]:
    """Bring every part and the random states back to where they were; refuse another configuration."""
    state = read_checkpoint(path)
    refuse_differences(path, state["config"], config)
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    own = state["random"][rank()]
    torch.set_rng_state(own["cpu"])
    if torch.cuda.is_available() and own["cuda"] is not None:
        torch.cuda.set_rng_state(own["cuda"])
    return state["progress"]


def refuse_differences(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Say what differs, key by key, where two configurations are not the same."""
    missing = object()
    keys = [key for key in {**saved, **wanted} if saved.get(key, missing) != wanted.get(key, missing)]
    if keys:
        differences = ", ".join(
            f"{key} {saved.get(key, '(none)')} there and {wanted.get(key, '(none)')} here" for key in keys
        )
        raise Refused(f"{path} is of another configuration: {differences}; give another --out, or --no-resume")
