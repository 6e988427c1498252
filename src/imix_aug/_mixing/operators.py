"""Mixing each row of a batch with another one, as operators that read a row once for each use of it.

Both are linear in the batch, and the gradient of either is the same operator with the permutation inverted: a gather,
where indexing would give a scatter. So they can be differentiated any number of times.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imix_aug._backend import with_kernels
from imix_aug._values import transformed

# A block of rows and their partners, in float32, stay in a core's own cache until they are mixed.
_BLOCK_BYTES = 1 << 20
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def blend(x: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """Return ``lam_i x_i + (1 - lam_i) x_partner(i)``, computed in float32 at least.

    Args:
        x: ``(N, ...)``, floating-point or complex.
        partner: ``(N,)`` int64, a permutation.
        lam: ``(N,)`` or ``(1,)`` float32, a constant.
    """
    if transformed():
        return blend_rows(x, partner, lam, 1 - lam)
    return _blend(x, partner, lam, 1 - lam)


def blend_rows(x: Tensor, partner: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """Return ``own_i x_i + other_i x_partner(i)`` in plain torch: any partners, any order and mode of derivatives."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    own, other = (weight.to(dtype).view(-1, *(1 for _ in x.shape[1:])) for weight in (own, other))
    rows = x.to(dtype)
    return (rows * own + rows[partner] * other).to(x.dtype)


