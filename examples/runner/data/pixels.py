"""One image file to RGB pixels, whatever its depth; many to one tensor."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from runner.errors import Refused

DEEP = {"I", "I;16", "I;16B", "I;16L", "I;16N", "F"}  # Pillow's modes of more than 8 bits
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # refused below, in one line


def open_image(path: Path) -> Image.Image:
    """Open a file, upright; its pixels are read later."""
    try:
        image = Image.open(path)
        width, height = image.size
        if width * height > Image.MAX_IMAGE_PIXELS:
            raise Refused(f"{path}: {width} x {height} pixels, more than is safe to unpack; scale it down first")
        return ImageOps.exif_transpose(image)
    except (Refused, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise Refused(f"{path}: more pixels than is safe to unpack; scale it down first ({error})") from error
    except Exception as error:  # what a decoder raises depends on the bytes that it stumbles over
        raise Refused(f"{path}: not an image that can be read ({error})") from error


def range_of_deep(paths: Sequence[Path]) -> tuple[float, float] | None:
    """The least and the greatest value of all 16-bit, 32-bit and floating-point images, None where there is none."""

    def extremes(path: Path) -> tuple[float, float] | None:
        image = open_image(path)
        if image.mode not in DEEP:
            return None
        values = np.asarray(image)
        if not np.isfinite(values).all():
            raise Refused(f"{path}: holds NaN or infinite values")
        return float(values.min()), float(values.max())

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = [pair for pair in pool.map(extremes, paths) if pair is not None]
    return (min(low for low, _ in found), max(high for _, high in found)) if found else None


def open_rgb(path: Path, deep: tuple[float, float] | None) -> Image.Image:
    """Read an image in colour, upright; deep values are scaled from their range."""
    image = open_image(path)
    if image.mode in DEEP and deep is None:
        raise Refused(f"{path}: holds more than 8 bits per pixel, and the images looked at first do not")
    try:
        if image.mode in DEEP:
            low, high = deep
            values = (np.asarray(image, dtype=np.float64) - low) * (255 / max(high - low, 1e-12))
            image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
        return image.convert("RGB")
    except Exception as error:
        raise Refused(f"{path}: not an image that can be read ({error})") from error


def read_pixels(path: Path, size: int, deep: tuple[float, float] | None) -> Tensor:
    """Read an image as (3, size, size) bytes, cut to a centred square."""
    image = ImageOps.fit(open_rgb(path, deep), (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def read_all(paths: Sequence[Path], size: int, deep: tuple[float, float] | None) -> Tensor:
    """Read images into one tensor (N, 3, size, size)."""
    images = torch.empty((len(paths), 3, size, size), dtype=torch.uint8)

    def read(row: int) -> None:
        images[row] = read_pixels(paths[row], size, deep)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        quick = len(paths) <= 5000  # read before one could look at a bar
        for _ in tqdm(pool.map(read, range(len(paths))), total=len(paths), desc="reading", disable=quick or None):
            pass
    return images
