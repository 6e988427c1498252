"""Refusals: each names the argument, what came and what was wanted. None of them waits for a device."""

import math
from numbers import Real
from typing import Any, Literal, cast

import torch
from torch import Tensor

from imix_aug._labels import VirtualLabels
from imix_aug._values import FLOATS, readable, unusual

Reduction = Literal["mean", "sum", "none"]


def matrix(name: str, value: object, like: Tensor | None = None, like_name: str = "query") -> Tensor:
    """Accept a non-empty floating-point matrix with the width, dtype and device of ``like``."""
    value = _floating(name, _dense(name, value, "(N, D)"))
    if value.dim() != 2:
        raise ValueError(f"{name} must have shape (N, D), got {tuple(value.shape)}")
    if like is None:
        if value.shape[0] == 0 or value.shape[1] == 0:
            raise ValueError(f"{name} must have at least one row and one column, got shape {tuple(value.shape)}")
        return value
    if value.device != like.device:
        raise ValueError(f"{name} must be on the device of {like_name}, {like.device}, got {value.device}")
    if value.dtype != like.dtype and torch.float64 in (value.dtype, like.dtype):
        raise TypeError(f"{name} must have the dtype of {like_name}, {like.dtype}, got {value.dtype}")
    if value.shape[1] != like.shape[1]:
        raise ValueError(
            f"{name} must have as many columns as {like_name}, {like.shape[1]}, got shape {tuple(value.shape)}"
        )
    return value


def negatives(value: object, query: Tensor) -> Tensor:
    """Accept further keys ``(K, D)``; of another width, they are most likely a queue whose two sizes were swapped."""
    value = _dense("negatives", value, "(K, D)")
    if value.dim() == 2 and value.shape[1] != query.shape[1]:
        raise ValueError(
            f"negatives must have as many columns as query, {query.shape[1]}, got shape {tuple(value.shape)}: "
            "a queue is NegativeQueue(size, dim)"
        )
    return matrix("negatives", value, query)


def queue_rows(value: object, queue: Tensor) -> Tensor:
    """Accept keys for a queue (size, D): its width and device, its dtype or a half precision to be widened."""
    keys = matrix("keys", value, value if isinstance(value, Tensor) else None)
    if keys.device != queue.device:
        raise ValueError(f"keys must be on the device of the queue, {queue.device}, got {keys.device}: move the queue")
    if keys.dtype != queue.dtype and keys.element_size() >= min(queue.element_size(), 4):
        raise TypeError(f"keys must have the dtype of the queue, {queue.dtype}, or half precision, got {keys.dtype}")
    if keys.shape[1] != queue.shape[1]:
        size, dim = queue.shape
        raise ValueError(
            f"keys must have as many columns as the queue, {dim}, got shape {tuple(keys.shape)}: this is "
            f"NegativeQueue(size={size}, dim={dim})"
            + (f", and NegativeQueue(size={dim}, dim={size}) would fit" if keys.shape[1] == size else "")
        )
    return keys


def paired_matrix(name: str, value: object, like: Tensor, like_name: str = "query") -> Tensor:
    """Accept a matrix of the very shape, dtype and device of ``like``."""
    found = matrix(name, value, like, like_name)
    if found.shape != like.shape:
        raise ValueError(f"{name} must have the shape of {like_name}, {tuple(like.shape)}, got {tuple(found.shape)}")
    return found


def batch(name: str, value: object) -> Tensor:
    """Accept a floating-point tensor with at least one row of any shape."""
    value = _floating(name, _dense(name, value, "(N, ...)"))
    if value.dim() == 0 or value.numel() == 0:
        raise ValueError(f"{name} must have at least one row and one column, got shape {tuple(value.shape)}")
    return value


def paired_batches(a: object, b: object) -> tuple[Tensor, Tensor]:
    """Accept two batches of one shape and device; widen half precision beside float32, unless autocast sees to it."""
    first, second = batch("a", a), batch("b", b)
    if second.shape != first.shape:
        raise ValueError(f"b must have the shape of a, {tuple(first.shape)}, got {tuple(second.shape)}")
    if second.device != first.device:
        raise ValueError(f"b must be on the device of a, {first.device}, got {second.device}")
    if first.dtype == second.dtype or torch.is_autocast_enabled(first.device.type):
        return first, second
    if torch.float64 in (first.dtype, second.dtype):
        raise TypeError(f"b must have the dtype of a, {first.dtype}, got {second.dtype}")
    return first.float(), second.float()


