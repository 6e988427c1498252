"""Manifold i-Mix: mix what a hidden layer says instead of the input."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from imix_aug import IMix, VirtualLabels
from runner.errors import Refused


@contextlib.contextmanager
def mixing_at(layer: nn.Module, imix: IMix, views: int, unmixed: int = 0) -> Iterator[list[VirtualLabels]]:
    """Mix the output of ``layer`` while this lasts, and append the labels to the list that it yields.

    The batch holds ``views`` views of the same rows, one after the other, that are mixed alike, and after them as many
    rows as ``unmixed`` says that stay as they are.
    """
    labels: list[VirtualLabels] = []

    def mix(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        mixed, drawn = mix_views(output[: len(output) - unmixed], imix, views)
        labels.append(drawn)
        return torch.cat([mixed, output[len(output) - unmixed :]]) if unmixed else mixed

    handle = layer.register_forward_hook(mix)
    try:
        yield labels
    finally:
        handle.remove()


def mix_views(x: Tensor, imix: IMix, views: int) -> tuple[Tensor, VirtualLabels]:
    """Mix views that lie one after the other in a batch, all with the same partners and lambdas."""
    if views == 1:
        return imix(x)
    mixed, labels = imix(x.chunk(views))
    return torch.cat(mixed), labels


def find_layer(encoder: nn.Module, name: str) -> nn.Module:
    """Find a layer by the name it has in ``encoder.named_modules()``."""
    try:
        return encoder.get_submodule(name)
    except AttributeError:
        known = ", ".join(child for child, _ in encoder.named_children())
        raise Refused(f"--mix-at {name}: no such layer; the encoder has {known} (and what lies inside them)") from None
