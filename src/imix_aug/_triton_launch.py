# mypy: disable-error-code="import-untyped"
"""What every Triton launch here needs: the tensor's device made current, and a tile that the card can hold."""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor
from triton.runtime import OutOfResources

from imix_aug import _backend

Tile = TypeVar("Tile")
Result = TypeVar("Result")

_fitting: dict[tuple[object, ...], int] = {}


def first_that_fits(launch: Callable[[Tile], Result], tiles: Sequence[Tile], *key: object) -> Result:
    """Launch with the first tile whose shared memory the card has, and remember it for this key.

    Triton finds out when it loads a kernel, before anything has run.
    """
    for choice in range(_fitting.get(key, 0), len(tiles)):
        try:
            result = launch(tiles[choice])
        except OutOfResources:
            if choice + 1 == len(tiles):
                raise
        else:
            _fitting[key] = choice
            return result
    raise AssertionError("there is at least one tile")


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's device the one that Triton launches on."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def multiprocessors(device: torch.device) -> int:
    """Return how many programs it takes to occupy the card once; under Triton's interpreter one does."""
    return _multiprocessors(device) if device.type == "cuda" else 1


@functools.lru_cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def capability(device: torch.device) -> tuple[int, int]:
    """Return the card's compute capability; what the interpreter runs stands for Hopper."""
    return _backend.capability(device) if device.type == "cuda" else (9, 0)