def paste(x: Tensor, partner: Tensor, bounds: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return x with the partner's values inside each box.

    Args:
        x: ``(N, ...)``, of any dtype.
        partner: ``(N,)`` int64, a permutation.
        bounds: ``(N or 1, axes, 2)`` int64, where a box starts and stops on each axis.
        dims: the dimensions of x that the axes are, ascending.
    """
    if transformed():
        return torch.where(_inside(bounds, x, dims), x[partner], x)
    if (x.dtype.is_floating_point or x.dtype.is_complex) and x.element_size() > 1:
        return _paste(x, partner, bounds, None, dims)
    # The bits of the rarer dtypes are moved as integers, which every device can index.
    return _paste(x.view(_INTEGERS[x.element_size()]), partner, bounds, None, dims).view(x.dtype)


@torch.library.custom_op("imix_aug::blend", mutates_args=())
def _blend(x: Tensor, partner: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """Return ``own_i x_i + other_i x_partner(i)``."""
    x = _dense(x)
    result = torch.empty_like(x)

    def kernels() -> None:
        from imix_aug._mixing import triton as mix_triton

        mix_triton.blend(x, partner, own, other, result)

    def plain() -> None:
        _blend_blocks(flat_rows(x), partner, own[:, None], other[:, None], flat_rows(result))

    with_kernels(x.device, kernels, plain)
    return result


def _blend_blocks(rows: Tensor, partner: Tensor, own: Tensor, other: Tensor, mixed: Tensor) -> None:
    """Mix a block of rows at a time, in buffers that are used again: what is in cache there is not fetched twice."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    own, other = (weight.to(dtype).expand(len(rows), 1) for weight in (own, other))
    size = min(len(rows), max(1, _BLOCK_BYTES // (4 * max(1, rows.shape[1]))))
    gathered = rows.new_empty((size, rows.shape[1]))
    wide = [gathered.new_empty(gathered.shape, dtype=dtype) for _ in range(2)] if dtype != rows.dtype else None
    for start in range(0, len(rows), size):
        block = slice(start, min(start + size, len(rows)))
        partners = torch.index_select(rows, 0, partner[block], out=gathered[: block.stop - start])
        if wide is None:
            torch.mul(rows[block], own[block], out=mixed[block]).addcmul_(partners, other[block])
        else:
            first, second = (buffer[: len(partners)] for buffer in wide)
            mixed[block] = first.copy_(rows[block]).mul_(own[block]).addcmul_(second.copy_(partners), other[block])


@_blend.register_fake
def _(x: Tensor, partner: Tensor, own: Tensor, other: Tensor) -> Tensor:
    return torch.empty_like(_dense(x))


@torch.library.custom_op(
    "imix_aug::paste",
    mutates_args=(),
    schema="(Tensor x, Tensor partner, Tensor cut, Tensor? pasted, int[] dims) -> Tensor",
)
def _paste(x: Tensor, partner: Tensor, cut: Tensor, pasted: Tensor | None, dims: Sequence[int]) -> Tensor:
    """Return x with zeros inside the boxes ``cut`` plus its partner inside ``pasted``.

    None for ``pasted`` says that both are the same boxes: whole elements are then chosen, and nothing is added, which
    serves integers too.
    """
    x = _dense(x)
    if len(dims) > 2:
        return _paste_plainly(x, partner, cut, pasted, dims)

    def kernels() -> Tensor:
        from imix_aug._mixing import triton as mix_triton

        result = torch.empty_like(x)
        mix_triton.paste(x, partner, cut, pasted, result, dims)
        return result

    return with_kernels(x.device, kernels, lambda: _paste_plainly(x, partner, cut, pasted, dims))


def _paste_plainly(x: Tensor, partner: Tensor, cut: Tensor, pasted: Tensor | None, dims: Sequence[int]) -> Tensor:
    if x.device.type == "cpu" and cut.shape[0] == 1:
        box = [slice(None)] * x.dim()
        for dim, (start, stop) in zip(dims, cut[0].tolist(), strict=True):
            box[dim] = slice(start, stop)
        result = x.clone()
        result[tuple(box)] = x[tuple(box)][partner]
        return result
    if pasted is None:
        return torch.where(_inside(cut, x, dims), x[partner], x)
    zero = x.new_zeros(())
    return torch.where(_inside(cut, x, dims), zero, x) + torch.where(_inside(pasted, x, dims), x[partner], zero)


@_paste.register_fake
def _(x: Tensor, partner: Tensor, cut: Tensor, pasted: Tensor | None, dims: Sequence[int]) -> Tensor:
    return torch.empty_like(_dense(x))


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:4])


def _keep_with_dims(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _keep(ctx, inputs, output)
    ctx.dims = inputs[4]


def _blend_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    partner, own, other = ctx.saved_tensors
    inverse = _inverse(partner)
    return _blend(grad, inverse, own, _of_rows(other, inverse)), None, None, None


def _paste_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    partner, cut, pasted = ctx.saved_tensors
    inverse = _inverse(partner)
    shared = cut.shape[0] == 1
    pasted = None if shared else _of_rows(cut if pasted is None else pasted, inverse)
    return _paste(grad, inverse, cut, pasted, ctx.dims), None, None, None, None


_blend.register_autograd(_blend_gradient, setup_context=_keep)
_paste.register_autograd(_paste_gradient, setup_context=_keep_with_dims)


def _inverse(partner: Tensor) -> Tensor:
    return torch.empty_like(partner).scatter_(0, partner, torch.arange(partner.shape[0], device=partner.device))


def _of_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Return the value of each of these rows, unless one value stands for all."""
    return values if values.shape[0] == 1 else values[rows]


def _dense(x: Tensor) -> Tensor:
    """Return x, copied unless its rows follow each other in memory, each without gaps."""
    formats = {4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(x.dim(), [])
    kept = x.is_contiguous() or any(x.is_contiguous(memory_format=each) for each in formats)
    return x if kept else x.contiguous()


def flat_rows(x: Tensor) -> Tensor:
    """View dense rows, whatever their memory format, as ``(N, elements)`` in the order of their memory."""
    elements = x[0].numel()
    return x.as_strided((x.shape[0], elements), (elements, 1))


def _inside(bounds: Tensor, x: Tensor, dims: Sequence[int]) -> Tensor:
    """Tell for each row and place whether it is inside the box."""
    inside = torch.ones((), dtype=torch.bool, device=x.device)
    for axis, dim in enumerate(dims):
        start, stop = (bound.view(-1, *(1 for _ in x.shape[1:])) for bound in bounds[:, axis].unbind(1))
        position = torch.arange(x.shape[dim], device=x.device).view(-1, *(1 for _ in x.shape[dim + 1 :]))
        inside = inside & (position >= start) & (position < stop)
    return inside
