"""Speech: log-mel spectrograms of augmented clips, seen by the networks for images."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from runner.augment.audio import AudioAugment, Stretch
from runner.augment.commands import CommandsAugment
from runner.data.speech import NAMED, SpeechDataset, load_speech
from runner.domain import Task
from runner.encoders import SMALL, build_encoder
from runner.errors import Refused
from runner.inputs import Decibels, LogMel
from runner.settings import Settings

ARCHITECTURES = (*SMALL, "resnet18", "resnet34", "resnet50", "resnet101")
RECIPES: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 15, "seeds": 1},
    "other": {"epochs": 100},
}


@dataclass(frozen=True, kw_only=True)
class SpeechSettings(Settings):
    """What only speech has."""

    arch: str
    words: str | None = None


class Speech:
    """The domain of ``speech.py``."""

    name = "speech"
    description = "Contrastive pretraining on spoken words, with and without i-Mix."
    data_help = "digits, speechcommands, a folder with WORD/CLIP (WAV, FLAC, OGG, MP3), or a .tar.gz of one"
    named = NAMED
    augmentations = ("none", "default")
    settings = SpeechSettings

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        option = parser.add_argument
        option("--arch", choices=ARCHITECTURES, help="encoder (default: cnn on a CPU, else resnet18)")
        option(
            "--words",
            choices=("all", "twelve"),
            help="each word is a class, or the paper's twelve of Speech Commands, with its input and augmentation "
            "(default: twelve for speechcommands, else all)",
        )

    def load(self, given: Mapping[str, Any]) -> SpeechDataset:
        return load_speech(given["data"], root=given["data_root"], words=given.get("words"))

    def recipe(self, data_name: str, device: torch.device) -> dict[str, Any]:
        arch = "cnn" if device.type == "cpu" else "resnet18"
        return {"arch": arch, "temperature": 0.5, "width": 16, **RECIPES.get(data_name, RECIPES["other"])}

    def task(self, settings: SpeechSettings, data: SpeechDataset) -> Task:
        def build() -> nn.Module:
            return build_encoder(settings.arch, channels=1, size=32, width=settings.width)

        mel = (Decibels if data.twelve else LogMel)().to(settings.device)
        if settings.augment == "none":  # then no spectrogram ever changes, and each is made once
            seen = {name: spectrograms(getattr(data, name), mel) for name in ("train_x", "test_x")}
            return Task(replace(data, **seen), nn.Identity(), build, augmented=nn.Identity(), raw_name="spectrograms")
        augmented = build_augmentation(data, mel, settings.device)
        return Task(data, mel, build, augmented, raw_name="spectrograms")


def build_augmentation(data: SpeechDataset, mel: LogMel, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What makes spectrograms of changed clips: the paper's chain where the data are the paper's, or one for any."""
    if isinstance(mel, Decibels):
        if data.noise is None:
            raise Refused(f"{data.name}: no _background_noise_ in it, which the paper mixes in; wanted --augment none")
        return CommandsAugment(mel, data.noise).to(device)
    augment, stretch = AudioAugment(data.noise).to(device), Stretch()
    return lambda clips: stretch(mel(augment(clips)))


def spectrograms(clips: Tensor, to_input: nn.Module) -> Tensor:
    """What the network sees of many clips, a few at a time."""
    return torch.cat([to_input(some) for some in clips.split(1024)])


SPEECH = Speech()
