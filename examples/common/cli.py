"""One command line for all domains; what it leaves open is filled from the recipe of the data set."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from common.checkpoint import CheckpointError
from common.dataset import DataError, Dataset
from common.loop import Diverged
from common.methods import METHODS

MIXES = ("none", "mixup", "cutmix")


def build_parser(domain: str, *, description: str, data: str, data_help: str) -> argparse.ArgumentParser:
    """The options every domain has; a script adds its own to them."""
    parser = argparse.ArgumentParser(prog=f"{domain}.py", description=description)
    parser.set_defaults(domain=domain)
    option = parser.add_argument
    option("--data", default=data, help=f"{data_help} (default: {data})")
    option("--data-root", metavar="DIR", help="where downloads are kept (default: the library's own place)")
    option("--method", default="npair", choices=tuple(METHODS), help="what to train with (default: npair)")
    option(
        "--mix", nargs="+", default=["none", "mixup"], choices=MIXES, help="train once with each (default: none mixup)"
    )
    option(
        "--inputmix", type=_whole(0), default=0, metavar="K", help="also blend K other rows into every input (InputMix)"
    )
    option("--alpha", type=_positive, help="lambda is drawn from Beta(alpha, alpha)")
    option(
        "--augment", default="default", choices=("none", "default"), help="the domain's augmentation, or none at all"
    )
    option("--epochs", type=_whole(1))
    option("--batch-size", type=_whole(2), metavar="B")
    option("--seeds", type=_whole(1), metavar="S", help="train with the seeds 0 .. S-1")
    option("--temperature", type=_positive)
    option("--lr", type=_positive, help="learning rate for a batch of 256; it scales with the batch (default: 0.125)")
    option("--weight-decay", type=float, metavar="W", help="(default: 1e-4)")
    option("--queue", type=_whole(1), metavar="K", help="MoCo: negatives in the queue (default: 4096)")
    option("--momentum", type=float, metavar="M", help="MoCo, BYOL: of the moving average (default: 0.999)")
    option("--width", type=_whole(1), metavar="W", help="width of the small networks")
    option("--mix-at", metavar="LAYER", help="mix what this layer of the encoder says, not the input (manifold i-Mix)")
    option("--amp", choices=("bf16",), help="train in mixed precision")
    option("--compile", action="store_true", help="compile the encoder")
    option("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps ... (default: auto)")
    option("--out", type=Path, metavar="DIR", help=f"where the results go (default: runs/{domain}-DATA-METHOD)")
    option(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="continue from the checkpoints in DIR (default); --no-resume starts over",
    )
    option(
        "--checkpoint-every",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how often a checkpoint is written (default: 60)",
    )
    option("--tensorboard", action="store_true", help="also write loss and learning rate for TensorBoard, run by run")
    return parser


COMMON_RECIPE: dict[str, Any] = {
    "alpha": 1.0,
    "temperature": 0.2,
    "batch_size": 256,
    "seeds": 3,
    "lr": 0.125,
    "weight_decay": 1e-4,
    "queue": 4096,
    "momentum": 0.999,
}


def complete(args: argparse.Namespace, recipe: Mapping[str, Any], data: Dataset) -> argparse.Namespace:
    """Fill what the command line left open, and settle on the device and the folder."""
    for key, value in {**COMMON_RECIPE, **recipe}.items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    args.device = pick_device(args.device)
    if args.out is None:
        name = re.sub(r"[^\w.-]+", "_", data.name)
        args.out = Path("runs") / f"{args.domain}-{name}-{args.method}"
    if args.batch_size > len(data.train_x):
        raise DataError(
            f"--batch-size {args.batch_size}: larger than the {len(data.train_x)} training rows of {data.name}"
        )
    if args.inputmix >= args.batch_size:
        raise DataError(f"--inputmix {args.inputmix}: wants fewer others than the batch has rows ({args.batch_size})")
    return args


def pick_device(name: str) -> torch.device:
    """Turn ``auto`` into the accelerator that is there, and refuse one that is not."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End with one clear line, not a traceback, where the input is at fault and not the program."""
    try:
        yield
    except (DataError, Diverged, CheckpointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues from the last checkpoint")


def _whole(least: int):
    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value

    parse.__name__ = "whole number"
    return parse


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


_positive.__name__ = "number"
