"""Open what a run has left behind: its encoder, the data it was trained on or others, and how to feed it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from common.audio import LogMel
from common.checkpoint import read_checkpoint
from common.dataset import DataError, Dataset
from common.encoders import TabularMLP, build_encoder
from common.image_data import Normalize, load_image
from common.speech_data import load_speech
from common.tabular_data import load_tabular


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options by which a script says which encoder and which data."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint.pt of a run")
    parser.add_argument("--data", help="as for the script that trained it (default: what it was trained on)")
    parser.add_argument("--data-root", metavar="DIR", help="where downloads are kept")
    parser.add_argument("--label", metavar="COLUMN", help="the column that holds the class, for a table of your own")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default: auto)")


def open_run(args: argparse.Namespace, device: torch.device) -> tuple[nn.Module, Dataset, Callable[[Tensor], Tensor]]:
    """Return the encoder with its weights, the data, and what makes network inputs of them."""
    state = read_checkpoint(args.checkpoint)
    config, weights = state["config"], state["parts"]["method"]
    name = args.data or config["data"]
    to_input: nn.Module
    if config["domain"] == "tabular":
        data = load_tabular(name, label=args.label or (None if args.data else config["label"]), root=args.data_root)
        encoder, to_input = TabularMLP(data.groups, config["width"]), nn.Identity()
    elif config["domain"] == "image":
        data = load_image(name, root=args.data_root, size=config["image_size"])
        encoder = build_encoder(config["arch"], data.train_x.shape[1], data.train_x.shape[-1], config["width"])
        to_input = Normalize(data.train_x)
        to_input.load_state_dict(state["parts"]["input"])
    else:
        data = load_speech(name, root=args.data_root)
        encoder, to_input = build_encoder(config["arch"], 1, 32, config["width"]), LogMel()
    try:
        encoder.load_state_dict(
            {key.removeprefix("encoder."): w for key, w in weights.items() if key.startswith("encoder.")}
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise DataError(
            f"{args.checkpoint}: the encoder does not take inputs such as {data.name}'s ({reason})"
        ) from error
    return encoder.to(device).eval(), data.to(device), to_input.to(device)
