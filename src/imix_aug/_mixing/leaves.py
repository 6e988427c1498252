"""The tensors of a batch: which are to be mixed, and refusals that name the one that is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from imix_aug._values import unusual

_BLENDED = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)
Keys = tuple[str | int, ...]


def flatten(x: Any) -> tuple[list[Any], pytree.TreeSpec]:
    """Return the leaves of a batch, and what puts them together again."""
    return pytree.tree_flatten(x, is_leaf=_is_whole)


def chosen(x: Any, only: Keys | None, skip: Keys | None) -> list[bool]:
    """Tell for each leaf whether it is to be mixed: those under a key of ``only``, or under none of ``skip``."""
    argument, keys = ("only", only) if only is not None else ("skip", skip or ())
    paths = [[_key(step) for step in path] for path, _ in _with_paths(x)]
    present = dict.fromkeys(key for path in paths for key in path)
    for key in keys:
        if key not in present:
            raise ValueError(f"{argument} must name keys of x, got {key!r}, x has {', '.join(map(repr, present))}")
    return [any(key in keys for key in path) == (only is not None) for path in paths]


def tensors(x: Any, flat: Sequence[Any], mixed: Sequence[bool] | None = None) -> list[Tensor]:
    """Return the leaves to be mixed: dense tensors that share N and the device."""
    numbers = [index for index in range(len(flat)) if mixed is None or mixed[index]]
    if not numbers:
        raise ValueError(f"x must hold at least one tensor to mix, got {_description(x)}")
    for index in numbers:
        leaf = flat[index]
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"{_name(x, index)} must be a tensor (N, ...), or a dict, list, tuple or named tuple of them, "
                f"got {type(leaf).__name__}{_aside(x, index, mixed)}"
            )
        if (kind := unusual(leaf)) is not None:
            raise TypeError(
                f"{_name(x, index)} must be a dense tensor (N, ...), got a {kind} one{_aside(x, index, mixed)}"
            )
        if leaf.dim() == 0:
            raise ValueError(f"{_name(x, index)} must have shape (N, ...), got a 0-d tensor{_aside(x, index, mixed)}")
        if leaf.shape[0] == 0:
            raise ValueError(f"{_name(x, index)} must have at least one row, got shape {tuple(leaf.shape)}")
    first = flat[numbers[0]]
    for index in numbers[1:]:
        leaf = flat[index]
        if leaf.shape[0] != first.shape[0]:
            raise ValueError(
                f"{_name(x, index)} must have as many rows as {_name(x, numbers[0])}, {first.shape[0]}, "
                f"got shape {tuple(leaf.shape)}{_aside(x, index, mixed)}"
            )
        if leaf.device != first.device:
            raise ValueError(
                f"{_name(x, index)} must be on the device of {_name(x, numbers[0])}, {first.device}, got {leaf.device}"
            )
    return [flat[index] for index in numbers]


def continuous(x: Any, flat: Sequence[Any], mixed: Sequence[bool] | None = None) -> None:
    """Refuse what cannot be blended."""
    for index, leaf in enumerate(flat):
        if (mixed is None or mixed[index]) and leaf.dtype not in _BLENDED:
            raise TypeError(
                f"{_name(x, index)} must be floating-point, of 16 bits at least, to be blended, "
                f"got {leaf.dtype}{_aside(x, index, mixed)}"
            )


def grid(
    x: Any, flat: Sequence[Any], dims: tuple[int, ...] | None, mixed: Sequence[bool] | None = None
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Return the extents that a box is cut from, the same for all leaves, and each leaf's dimensions that have them."""
    sizes, axes, first = None, [], ""
    for index, leaf in enumerate(flat):
        if mixed is not None and not mixed[index]:
            continue
        own = _dims(x, index, leaf, dims)
        extents = tuple(leaf.shape[dim] for dim in own)
        if math.prod(extents) == 0:
            raise ValueError(f"{_name(x, index)} must not be empty where it is cut, got {tuple(leaf.shape)}")
        if sizes is None:
            sizes, first = extents, _name(x, index)
        elif extents != sizes:
            raise ValueError(
                f'{_name(x, index)} must have the size of {first} for mode="cutmix", {sizes}, got {extents}'
            )
        axes.append(own)
    assert sizes is not None
    return sizes, axes


def _dims(x: Any, index: int, leaf: Tensor, dims: tuple[int, ...] | None) -> tuple[int, ...]:
    if dims is None:
        if leaf.dim() not in (3, 4):
            raise ValueError(
                f'{_name(x, index)} must have shape (N, C, H, W) or (N, C, T) for mode="cutmix" without dims=, '
                f"got {tuple(leaf.shape)}"
            )
        return tuple(range(2, leaf.dim()))
    own = tuple(sorted(dim + leaf.dim() if dim < 0 else dim for dim in dims))
    if own[0] < 1 or own[-1] >= leaf.dim() or len(set(own)) < len(own):
        raise ValueError(
            f"{_name(x, index)} must have the dimensions dims={dims}, once each and none of them the rows, "
            f"got shape {tuple(leaf.shape)}"
        )
    return own


def _is_whole(x: Any) -> bool:
    """A packed sequence is a named tuple, but its parts have no rows."""
    return isinstance(x, PackedSequence)


def _with_paths(x: Any) -> list[tuple[tuple[Any, ...], Any]]:
    return pytree.tree_flatten_with_path(x, is_leaf=_is_whole)[0]


def _key(step: Any) -> Any:
    """Return a dict's key, a named tuple's field or a list's index."""
    return getattr(step, "key", getattr(step, "name", getattr(step, "idx", None)))


def _name(x: Any, index: int) -> str:
    return f"x{pytree.keystr(_with_paths(x)[index][0])}"


def _aside(x: Any, index: int, mixed: Sequence[bool] | None) -> str:
    """Say how a leaf of a larger batch is left alone, where its mixing can be told to."""
    path = _with_paths(x)[index][0] if mixed is not None else ()
    return f"; only= or skip={_key(path[-1])!r} leaves it as it is" if path else ""


def _description(x: Any) -> str:
    return f"an empty {type(x).__name__}" if not flatten(x)[0] else "none but skipped ones"
