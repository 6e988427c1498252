"""DTensors on their way into a loss: each rank goes on with its own rows.

A gradient in a plain tensor is this rank's, for DDP to average. A DTensor is one tensor of all ranks, and so is its
gradient: it comes back averaged over the ranks already, as PyTorch's own losses give it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, cast

import torch
from torch import Tensor

from imix_aug import _check

_Arguments = ParamSpec("_Arguments")

_EMBEDDINGS = ("query", "key", "query_1", "query_2", "key_1", "key_2")
_PER_ROW = ("classes", "ids", "hard_negatives", "weight")
_OF_ALL_ROWS = ("negatives", "negative_ids", "temperature", "bias")


def takes_dtensors(loss: Callable[_Arguments, Tensor]) -> Callable[_Arguments, Tensor]:
    """Let a loss take DTensors: sharded by rows where an argument has the batch's rows, else replicated."""
    signature = inspect.signature(loss)

    @functools.wraps(loss)
    def with_own_rows(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Tensor:
        for value in (*args, *kwargs.values()):
            if _check.is_dtensor(value):
                own = _own_rows(signature.bind(*args, **kwargs).arguments)
                return cast(Callable[..., Tensor], loss)(**own)
        return loss(*args, **kwargs)

    return with_own_rows


def _own_rows(arguments: dict[str, Any]) -> dict[str, Any]:
    embeddings = {name: arguments[name] for name in _EMBEDDINGS if arguments.get(name) is not None}
    first, query = next(iter(embeddings.items()))
    is_sharded = _check.is_dtensor(query)
    for name, value in embeddings.items():
        if _check.is_dtensor(value) != is_sharded:
            wanted = "a DTensor" if is_sharded else "a plain tensor"
            raise TypeError(f"{name} must be {wanted}, as {first} is, got {type(value).__name__}")
    if is_sharded:
        _one_mesh(first, query, arguments)
    own = dict(arguments)
    for name, value in arguments.items():
        if not _check.is_dtensor(value):
            continue
        if name in _OF_ALL_ROWS:
            own[name] = _whole(name, value)
        elif name in _EMBEDDINGS or (is_sharded and name in _PER_ROW):
            own[name] = _shard(name, value, query)
        elif name in _PER_ROW:
            raise TypeError(f"{name} must be a plain tensor, as {first} is, got {type(value).__name__}")
    if is_sharded:
        own["process_group"] = query.device_mesh.get_group()
    return own


def _one_mesh(name: str, query: Any, arguments: dict[str, Any]) -> None:
    """Refuse what leaves open between which ranks the rows of a DTensor are to meet."""
    mesh = query.device_mesh
    if mesh.ndim != 1:
        raise ValueError(f"{name} must be on a mesh of one dimension, got one of {mesh.ndim}")
    if not arguments.get("gather_distributed", False):
        raise ValueError(
            f"gather_distributed must be True where {name} is a DTensor, whose rows are those of all ranks; "
            f"to contrast each rank's on its own, pass {name}.to_local()"
        )
    group = _check.process_group(True, arguments.get("process_group"))
    if group is None:
        return
    from torch.distributed import get_process_group_ranks

    given, own = get_process_group_ranks(group), get_process_group_ranks(mesh.get_group())
    if given != own:
        raise ValueError(f"process_group must be the ranks that {name} is sharded over, {own}, or None, got {given}")


def _shard(name: str, value: Any, query: Any) -> Tensor:
    mesh = value.device_mesh
    if mesh != query.device_mesh:
        raise ValueError(f"{name} must be on the mesh of the embeddings, {query.device_mesh}, got {mesh}")
    if not value.placements[0].is_shard(0):
        raise ValueError(f"{name} must be placed as Shard(0), by rows, got {value.placements[0]}")
    if value.shape[0] % mesh.size() or value.shape[0] == 0:
        raise ValueError(f"{name} must have as many rows on each of {mesh.size()} ranks, got {value.shape[0]} in all")
    return _averaged(value.to_local(), mesh.size())


def _whole(name: str, value: Any) -> Tensor:
    if not all(each.is_replicate() for each in value.placements):
        raise ValueError(f"{name} must be placed as Replicate(), got {', '.join(map(str, value.placements))}")
    if not value.requires_grad:
        return value.to_local()
    from torch.distributed import _tensor  # torch 2.4 has it nowhere else.

    mesh = value.device_mesh
    # Backward, each rank's share becomes a partial sum, which the redistribution adds up.
    replicated = value.redistribute(mesh, value.placements)
    share = [_tensor.Partial()] * mesh.ndim  # type: ignore[attr-defined]
    return _averaged(replicated.to_local(grad_placements=share), mesh.size())


def _averaged(own: Tensor, ranks: int) -> Tensor:
    if not (own.requires_grad and torch.is_grad_enabled()):
        return own
    return _AveragedGradient.apply(own, ranks)


class _AveragedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: int) -> Tensor:
        ctx.ranks = ranks
        return own.view_as(own)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad / ctx.ranks, None
