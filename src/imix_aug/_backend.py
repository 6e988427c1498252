"""Which devices the Triton kernels run on."""

import functools
import importlib.util

import torch


def runs_triton(device: torch.device) -> bool:
    """Tell whether the device is a card with the matrix units that the kernels are made for, and Triton installed."""
    return device.type == "cuda" and _has_triton() and _capability(device) >= (8, 0)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
