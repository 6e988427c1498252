"""Whether what was read has the form that it should have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def check_form(name: str, found: Any, wanted: Any) -> None:
    """Compare with something of the right form, all the way down: keys, types, shapes; numbers must be finite.

    An empty mapping or sequence in ``wanted`` leaves its contents open.
    """
    if isinstance(wanted, Mapping):
        if not isinstance(found, Mapping):
            raise ValueError(f"{name} is a {type(found).__name__}")
        if wanted and found.keys() != wanted.keys():
            odd = sorted(map(str, found.keys() ^ wanted.keys()))
            raise ValueError(f"{name} has other parts, such as {odd[0]!r}")
        for key in wanted:
            check_form(f"{name}.{key}", found[key], wanted[key])
    elif isinstance(wanted, Tensor):
        if not isinstance(found, Tensor) or found.shape != wanted.shape or found.dtype != wanted.dtype:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{name} is {shape}, and wanted is {tuple(wanted.shape)}")
        if not torch.isfinite(found).all():
            raise ValueError(f"{name} holds NaN or infinite values")
    elif isinstance(wanted, bool) or wanted is None or isinstance(wanted, str):
        if type(found) is not type(wanted):
            raise ValueError(f"{name} is {found!r}")
    elif isinstance(wanted, (int, float)):
        number(name, found)
    elif isinstance(wanted, (list, tuple)):
        if not isinstance(found, (list, tuple)) or (wanted and len(found) != len(wanted)):
            raise ValueError(f"{name} is {found!r}")
        for i, one in enumerate(wanted):
            check_form(f"{name}[{i}]", found[i], one)


def number(name: str, found: Any, *, least: float = 0, most: float = math.inf, whole: bool = False) -> Any:
    """Return a finite number within its bounds, or say that it is none."""
    kinds = int if whole else (int, float)
    if isinstance(found, bool) or not isinstance(found, kinds) or not math.isfinite(found):
        raise ValueError(f"{name} is {str(found)[:40]}")
    if not least <= found <= most:
        raise ValueError(f"{name} is {found}")
    return found
