"""Images: SimCLR's augmentation on the device, a small CNN or a ResNet."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from runner.augment.image import SimCLRAugment
from runner.data.dataset import Dataset
from runner.data.files import ImageFiles, middle, simclr_views
from runner.data.image import NAMED, load_image
from runner.domain import Task
from runner.encoders import build_encoder
from runner.errors import Refused
from runner.inputs import Normalize
from runner.options import whole
from runner.settings import Settings

ARCHITECTURES = ("cnn", "resnet18", "resnet34", "resnet50", "resnet101")
RECIPES: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 40, "arch": "cnn", "width": 16},
    "other": {"epochs": 100, "width": 32},
}


@dataclass(frozen=True, kw_only=True)
class ImageSettings(Settings):
    """What only images have."""

    arch: str
    image_size: int | None
    stream: bool | None = None
    workers: int | None = None


class Images:
    """The domain of ``image.py``."""

    name = "image"
    description = "Contrastive pretraining on images, with and without i-Mix."
    data_help = f"{', '.join(NAMED)}, or a folder with CLASS/IMAGE, or train/CLASS/IMAGE and test/CLASS/IMAGE"
    named = NAMED
    augmentations = ("none", "weak", "default")
    settings = ImageSettings

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        option = parser.add_argument
        option("--arch", choices=ARCHITECTURES, help="encoder (default: cnn on a CPU, else resnet18)")
        option("--image-size", type=whole(1), metavar="PIXELS", help="scale a folder's images to this size")
        option(
            "--stream",
            action=argparse.BooleanOptionalAction,
            help="leave a folder's images in their files (default: where memory is short, and ImageNet)",
        )
        option("--workers", type=whole(0), metavar="N", help="processes that read them (default: one per processor)")

    def load(self, given: Mapping[str, Any]) -> Dataset:
        stream, workers = given.get("stream"), given.get("workers")
        data = load_image(
            given["data"], root=given["data_root"], size=given["image_size"], stream=stream, workers=workers
        )
        if not isinstance(data.train_x, ImageFiles) and (stream or workers is not None):
            option = "--stream" if stream else f"--workers {workers}"
            raise Refused(f"{option}: the images of {data.name} are in memory; wanted a folder that is streamed")
        return data

    def recipe(self, data_name: str, device: torch.device) -> dict[str, Any]:
        arch = "cnn" if device.type == "cpu" else "resnet18"
        return {"arch": arch, **RECIPES.get(data_name, RECIPES["other"])}

    def task(self, settings: ImageSettings, data: Dataset) -> Task:
        _, channels, _, size = data.train_x.shape
        streamed = isinstance(data.train_x, ImageFiles)
        to_input = Normalize(data.name, data.train_x).to(settings.device)
        is_changed, colours = settings.augment != "none", settings.augment == "default"
        # A mirrored digit is no digit; a mirrored cat is a cat.
        augment = SimCLRAugment(flip=data.name != "digits", colours=colours) if is_changed else nn.Identity()

        def augmented(pixels: Tensor) -> Tensor:
            return to_input(augment(pixels.float() / 255))

        def build() -> nn.Module:
            return build_encoder(settings.arch, channels, size, settings.width)

        views = (simclr_views(size, colours=colours) if is_changed else middle(size)) if streamed else None
        return Task(data, to_input, build, augmented, raw_name="pixels", changed=views)


IMAGES = Images()
