"""Pretrain on images, with and without i-Mix, and compare what the features are worth.

python examples/image.py                                # scikit-learn's digits, a minute or two
python examples/image.py --data cifar10                 # downloaded once
python examples/image.py --data FOLDER                  # FOLDER/train/CLASS/*.png, FOLDER/test/CLASS/*.png
"""

from __future__ import annotations

import argparse

import torch
from common.cli import build_parser, complete, one_line_errors, pick_device, whole
from common.dataset import Dataset, reduce
from common.distributed import is_main, join_ranks, main_first, spread
from common.encoders import build_encoder
from common.evaluate import evaluate
from common.image_augment import SimCLRAugment
from common.image_data import Normalize, load_image
from common.loop import Loop
from common.methods import build_method
from common.mixed import save_mixed, some_of
from common.pace import Pace
from common.recipe import autocast, build_inputmix, build_mix, build_optimizer
from common.results import Results
from torch import nn

ARCHITECTURES = ("cnn", "resnet18", "resnet34", "resnet50", "resnet101")
RECIPES = {
    "digits": {"epochs": 40, "arch": "cnn", "width": 16},
    "other": {"epochs": 100, "width": 32},
}


def pretrain(
    args: argparse.Namespace, data: Dataset, to_input: nn.Module, mix: str, seed: int
) -> tuple[nn.Module, Pace]:
    """Train one encoder from scratch; return it and how fast that went."""
    torch.manual_seed(seed)
    _, channels, _, size = data.train_x.shape
    encoder = build_encoder(args.arch, channels, size, args.width)
    method = build_method(args, encoder)
    imix, inputmix = build_mix(mix, args.alpha), build_inputmix(args.inputmix)
    # A mirrored digit is no digit; a mirrored cat is a cat.
    augment = SimCLRAugment(flip=data.name != "digits") if args.augment == "default" else nn.Identity()

    optimizer, schedule = build_optimizer(args, method, len(data.train_x))
    parts = {"method": method, "optimizer": optimizer, "schedule": schedule, "input": to_input}
    train = spread(method, args, seed)
    loop = Loop(args, mix, seed, rows=len(data.train_x), parts=parts)
    if imix is not None and args.mix_at is None:
        save_mixed(loop, imix, to_input(some_of(data.train_x)))
    for rows in loop:
        x = data.train_x[rows].float() / 255
        view_1, view_2 = (inputmix(to_input(augment(x))) for _ in range(2))
        with autocast(args):
            loss = train(view_1, view_2, imix, data.train_y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        method.after_step()
        loop.record(loss)
    return encoder, loop.pace


def main(argv: list[str] | None = None) -> None:
    """Train with each mix and seed, and report."""
    parser = build_parser(
        "image",
        description="Contrastive pretraining on images, with and without i-Mix.",
        data="digits",
        data_help="digits, cifar10, cifar100, or a folder with train/CLASS/IMAGE and test/CLASS/IMAGE",
    )
    parser.add_argument("--arch", choices=ARCHITECTURES, help="encoder (default: cnn on a CPU, else resnet18)")
    parser.add_argument("--image-size", type=whole(1), metavar="PIXELS", help="scale a folder's images to this size")
    args = parser.parse_args(argv)
    with one_line_errors():
        join_ranks(args)
        with main_first():
            data = load_image(args.data, root=args.data_root, size=args.image_size)
        recipe = {"arch": "cnn" if pick_device(args.device).type == "cpu" else "resnet18"}
        args = complete(args, {**recipe, **RECIPES.get(data.name, RECIPES["other"])}, data)
        data = data.to(args.device)
        to_input = Normalize(data.train_x).to(args.device)
        shown = reduce(data, args.data_fraction, args.class_fraction)
        results = Results(args, data.name)
        for mix in args.mix:
            for seed in range(args.seeds):
                encoder, pace = pretrain(args, shown, to_input, mix, seed)
                if is_main():
                    results.add(mix, seed, evaluate(encoder, data, to_input), pace)
        if is_main():
            results.finish()


if __name__ == "__main__":
    main()
