"""Checkpoints that only their own configuration can continue, and that are read with suspicion."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from runner.errors import Refused
from runner.pace import Pace
from runner.ranks import gather, is_main, rank
from runner.state.files import write_tensors
from runner.state.form import check_form, number

FORMAT = 2  # count up when what a checkpoint holds changes


def save_checkpoint(path: Path, config: dict[str, Any], progress: dict[str, Any], parts: dict[str, Any]) -> None:
    """Write the state of every part, the random states of all ranks, and how far the run has come."""
    state = {
        "format": FORMAT,
        "config": config,
        "progress": progress,
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "random": gather(_random_state()),
    }
    if is_main():
        write_tensors(path, state)


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint: tensors and plain values alone, so that a file from elsewhere cannot run code."""
    with naming(path):
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not {"config", "progress", "parts", "random"} <= state.keys():
            raise ValueError("it holds something else")
        if state.get("format") != FORMAT:
            raise ValueError(f"it is of version {state.get('format', 1)}, and wanted is {FORMAT}")
        _check_progress(state["progress"])
        check_form("config", state["config"], {})
        for name in ("method", "optimizer", "schedule", "input"):
            check_form(name, state["parts"][name], {})
    return state


def load_checkpoint(path: Path, config: dict[str, Any], parts: dict[str, Any], steps_per_epoch: int) -> dict[str, Any]:
    """Bring every part and the random states back to where they were; refuse another configuration."""
    state = read_checkpoint(path)
    refuse_differences(path, state["config"], config)
    progress, saved = state["progress"], state["parts"]
    with naming(path):
        epochs, steps = divmod(progress["step"], steps_per_epoch)
        total = config["epochs"] * steps_per_epoch
        if progress["steps"] != total:
            raise ValueError(f"it counts {progress['steps']} steps, and the run has {total}")
        if len(progress["losses"]) != epochs or progress["epoch_loss"][1] != steps:
            raise ValueError(f"its losses do not go with its step {progress['step']}")
        for name in ("method", "input"):
            check_form(name, saved[name], parts[name].state_dict())
        _check_optimizer(saved["optimizer"], parts["optimizer"])
        check_form("schedule", saved["schedule"], parts["schedule"].state_dict())
        if saved["schedule"]["last_epoch"] != progress["step"]:
            raise ValueError("its learning rate is of another step")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        own = state["random"][rank()]
        torch.set_rng_state(own["cpu"])
        if torch.cuda.is_available() and own["cuda"] is not None:
            torch.cuda.set_rng_state(own["cuda"])
    return progress


def refuse_differences(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Say what differs, key by key, where two configurations are not the same.

    An option that one of them does not know is no difference as long as the other does not use it.
    """

    def text(values: dict[str, Any], key: str) -> str:
        return str(values.get(key, "(none)"))[:80]

    keys = [key for key in {**saved, **wanted} if (saved.get(key) or None) != (wanted.get(key) or None)]
    if keys:
        differences = ", ".join(f"{key} {text(saved, key)} there and {text(wanted, key)} here" for key in keys)
        raise Refused(f"{path} is of another configuration: {differences}; give another --out, or --no-resume")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn whatever a file raises that is not what it should be into one line that names it."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:  # what unpickling raises depends on the bytes that it stumbles over
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise Refused(f"{path}: damaged, incomplete or of another version ({reason})") from error


def _check_progress(progress: dict[str, Any]) -> None:
    step, steps = number("step", progress["step"], whole=True), number("steps", progress["steps"], whole=True)
    if step > steps:
        raise ValueError(f"step {step} of {steps}")
    total, count = progress["epoch_loss"]
    number("epoch_loss", count, whole=True)
    for loss in (total, *progress["losses"]):
        number("loss", loss, least=-math.inf)
    for name in Pace.KEPT:
        number(name, progress["pace"][name])


def _check_optimizer(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    changing = ("lr",)
    groups = [{k: v for k, v in group.items() if k not in changing} for group in saved["param_groups"]]
    wanted = [{k: v for k, v in group.items() if k not in changing} for group in optimizer.state_dict()["param_groups"]]
    if groups != wanted:
        raise ValueError("its optimizer has other settings")
    for group in saved["param_groups"]:
        number("lr", group["lr"])
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, kept in saved["state"].items():
        check_form("optimizer", kept, dict.fromkeys(kept, trained[index].detach()))
