"""The networks: an MLP for tables, a small CNN for small images, torchvision's ResNets for everything else."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class TabularMLP(nn.Module):
    """The paper's five layers (32w, 32w, 64w, 64w, 128w units), maxout over four neighbours on the last.

    Columns of several kinds (``groups``) first go through a linear layer of 64 units per kind, whatever the width, and
    lie side by side from then on. ``first`` puts a normalised layer of so many units before all others.
    """

    PER_KIND = 64

    def __init__(self, groups: tuple[int, ...], width: int = 4, *, first: int | None = None) -> None:
        super().__init__()
        self.groups = list(groups)
        kinds = groups if len(groups) > 1 else ()
        self.kinds = nn.ModuleList(nn.Linear(columns, self.PER_KIND) for columns in kinds)
        inputs = self.PER_KIND * len(kinds) or sum(groups)
        self.first = normalised_layer(inputs, first) if first else nn.Identity()
        sizes = [first or inputs, 32 * width, 32 * width, 64 * width, 64 * width]
        self.layer1, self.layer2, self.layer3, self.layer4 = (normalised_layer(n, m) for n, m in pairwise(sizes))
        self.layer5 = nn.Linear(sizes[-1], 128 * width)
        self.features = 32 * width

    def forward(self, x: Tensor) -> Tensor:
        if self.kinds:
            parts = x.split(self.groups, dim=1)
            x = torch.cat([layer(part) for layer, part in zip(self.kinds, parts, strict=True)], dim=1)
        hidden = self.layer4(self.layer3(self.layer2(self.layer1(self.first(x)))))
        return self.layer5(hidden).unflatten(1, (-1, 4)).amax(2)


def normalised_layer(inputs: int, outputs: int) -> nn.Sequential:
    """A linear layer, whose bias batch normalisation would take away again, and its ReLU."""
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU())


class SmallCNN(nn.Module):
    """Four convolutions, three poolings: trains on two CPU cores. ``width`` is the channels of the first."""

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        sizes = [channels, width, 2 * width, 4 * width, 8 * width]
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(nn.Conv2d(n, m, 3, padding=1, bias=False), nn.BatchNorm2d(m), nn.ReLU())
            for n, m in pairwise(sizes)
        )
        self.pool = nn.MaxPool2d(2)
        self.features = sizes[-1]

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.layer1(x))
        x = self.pool(self.layer2(x))
        x = self.pool(self.layer3(x))
        return self.layer4(x).mean((2, 3))


class SmallResNet(nn.Module):
    """A convolution of stride 2 and three stages of residual blocks: ``width``, twice and four times the channels.

    With one, two or three ``blocks`` per stage this is the ResNet-8, -14 or -20 of the CIFAR family.
    """

    def __init__(self, channels: int, width: int = 16, blocks: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.layer1 = stage(width, width, stride=1, blocks=blocks)
        self.layer2 = stage(width, 2 * width, stride=2, blocks=blocks)
        self.layer3 = stage(2 * width, 4 * width, stride=2, blocks=blocks)
        self.features = 4 * width

    def forward(self, x: Tensor) -> Tensor:
        return self.layer3(self.layer2(self.layer1(self.stem(x)))).mean((2, 3))


def stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    """Residual blocks one after the other, of which the first changes the shape."""
    first = residual_block(inputs, outputs, stride)
    return nn.Sequential(first, *(residual_block(outputs, outputs, stride=1) for _ in range(blocks - 1)))


def residual_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    """torchvision's basic block, with a 1 x 1 convolution beside it where the shape changes."""
    from torchvision.models.resnet import BasicBlock

    if stride == 1 and inputs == outputs:
        return BasicBlock(inputs, outputs)
    beside = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
    return BasicBlock(inputs, outputs, stride, beside)


def build_resnet(name: str, channels: int, *, small_images: bool) -> nn.Module:
    """Build a torchvision ResNet without its classifier; small images get the CIFAR stem (3 x 3, no pooling)."""
    import torchvision

    net = getattr(torchvision.models, name)(weights=None)
    net.features = net.fc.in_features
    net.fc = nn.Identity()
    if small_images:
        net.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
    elif channels != 3:
        net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")  # as all other convolutions
    return net


BLOCKS = {"resnet8": 1, "resnet14": 2, "resnet20": 3}  # per stage of the small ResNets
SMALL = ("cnn", *BLOCKS)  # what ``--width`` is for


def build_encoder(arch: str, channels: int, size: int, width: int) -> nn.Module:
    """Build one of the small networks, or a ResNet by torchvision's name, for square inputs of ``size`` pixels."""
    if arch == "cnn":
        return SmallCNN(channels, width)
    if arch in BLOCKS:
        return SmallResNet(channels, width, BLOCKS[arch])
    return build_resnet(arch, channels, small_images=size <= 64)


# Where a head normalises: nowhere, after its hidden layer, or after both.
NORMS = {"none": (False, False), "hidden": (True, False), "both": (True, True)}


def head(inputs: int, hidden: int, outputs: int, norm: str = "hidden") -> nn.Sequential:
    """A projection or prediction head: two layers, with batch normalisation as ``NORMS`` names it."""
    between, last = NORMS[norm]
    layers = [nn.Linear(inputs, hidden, bias=not between), nn.BatchNorm1d(hidden) if between else None, nn.ReLU()]
    layers += [nn.Linear(hidden, outputs, bias=not last), nn.BatchNorm1d(outputs) if last else None]
    return nn.Sequential(*(layer for layer in layers if layer is not None))
