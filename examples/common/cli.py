"""One command line for all domains; what it leaves open is filled from the recipe of the data set."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from common.checkpoint import CheckpointError
from common.dataset import DataError, Dataset, reduce
from common.distributed import refuse_uneven_batch
from common.encoders import NORMS
from common.experiment import fingerprint
from common.loop import Diverged
from common.methods import METHODS

MIXES = ("none", "mixup", "cutmix")
FEWEST_BATCHES = 4  # that an epoch should have


def build_parser(domain: str, *, description: str, data: str, data_help: str) -> argparse.ArgumentParser:
    """The options every domain has; a script adds its own to them."""
    parser = argparse.ArgumentParser(prog=f"{domain}.py", description=description)
    parser.set_defaults(domain=domain, ranks=1)
    option = parser.add_argument
    option("--data", default=data, help=f"{data_help} (default: {data})")
    option("--data-root", metavar="DIR", help="where downloads are kept (default: the library's own place)")
    option("--method", default="npair", choices=tuple(METHODS), help="what to train with (default: npair)")
    option(
        "--mix", nargs="+", default=["none", "mixup"], choices=MIXES, help="train once with each (default: none mixup)"
    )
    option(
        "--inputmix", type=whole(0), default=0, metavar="K", help="also blend K other rows into every input (InputMix)"
    )
    option("--alpha", type=_positive, help="lambda is drawn from Beta(alpha, alpha)")
    option(
        "--augment", default="default", choices=("none", "default"), help="the domain's augmentation, or none at all"
    )
    option("--epochs", type=whole(1))
    option("--batch-size", type=whole(2), metavar="B")
    option("--seeds", type=whole(1), metavar="S", help="train with the seeds 0 .. S-1")
    option("--temperature", type=_positive)
    option("--lr", type=_positive, help="learning rate for a batch of 256; it scales with the batch (default: 0.125)")
    option("--weight-decay", type=float, metavar="W", help="(default: 1e-4)")
    option("--queue", type=whole(1), metavar="K", help="MoCo: negatives in the queue (default: 4096)")
    option("--momentum", type=float, metavar="M", help="MoCo, BYOL: of the moving average (default: 0.999)")
    option("--width", type=whole(1), metavar="W", help="width of the small networks")
    option("--mix-at", metavar="LAYER", help="mix what this layer of the encoder says, not the input (manifold i-Mix)")
    option("--bn", choices=("sync", "shuffle", "local"), help="batch statistics of several processes (default: local)")
    option(
        "--data-fraction",
        type=_share,
        metavar="P",
        help="pretrain on this share of each class; the probe sees all rows",
    )
    option("--class-fraction", type=_share, metavar="P", help="pretrain on the first classes alone; the probe sees all")
    option(
        "--milestones",
        nargs="+",
        type=whole(1),
        metavar="EPOCH",
        help="divide the rate by ten there (default: cosine)",
    )
    option("--projection-bn", choices=tuple(NORMS), help="batch normalisation in the projection (default: hidden)")
    option("--prediction-bn", choices=tuple(NORMS), help="BYOL, SimSiam: in the predictor (default: hidden)")
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
    "bn": "local",
    "projection_bn": "hidden",
    "prediction_bn": "hidden",
    "data_fraction": 1.0,
    "class_fraction": 1.0,
}


def complete(args: argparse.Namespace, recipe: Mapping[str, Any], data: Dataset) -> argparse.Namespace:
    """Fill what the command line left open, and settle on the device and the folder."""
    refuse_unused({**vars(args), "arch": getattr(args, "arch", None) or recipe.get("arch")})
    rows = len(reduce(data, args.data_fraction or 1.0, args.class_fraction or 1.0).train_x)
    filled = {**COMMON_RECIPE, **recipe}
    while filled["batch_size"] > max(2 * args.ranks, rows // FEWEST_BATCHES):
        filled["batch_size"] //= 2  # few rows: a batch as large as usual would be an epoch, or more than that
    for key, value in filled.items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    args.device = pick_device(args.device)
    args.fingerprint = fingerprint(data)
    if args.out is None:
        name = re.sub(r"[^\w.-]+", "_", data.name)
        args.out = Path("runs") / f"{args.domain}-{name}-{args.method}"
    if args.batch_size > rows:
        raise DataError(f"--batch-size {args.batch_size}: larger than the {rows} training rows of {data.name}")
    refuse_uneven_batch(args)
    own = args.batch_size // args.ranks
    if args.inputmix >= own:
        raise DataError(f"--inputmix {args.inputmix}: wants fewer others than the batch has rows ({own})")
    last = max(args.milestones or [0])
    if last >= args.epochs:
        raise DataError(f"--milestones {last}: wanted epochs before the last of {args.epochs}")
    return args


def refuse_unused(given: Mapping[str, Any]) -> None:
    """Refuse an option that this run would not look at: whoever gave it expects something of it."""
    method, unmixed = given["method"], given["mix"] == ["none"]
    unused = {
        "width": given["arch"] not in (None, "cnn", "resnet8") and f"{given['arch']} has one width",
        "temperature": method in ("byol", "simsiam") and f"{method} has none",
        "queue": method != "moco" and f"{method} has none",
        "momentum": method not in ("moco", "byol") and f"{method} keeps no moving average",
        "alpha": unmixed and "--mix none draws no lambda",
        "prediction_bn": method not in ("byol", "simsiam") and f"{method} has no predictor",
        "mix_at": unmixed and "--mix none mixes nowhere",
        "dropout": given["augment"] == "none" and "--augment none drops nothing",
        "dropout_columns": given["augment"] == "none" and "--augment none drops nothing",
        "label": given["data"] in ("digits", "covtype", "higgs") and f"{given['data']} brings its own",
        "image_size": given["data"] in ("digits", "cifar10", "cifar100") and f"{given['data']} has its own",
    }
    for key, reason in unused.items():
        if reason and given.get(key) is not None:
            raise DataError(f"--{key.replace('_', '-')} {given[key]}: {reason}")


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
        # Under torchrun all processes meet the same error, and one of them says it.
        sys.exit(f"error: {error}" if int(os.environ.get("RANK", "0")) == 0 else 1)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues from the last checkpoint")


def whole(least: int):
    """Parse an option that is a whole number, and no less than this."""

    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value

    parse.__name__ = "whole number"
    return parse


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1")
    return value


_share.__name__ = "share"


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


_positive.__name__ = "number"
