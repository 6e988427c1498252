"""The command line that all domains share, and what of it would do nothing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.encoders import NORMS, SMALL
from runner.errors import Refused
from runner.evaluate import PROBES
from runner.methods import METHODS

MIXES = ("none", "mixup", "cutmix")


def build_parser(
    domain: str, *, description: str, data_help: str, augmentations: Sequence[str]
) -> argparse.ArgumentParser:
    """The options every domain has; a domain adds its own to them."""
    parser = argparse.ArgumentParser(prog=f"{domain}.py", description=description)
    option = parser.add_argument
    option("--data", default="digits", help=f"{data_help} (default: digits)")
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
        "--lambda-per",
        choices=("row", "batch"),
        help="draw a lambda for each row, or one for the batch (default: row for mixup, batch for cutmix)",
    )
    option(
        "--augment",
        default="default",
        choices=augmentations,
        help="the domain's augmentation, another of its own, or none at all",
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
        type=share,
        metavar="P",
        help="pretrain on this share of each class; the probe sees all rows",
    )
    option("--class-fraction", type=share, metavar="P", help="pretrain on the first classes alone; the probe sees all")
    option(
        "--pretrain-rows",
        type=whole(2),
        metavar="N",
        help="pretrain on N training rows, drawn once (default: all); the probe sees all",
    )
    option(
        "--probe-rows",
        type=whole(2),
        metavar="N",
        help="probe and nearest neighbours take N training and N test rows, drawn once (default: all)",
    )
    option(
        "--milestones",
        nargs="+",
        type=whole(1),
        metavar="EPOCH",
        help="divide the rate by ten there (default: cosine)",
    )
    option("--projection-bn", choices=tuple(NORMS), help="batch normalisation in the projection (default: hidden)")
    option("--prediction-bn", choices=tuple(NORMS), help="BYOL, SimSiam: in the predictor (default: hidden)")
    option(
        "--probe",
        default="logistic",
        choices=PROBES,
        help="logistic (default), or sgd: the paper's, whose rate is chosen on the test rows",
    )
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
    option(
        "--controls",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also judge the raw input and the untrained network (default)",
    )
    return parser


def add_saved_options(parser: argparse.ArgumentParser) -> None:
    """The options by which a script says which saved encoder and which data."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint.pt of a run")
    parser.add_argument("--data", help="as for the script that trained it (default: what it was trained on)")
    parser.add_argument("--data-root", metavar="DIR", help="where downloads are kept")
    parser.add_argument("--label", metavar="COLUMN", help="the column that holds the class, for a table of your own")
    parser.add_argument("--drop", nargs="+", metavar="COLUMN", help="columns of a table of your own to leave out")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default: auto)")


def refuse_unused(given: Mapping[str, Any], named: tuple[str, ...]) -> None:
    """Refuse an option that this run would not look at: whoever gave it expects something of it.

    ``named`` are the data sets that have a name, and bring their own labels and sizes.
    """
    method, unmixed = given["method"], given["mix"] == ["none"]
    unused = {
        "width": given.get("arch") not in (None, *SMALL) and f"{given['arch']} has one width",
        "temperature": method in ("byol", "simsiam") and f"{method} has none",
        "queue": method != "moco" and f"{method} has none",
        "momentum": method not in ("moco", "byol") and f"{method} keeps no moving average",
        "alpha": unmixed and "--mix none draws no lambda",
        "lambda_per": unmixed and "--mix none draws no lambda",
        "prediction_bn": method not in ("byol", "simsiam") and f"{method} has no predictor",
        "mix_at": unmixed and "--mix none mixes nowhere",
        "dropout": given["augment"] != "default" and f"--augment {given['augment']} drops nothing",
        "dropout_columns": given["augment"] != "default" and f"--augment {given['augment']} drops nothing",
        "corruption": given["augment"] != "scarf" and f"--augment {given['augment']} corrupts nothing",
        "drop": given["data"] in named and f"{given['data']} has only columns to train on",
        "label": given["data"] in named and f"{given['data']} brings its own",
        "image_size": given["data"] in named and f"{given['data']} has its own",
    }
    for key, reason in unused.items():
        if reason and given.get(key) is not None:
            raise Refused(f"--{key.replace('_', '-')} {given[key]}: {reason}")


def whole(least: int):
    """Parse an option that is a whole number, and no less than this."""

    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value

    parse.__name__ = "whole number"
    return parse


def share(text: str) -> float:
    """Parse an option that is a share, above 0 and no more than 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1")
    return value


share.__name__ = "share"


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


_positive.__name__ = "number"
