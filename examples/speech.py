"""Pretrain on spoken words, with and without i-Mix, and compare what the features are worth.

python examples/speech.py                               # synthesised digits, a few minutes
python examples/speech.py --data speechcommands         # downloaded once, 2.3 GB
python examples/speech.py --data FOLDER                 # FOLDER/WORD/*.wav, of any length and sampling rate
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from common.audio import LogMel
from common.audio_augment import AudioAugment, Stretch
from common.cli import build_parser, complete, one_line_errors, pick_device
from common.dataset import reduce
from common.distributed import is_main, join_ranks, main_first, spread
from common.encoders import build_encoder
from common.evaluate import evaluate
from common.loop import Loop
from common.methods import build_method
from common.mixed import save_mixed, some_of
from common.pace import Pace
from common.recipe import autocast, build_inputmix, build_mix, build_optimizer
from common.results import Results
from common.speech_data import SpeechDataset, load_speech
from torch import Tensor, nn

ARCHITECTURES = ("cnn", "resnet8", "resnet18", "resnet34", "resnet50", "resnet101")
RECIPES = {
    "digits": {"epochs": 15, "seeds": 1},
    "other": {"epochs": 100},
}


def pretrain(
    args: argparse.Namespace, data: SpeechDataset, to_input: nn.Module, mix: str, seed: int
) -> tuple[nn.Module, Pace]:
    """Train one encoder from scratch; return it and how fast that went."""
    torch.manual_seed(seed)
    encoder = build_encoder(args.arch, channels=1, size=32, width=args.width)
    method = build_method(args, encoder)
    imix, inputmix = build_mix(mix, args.alpha), build_inputmix(args.inputmix)
    augment, stretch = nn.Identity(), nn.Identity()
    if args.augment == "default":
        augment, stretch = AudioAugment(data.noise).to(args.device), Stretch()

    optimizer, schedule = build_optimizer(args, method, len(data.train_x))
    parts = {"method": method, "optimizer": optimizer, "schedule": schedule}
    train = spread(method, args, seed)
    loop = Loop(args, mix, seed, rows=len(data.train_x), parts=parts)
    if imix is not None and args.mix_at is None:
        save_mixed(loop, imix, to_input(some_of(data.train_x)))
    for rows in loop:
        x = data.train_x[rows]
        view_1, view_2 = (inputmix(stretch(to_input(augment(x)))) for _ in range(2))
        with autocast(args):
            loss = train(view_1, view_2, imix, data.train_y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        method.after_step()
        loop.record(loss)
    return encoder, loop.pace


def spectrograms(clips: Tensor, to_input: nn.Module) -> Tensor:
    """What the network sees of many clips, a few at a time."""
    return torch.cat([to_input(some) for some in clips.split(1024)])


def main(argv: list[str] | None = None) -> None:
    """Train with each mix and seed, and report."""
    parser = build_parser(
        "speech",
        description="Contrastive pretraining on spoken words, with and without i-Mix.",
        data="digits",
        data_help="digits, speechcommands, a folder with WORD/CLIP.wav, or a .tar.gz of one",
    )
    parser.add_argument("--arch", choices=ARCHITECTURES, help="encoder (default: cnn on a CPU, else resnet18)")
    args = parser.parse_args(argv)
    with one_line_errors():
        join_ranks(args)
        with main_first():
            data = load_speech(args.data, root=args.data_root)
        recipe = {
            "arch": "cnn" if pick_device(args.device).type == "cpu" else "resnet18",
            "temperature": 0.5,
            "width": 16,
        }
        args = complete(args, {**recipe, **RECIPES.get(data.name, RECIPES["other"])}, data)
        data, to_input = data.to(args.device), LogMel().to(args.device)
        if args.augment == "none":  # then no spectrogram ever changes, and each is made once
            data = replace(
                data, train_x=spectrograms(data.train_x, to_input), test_x=spectrograms(data.test_x, to_input)
            )
            to_input = nn.Identity()
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