def paired(names: object, further: dict[str, Any], n: int, device: torch.device) -> None:
    """Accept further arguments of which those named are tensors of ``n`` rows on ``device``, or None."""
    assert isinstance(names, tuple)
    for name in names:
        if name not in further:
            raise TypeError(f"paired names {name!r}, which must be passed by keyword, got {sorted(further)}")
        value = further[name]
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor (N, ...) or None, for paired names it, got {_kind(value)}")
        if value.dim() == 0 or value.shape[0] != n:
            raise ValueError(f"{name} must have {n} rows, for paired names it, got shape {tuple(value.shape)}")
        if value.device != device:
            raise ValueError(f"{name} must be on the device of the rows, {device}, got {value.device}")


def names(name: str, value: object) -> tuple[str, ...]:
    """Accept a tuple or list of str."""
    if not isinstance(value, tuple | list) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"{name} must be a tuple of str, got {value!r}")
    return tuple(value)


def labels(value: object, n: int, device: torch.device) -> VirtualLabels | None:
    """Accept None, or virtual labels of ``n`` rows on ``device``."""
    if value is None:
        return None
    if not isinstance(value, VirtualLabels):
        raise TypeError(f"labels must be VirtualLabels or None, got {_kind(value)}")
    for name, leaf in zip(("labels.lam", "labels.partner"), value, strict=True):
        if _dense(name, leaf, "(N,)").shape != (n,):
            raise ValueError(f"{name} must have shape ({n},), one entry per row, got {tuple(leaf.shape)}")
        if leaf.device != device:
            raise ValueError(f"{name} must be on the device of the rows, {device}, got {leaf.device}")
    _floating("labels.lam", value.lam)
    if value.partner.dtype != torch.int64:
        raise TypeError(f"labels.partner must be int64, got {value.partner.dtype}")
    return value


def not_labels(name: str, value: object, call: str) -> None:
    """Refuse labels that stand in another argument's place, and show the call in full."""
    if isinstance(value, VirtualLabels):
        raise TypeError(f"{name} must be a tensor, got VirtualLabels: the call is {call}")


def keys_are_unmixed(labels: VirtualLabels | None, query: Tensor, key: Tensor, view: str = "") -> None:
    """Refuse mixed queries that are their own keys, where labels can be read."""
    if labels is None or not (query is key or _same_memory(query, key)) or not readable(labels.lam):
        return
    if not bool((labels.lam == 1).all()):
        raise ValueError(
            f"key{view} must be embeddings of unmixed rows, got those of query{view}, which labels say are mixed: "
            "encode the unmixed view too"
        )


def permutation(labels: VirtualLabels | None) -> None:
    """Refuse partners that are no permutation, where they can be read."""
    if labels is None or not readable(labels.partner):
        return
    times = torch.bincount(labels.partner, minlength=labels.partner.shape[0])
    if int(times.max()) > 1:
        raise ValueError(
            "labels.partner must be a permutation, so that a key has one other query, "
            f"got row {int(times.argmax())} as the partner of {int(times.max())} rows"
        )


def _same_memory(first: Tensor, second: Tensor) -> bool:
    if not readable(first, second):
        return False
    return first.data_ptr() == second.data_ptr() and first.stride() == second.stride()


def integers(name: str, value: object, n: int, device: torch.device) -> Tensor:
    """Accept a vector of ``n`` integers on ``device``, as int64."""
    value = _dense(name, value, "(N,)")
    if value.dtype not in _INTEGERS:
        raise TypeError(f"{name} must have an integer dtype, got {value.dtype}")
    if value.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), one entry per row, got {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"{name} must be on the device of the rows, {device}, got {value.device}")
    return value.to(torch.int64)


_INTEGERS = (
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)


def hard_negatives(value: object, query: Tensor) -> Tensor:
    """Accept further columns of each row's own, ``(N, H, D)``."""
    value = _dense("hard_negatives", value, "(N, H, D)")
    n, d = query.shape
    if value.dim() != 3 or value.shape[0] != n or value.shape[1] == 0 or value.shape[2] != d:
        raise ValueError(f"hard_negatives must have shape ({n}, H, {d}), got {tuple(value.shape)}")
    matrix("hard_negatives", value[:, 0], query)
    return value


