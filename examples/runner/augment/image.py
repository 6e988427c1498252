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

    def __init__(self, *, flip: bool = True, least_area: float = 0.2) -> None:
        self.flip, self.least_area = flip, least_area

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        x = crop_and_flip(x, self.least_area, self.flip, generator)
        if x.shape[1] == 3:
            x = jitter_colours(x, generator)
        return x


def crop_and_flip(x: Tensor, least_area: float, flip: bool, generator: torch.Generator | None) -> Tensor:
    """Cut ``least_area`` to all of each image, sides from 3:4 to 4:3, and scale it back; mirror every other one."""
    n, _, height, width = x.shape

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, device=x.device, generator=generator)

    area, ratio = draw(least_area, 1.0), draw(-1.0, 1.0).mul(math.log(4 / 3)).exp()
    w, h = (area * ratio).sqrt().clamp(max=1.0), (area / ratio).sqrt().clamp(max=1.0)
    left, top = draw(-1.0, 1.0) * (1 - w), draw(-1.0, 1.0) * (1 - h)
    mirror = torch.where(draw(0.0, 1.0) < 0.5, -1.0, 1.0) if flip else torch.ones_like(w)
    # grid_sample reads output pixel (u, v) from (w u + left, h v + top), all in [-1, 1].
    v, u = torch.meshgrid(_centres(height, x), _centres(width, x), indexing="ij")
    across = (w * mirror)[:, None, None] * u + left[:, None, None]
    down = h[:, None, None] * v + top[:, None, None]
    return F.grid_sample(x, torch.stack([across, down], -1), padding_mode="reflection", align_corners=False)


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
    """Brightness, contrast and saturation by 0.4, hue by 0.1 on four images in five; one in five turns grey."""
    n = len(x)

    def draw(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(n, device=x.device, generator=generator))[:, None, None, None]

    def blend(image: Tensor, other: Tensor, share: Tensor) -> Tensor:
        return (share * image + (1 - share) * other).clamp(0, 1)

    jittered = (x * draw(0.6, 1.4)).clamp(0, 1)
    jittered = blend(jittered, luminance(jittered).mean((2, 3), keepdim=True), draw(0.6, 1.4))
    jittered = blend(jittered, luminance(jittered), draw(0.6, 1.4))
    jittered = rotate_hue(jittered, draw(-0.1, 0.1)).clamp(0, 1)
    x = torch.where(draw(0.0, 1.0) < 0.8, jittered, x)
    return torch.where(draw(0.0, 1.0) < 0.2, luminance(x), x)


def luminance(x: Tensor) -> Tensor:
    """ITU-R 601's brightness, (N, 1, H, W)."""
    return (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def rotate_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the colours about the grey axis; linear, and so a fraction of the cost of going through HSV."""
    angle = 2 * math.pi * turns.flatten()
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    axis = x.new_tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    rotation = cos * torch.eye(3, device=x.device) + sin * axis + (1 - cos) / 3
    return (rotation @ x.flatten(2)).view_as(x)


def _centres(pixels: int, like: Tensor) -> Tensor:
    return (torch.arange(pixels, device=like.device, dtype=like.dtype) * 2 + 1) / pixels - 1
