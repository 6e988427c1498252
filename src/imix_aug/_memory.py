"""What a criterion keeps between its calls: a memory bank must not be filled twice per step in silence."""

from __future__ import annotations

import functools
import sys
import zlib
from collections import deque
from collections.abc import Iterator
from itertools import islice
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))
_CONTAINERS = (list, tuple, set, frozenset, deque)
# Bounds of a look: items of a container, objects within objects, entries of a tensor or array that are compared.
_ITEMS, _DEPTH, _ENTRIES = 10_000, 2, 1 << 20


class Look:
    """Every tensor and array that a criterion reaches: as a module, object, closure, partial, method or container.

    A single number (a count, a logged loss) is no memory bank and does not count, unless it is a module's buffer.
    Versions tell of a tensor that was written to; with ``values=True`` writes through ``.data``, which no version
    shows, are found by comparing entries.
    """

    def __init__(self, criterion: Any, *, values: bool) -> None:
        self._found: dict[str, tuple[Any, ...]] = {}
        self._values = values
        self._seen: dict[int, Any] = {}
        self._visit("criterion", criterion, _DEPTH)

    def first_difference(self, later: Look) -> str | None:
        """Return the path to something that was added, removed, replaced or written to since, or None."""
        for path in (*self._found, *later._found):
            before, after = self._found.get(path), later._found.get(path)
            if before is None or after is None or not _same(before, after):
                return path
        return None

    def _visit(self, path: str, value: Any, depth: int) -> None:
        if isinstance(value, Tensor):
            if value.dim() > 0:
                self._found[path] = self._tensor(value)
        elif _is_array(value):
            if value.ndim > 0:
                step = max(1, value.size // _ENTRIES)
                self._found[path] = value, zlib.crc32(value.reshape(-1)[::step].tobytes())
        elif id(value) not in self._seen and not isinstance(
            value, type | ModuleType | str | bytes | int | float | None
        ):
            self._seen[id(value)] = value
            if isinstance(value, dict):
                for name, item in list(islice(value.items(), _ITEMS)):
                    self._visit(f"{path}[{name!r}]", item, depth)
            elif isinstance(value, _CONTAINERS):
                for number, item in enumerate(list(islice(value, _ITEMS))):
                    self._visit(f"{path}[{number}]", item, depth)
            elif isinstance(value, nn.Module):
                for name, buffer in value._buffers.items():
                    if buffer is not None:
                        self._found[f"{path}.{name}"] = self._tensor(buffer)
                for name, item in _attributes_of_module(value):
                    self._visit(f"{path}.{name}", item, depth)
            else:
                self._visit_object(path, value, depth)

    def _visit_object(self, path: str, value: Any, depth: int) -> None:
        if isinstance(value, functools.partial):
            for item in (value.func, value.args, value.keywords):
                self._visit(path, item, depth)
        elif isinstance(value, MethodType):
            self._visit(path, value.__self__, depth)
            self._visit(path, value.__func__, depth)
        elif isinstance(value, FunctionType):
            for name, item in _named_by(value):
                self._visit(f"{path}: {name}", item, depth)
        elif depth > 0:
            for name, item in list(getattr(value, "__dict__", {}).items()):
                self._visit(f"{path}.{name}", item, depth - 1)

    def _tensor(self, value: Tensor) -> tuple[Any, ...]:
        version = 0 if value.is_inference() else value._version
        has_entries = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided and not value.is_meta
        if not (self._values and has_entries):
            return value, version
        entries = value.detach().reshape(-1)
        return value, version, entries[:: max(1, entries.shape[0] // _ENTRIES)].clone()


def _attributes_of_module(module: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from module._parameters.items()
    yield from module._modules.items()
    yield from ((name, item) for name, item in list(vars(module).items()) if name not in _MODULE_ATTRIBUTES)


def _named_by(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Return what a function closes over, its defaults, and the globals that it names; other files' functions not."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # a cell that is still empty
            continue
    yield "defaults", (function.__defaults__, function.__kwdefaults__)
    for name in function.__code__.co_names:
        item = function.__globals__.get(name)
        if not isinstance(item, FunctionType) or item.__globals__ is function.__globals__:
            yield name, item


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _same(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    if before[0] is not after[0] or before[1] != after[1]:
        return False
    return len(before) == 2 or len(after) == 2 or torch.equal(before[2], after[2])