def weight(value: object, n: int, device: torch.device) -> Tensor:
    """Accept a floating-point weight per row."""
    value = _floating("weight", _dense("weight", value, "(N,)"))
    if value.shape != (n,):
        raise ValueError(f"weight must have shape ({n},), one entry per row, got {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"weight must be on the device of the rows, {device}, got {value.device}")
    return value


def temperature(value: object, device: torch.device) -> float | Tensor:
    """Accept a positive finite number, or a floating-point 0-d tensor on ``device`` or the CPU."""
    if not isinstance(value, Tensor):
        return positive("temperature", value)
    _scalar("temperature", value, device)
    if readable(value) and not 0 < value.item() < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {value.item()}")
    return value


def bias(value: object, device: torch.device) -> float | Tensor:
    """Accept a finite number, or a floating-point 0-d tensor on ``device`` or the CPU."""
    number: float | Tensor
    if isinstance(value, Tensor):
        number = _scalar("bias", value, device)
        known = number.item() if readable(number) else 0.0
    else:
        number = known = _number("bias", value)
    if not math.isfinite(known):
        raise ValueError(f"bias must be finite, got {known}")
    return number


def _scalar(name: str, value: Tensor, device: torch.device) -> Tensor:
    if _dense(name, value, "()").dim() != 0:
        raise ValueError(f"{name} must be a float or a 0-d tensor, got shape {tuple(value.shape)}")
    _floating(name, value)
    if value.device != device and value.device.type != "cpu":
        raise ValueError(f"{name} must be on the device of query, {device}, or the CPU, got {value.device}")
    return value


def positive(name: str, value: object) -> float:
    """Accept a positive finite number."""
    number = _number(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return number


def alpha(value: object) -> tuple[float, float]:
    """Accept Beta's parameters: one number, zero allowed, or a pair of positive ones."""
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise ValueError(f"alpha must be a number or a pair (a, b), got {value!r}")
        return positive("alpha[0]", value[0]), positive("alpha[1]", value[1])
    number = _number("alpha", value)
    if not 0 <= number < math.inf:
        raise ValueError(f"alpha must be finite and not negative, got {value!r}")
    return number, number


def fraction(name: str, value: object) -> float:
    """Accept a number from 0 to 1."""
    number = _number(name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value!r}")
    return number


def count(name: str, value: object) -> int:
    """Accept a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {_kind(value)}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def flag(name: str, value: object) -> bool:
    """Accept a bool and nothing that merely has a truth value."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {_kind(value)}")
    return value


def is_dtensor(value: object) -> bool:
    """Tell a DTensor without importing what makes them, which takes long and which not every torch has."""
    return isinstance(value, Tensor) and type(value).__name__ == "DTensor"


def process_group(gather_distributed: object, group: Any) -> Any:
    """Accept a process group, or a one-dimensional device mesh for its group, only where it is used."""
    if not flag("gather_distributed", gather_distributed) and group is not None:
        raise ValueError(f"process_group must be None unless gather_distributed=True, got {_kind(group)}")
    if group is None or not torch.distributed.is_available():
        return group
    from torch.distributed.device_mesh import DeviceMesh

    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise ValueError(f"process_group must be a group or a mesh of one dimension, got one of {group.ndim}")
        return group.get_group()
    return group


def generator(value: object) -> torch.Generator | None:
    """Accept None or a ``torch.Generator``."""
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {_kind(value)}")
    return value


def choice(name: str, value: object, options: tuple[str, ...]) -> str:
    """Accept one of ``options``."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, one of {', '.join(map(repr, options))}, got {_kind(value)}")
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")
    return value


def dims(value: object) -> tuple[int, ...] | None:
    """Accept None, or the dimensions that are cut: integers, none of them the rows'."""
    if value is None:
        return None
    if not isinstance(value, tuple | list) or any(
        isinstance(each, bool) or not isinstance(each, int) for each in value
    ):
        raise TypeError(f"dims must be a tuple of ints, such as (1,), got {value!r}")
    if not value or 0 in value or len(set(value)) < len(value):
        raise ValueError(
            f"dims must name one dimension or more, once each and none of them the rows (0), got {value!r}"
        )
    return tuple(value)


def keys(name: str, value: object) -> tuple[str | int, ...] | None:
    """Accept None, or a key of a batch or several."""
    if value is None:
        return None
    several: tuple[Any, ...] = tuple(value) if isinstance(value, tuple | list) else (value,)
    if any(isinstance(each, bool) or not isinstance(each, str | int) for each in several):
        raise TypeError(f"{name} must be a key of the batch, a str or an int, or a tuple of them, got {value!r}")
    if not several:
        raise ValueError(f"{name} must name at least one key, got {value!r}")
    return several


def reduction(value: object) -> Reduction:
    """Accept how the rows' losses are put together."""
    choice("reduction", value, ("mean", "sum", "none"))
    return cast(Reduction, value)


def _dense(name: str, value: object, shape: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor {shape}, got {_kind(value)}")
    if is_dtensor(value):
        raise TypeError(f"{name} must be a plain tensor, got a DTensor: pass {name}.to_local() or {name}.full_tensor()")
    if (kind := unusual(value)) is not None:
        raise TypeError(f"{name} must be a dense tensor {shape}, got a {kind} one")
    return value


def _floating(name: str, value: Tensor) -> Tensor:
    if value.dtype not in FLOATS:
        kind = "floating-point" if not value.is_floating_point() else "float16, bfloat16, float32 or float64"
        raise TypeError(f"{name} must be {kind}, got {value.dtype}")
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {_kind(value)}")
    return float(value)


def _kind(value: object) -> str:
    return f"{value!r}" if isinstance(value, bool | int | float | str | None) else type(value).__name__
