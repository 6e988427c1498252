"""SimCLR's augmentation on whole batches, wherever they live: every image of a batch is changed its own way.

Crop, flip and colours, as the paper trains on CIFAR, in a handful of tensor operations and no loop over images.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class SimCLRAugment:
    """Random resized crop, horizontal flip, colour jitter, greyscale: float images (N, C, H, W) in [0, 1]."""

    def __init__(self, *, flip: bool = True, least_area: float = 0.2, colours: bool = True) -> None:
        self.flip, self.least_area, self.colours = flip, least_area, colours

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        x = crop_and_flip(x, self.least_area, self.flip, generator)
        if self.colours and x.shape[1] == 3:
            x = jitter_colours(x, generator)
        return x


def crop_and_flip(x: Tensor, least_area: float, flip: bool, generator: torch.Generator | None) -> Tensor:
    """Cut ``least_area`` to all of each square image, sides from 3:4 to 4:3, and scale it back; mirror every other one.

    As torchvision's ``RandomResizedCrop``: what does not fit into the image is drawn again, ten times, so that large
    areas come up less often (the mean is 0.55 of the image, for a least area of 0.2); after that all of it is taken.
    """
    n, _, height, width = x.shape

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, device=x.device, generator=generator)

    area = height * width * (least_area + (1 - least_area) * draw(10, n))
    ratio = ((2 * draw(10, n) - 1) * math.log(4 / 3)).exp()
    w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(0, keepdim=True)
    found = fits.any(0)
    w, h = w.gather(0, first)[0].where(found, width), h.gather(0, first)[0].where(found, height)
    left, top = (draw(n) * (width - w + 1)).floor(), (draw(n) * (height - h + 1)).floor()
    mirrored = draw(n) < (0.5 if flip else 0.0)
    across, down = _read_from(left, w, width), _read_from(top, h, height)
    across = torch.where(mirrored[:, None], across.flip(1), across)
    # grid_sample counts from -1 to 1 between the outer edges of the first and the last pixel.
    across, down = (2 * across + 1) / width - 1, (2 * down + 1) / height - 1
    grid = torch.stack([across[:, None, :].expand(n, height, width), down[:, :, None].expand(n, height, width)], -1)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _read_from(start: Tensor, length: Tensor, pixels: int) -> Tensor:
    """The places (N, pixels) from which to read, so that ``length`` pixels from ``start`` on fill all; none outside."""
    places = (torch.arange(pixels, device=start.device) + 0.5) / pixels * length[:, None] - 0.5
    return start[:, None] + places.clamp(min=0).minimum(length[:, None] - 1)


def crop_padded_and_flip(x: Tensor, padding: int = 4) -> Tensor:
    """Shift each image by up to ``padding`` pixels either way, black coming in, and mirror every other one."""
    n, _, height, width = x.shape
    padded = F.pad(x, [padding] * 4)
    top, left = torch.randint(2 * padding + 1, (2, n), device=x.device)
    rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    mirrored = (torch.rand(n, device=x.device) < 0.5)[:, None]
    columns = torch.where(mirrored, columns.flip(0), columns)
    image, row, column = torch.arange(n, device=x.device), top[:, None] + rows, left[:, None] + columns
    return padded.transpose(1, 0)[:, image[:, None, None], row[:, :, None], column[:, None, :]].transpose(1, 0)


def jitter_colours(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Brightness, contrast and saturation by 0.4, hue by 0.1 on four images in five; one in five turns grey.

    Each image has its changes in an order of its own.
    """
    n = len(x)

    def draw(low: float, high: float, count: int = n) -> Tensor:
        return (low + (high - low) * torch.rand(count, device=x.device, generator=generator))[:, None, None, None]

    amounts = [draw(0.6, 1.4), draw(0.6, 1.4), draw(0.6, 1.4), draw(-0.1, 0.1)]
    order = torch.rand(n, 4, device=x.device, generator=generator).argsort(1)
    order[draw(0.0, 1.0).flatten() >= 0.8] = len(amounts)  # no change at all
    jittered = x.clone()
    for place in range(4):
        for number, (change, amount) in enumerate(zip(CHANGES, amounts, strict=True)):
            rows = (order[:, place] == number).nonzero().flatten()
            jittered[rows] = change(jittered[rows], amount[rows])
    return torch.where(draw(0.0, 1.0) < 0.2, luminance(jittered), jittered)


def brighten(x: Tensor, amount: Tensor) -> Tensor:
    """Multiply all values."""
    return (amount * x).clamp(0, 1)


def contrast(x: Tensor, amount: Tensor) -> Tensor:
    """Blend with the mean brightness of the image."""
    return (amount * x + (1 - amount) * luminance(x).mean((2, 3), keepdim=True)).clamp(0, 1)


def saturate(x: Tensor, amount: Tensor) -> Tensor:
    """Blend with the grey image."""
    return (amount * x + (1 - amount) * luminance(x)).clamp(0, 1)


def rotate_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of HSV; value and saturation stay."""
    value, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = value - least
    red, green, blue = x.split(1, 1)
    divisor = chroma.where(chroma > 0, 1)
    hue = torch.where(value == red, (green - blue) / divisor, 2 + (blue - red) / divisor)
    hue = torch.where((value == blue) & (value != red) & (value != green), 4 + (red - green) / divisor, hue)
    place = (x.new_tensor([5, 3, 1])[:, None, None] + hue + 6 * turns).remainder(6)
    return value - chroma * torch.minimum(place, 4 - place).clamp(0, 1)


CHANGES = (brighten, contrast, saturate, rotate_hue)


def luminance(x: Tensor) -> Tensor:
    """ITU-R 601's brightness, (N, 1, H, W)."""
    return (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
