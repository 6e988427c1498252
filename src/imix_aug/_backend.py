"""Which implementation computes on a device: Triton's kernels or plain torch, and why."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

Result = TypeVar("Result")

BACKENDS = ("auto", "torch", "triton")
VARIABLE = "IMIX_AUG_BACKEND"

_chosen: str | None = None
_failure: str | None = None


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose what computes losses and mixtures on CUDA, for the whole process, while the block runs.

    The environment variable ``IMIX_AUG_BACKEND`` does the same from outside; ``python -m imix_aug`` says what each
    device gets. A loss does not remember it: a backward pass after the block uses what is chosen by then.

    Args:
        name: "auto": Triton's kernels where they serve, and plain torch once a kernel failed to compile. "torch": plain
            torch everywhere. "triton": the kernels wherever they can run, and an error where one fails.

    Raises:
        ValueError: another name.

    Example:
        >>> import torch
        >>> from imix_aug import imix_nce_loss, use_backend
        >>> with use_backend("torch"):
        ...     loss = imix_nce_loss(torch.randn(8, 4), torch.randn(8, 4), temperature=0.2)
    """
    global _chosen
    if name not in BACKENDS:
        raise ValueError(f"name must be one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def chosen() -> str:
    """Return the backend that was asked for."""
    name = _chosen or os.environ.get(VARIABLE) or "auto"
    if name not in BACKENDS:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


def runs_triton(device: torch.device) -> bool:
    """Tell whether the kernels run on the device."""
    return device.type == "cuda" and why_not_triton(device) is None


def why_not_triton(device: torch.device) -> str | None:
    """Return why plain torch computes on the device, or None where the kernels do."""
    if device.type != "cuda":
        return "only CUDA has kernels"
    if torch.version.hip is not None:
        return "the kernels are made for NVIDIA's matrix units, and this torch is built for ROCm"
    name = chosen()
    if name == "torch":
        return f'"torch" was chosen, by use_backend or {VARIABLE}'
    if (error := _import_error()) is not None:
        return f"Triton cannot be imported: {error}"
    if capability(device) < (8, 0):
        return "the kernels need compute capability 8.0 or higher"
    if _failure is not None and name == "auto":
        return f"a kernel failed before: {_failure}"
    return None


def with_kernels(device: torch.device, kernels: Callable[[], Result], plain: Callable[[], Result]) -> Result:
    """Compute with the kernels where they run, else in plain torch; warn once where they ought to and do not.

    What a machine lacks (a C compiler, Python's headers, a Triton that knows the card) shows at the first launch.
    """
    global _failure
    if not runs_triton(device):
        return plain()
    if chosen() == "triton":
        return kernels()
    try:
        return kernels()
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        if "CUDA error" in str(error):  # The card is lost, and plain torch would fail there too.
            raise
        _failure = _one_line(error)
        warnings.warn(
            f"imix_aug's Triton kernels fail here and plain torch takes their place: {_failure}. "
            f"Set {VARIABLE}=torch to choose it from the start, or =triton to see the error.",
            RuntimeWarning,
            stacklevel=2,
        )
        return plain()


@functools.cache
def _import_error() -> str | None:
    """Try the import: a Triton that is found may still lack what it imports."""
    try:
        import triton  # type: ignore[import-untyped]
        import triton.language  # type: ignore[import-untyped]  # noqa: F401
    except ModuleNotFoundError as error:
        return "it is not installed" if error.name == "triton" else _one_line(error)
    except Exception as error:
        return _one_line(error)
    return None


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """Return a card's compute capability, asked once."""
    return torch.cuda.get_device_capability(device)
