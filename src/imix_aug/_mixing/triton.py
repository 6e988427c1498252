# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
"""The mixing operators on CUDA: one pass that reads a row and its partner and writes their mixture.

They do a few operations for each element read, so only the bytes count: 16 of them per load in consecutive threads, and
two loads in flight for each operand of a thread (4096 bytes per program of four warps). Weights and partners are read
once per row, and nothing else touches memory.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from imix_aug._triton_launch import on_device

_PROGRAM_BYTES = 4096
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def blend(x: Tensor, partner: Tensor, own: Tensor, other: Tensor, result: Tensor) -> None:
    """Write ``own_i x_i + other_i x_partner(i)`` into the result, which lies in memory as x does."""
    if x.numel() == 0:
        return
    if x.is_complex():
        x, result = torch.view_as_real(x), torch.view_as_real(result)
    rows, elements = x.shape[0], x[0].numel()
    down, across = _block(elements, x)
    with on_device(x):
        _blend_block[triton.cdiv(rows, down) * triton.cdiv(elements, across),](
            x, partner.contiguous(), own.contiguous(), other.contiguous(), result, rows, elements,
            ROWS=down, COLUMNS=across, WEIGHTS=own.shape[0] > 1, DOUBLE=x.dtype == torch.float64,
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip


def paste(x: Tensor, partner: Tensor, cut: Tensor, pasted: Tensor | None, result: Tensor, dims: Sequence[int]) -> None:
    """Write into the result x with zeros inside ``cut`` plus its partner inside ``pasted``, or the same boxes.

    The boxes' axes are one or two of x's dimensions. In memory a dense row is ``(..., height, between, width, inner)``:
    the extent of the outer cut axis, what lies between both, the extent of the inner one, and what lies inside of it.
    """
    if x.numel() == 0:
        return
    order = list(range(1, x.dim())) if x.is_contiguous() else [*range(2, x.dim()), 1]
    places, sizes = [order.index(dim) for dim in dims], [x.shape[dim] for dim in order]
    if places[0] > places[-1]:  # Channels last: the first axis is the inner one.
        cut, pasted = cut.flip(1), None if pasted is None else pasted.flip(1)
    outer, last = min(places), max(places)
    height, between = (sizes[outer], math.prod(sizes[outer + 1 : last])) if len(dims) > 1 else (1, 1)
    width, inner = sizes[last], math.prod(sizes[last + 1 :])
    if x.is_complex():
        x, result, inner = torch.view_as_real(x), torch.view_as_real(result), 2 * inner
    if not x.dtype.is_floating_point or x.element_size() == 1:
        x, result = x.view(_INTEGERS[x.element_size()]), result.view(_INTEGERS[x.element_size()])
    # A line is a run of memory along which only the last cut axis changes, with what lies inside of it.
    line = width * inner
    lines = x.numel() // line
    down, across = _block(line, x)
    with on_device(x):
        _paste_block[triton.cdiv(lines, down) * triton.cdiv(line, across),](
            x, partner.contiguous(), cut.contiguous(), None if pasted is None else pasted.contiguous(), result,
            lines, lines // x.shape[0], height, between, line,
            LINES=down, COLUMNS=across, INNER=inner, AXES=cut.shape[1], BOXES=cut.shape[0] > 1,
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip


def _block(elements: int, x: Tensor) -> tuple[int, int]:
    """Return how many rows, and elements of each, a program takes."""
    size = _PROGRAM_BYTES // x.element_size()
    across = min(size, triton.next_power_of_2(elements))
    return size // across, across


@triton.jit
def _blend_block(
    x, partner, own, other, result, rows, elements,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WEIGHTS: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Mix a block of neighbouring elements of a few rows, or of one."""
    blocks = tl.cdiv(elements, COLUMNS)
    row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    real = row < rows
    mask = real[:, None] & (column < elements)[None, :]
    partner_row = tl.load(partner + row, mask=real, other=0)
    weight = row if WEIGHTS else row * 0
    own_weight = tl.load(own + weight, mask=real, other=0.0)
    other_weight = tl.load(other + weight, mask=real, other=0.0)
    place = row.to(tl.int64)[:, None] * elements + column[None, :]
    value = tl.load(x + place, mask=mask)
    partner_value = tl.load(x + (partner_row[:, None] * elements + column[None, :]), mask=mask)
    if DOUBLE:
        own_weight, other_weight = own_weight.to(tl.float64), other_weight.to(tl.float64)
    else:
        value, partner_value = value.to(tl.float32), partner_value.to(tl.float32)
    mixed = own_weight[:, None] * value + other_weight[:, None] * partner_value
    tl.store(result + place, mixed.to(result.dtype.element_ty), mask=mask)


@triton.jit
def _box(
    bounds, row, real, high, chunk, along,
    COLUMNS: tl.constexpr, INNER: tl.constexpr, AXES: tl.constexpr, BOXES: tl.constexpr,
):  # fmt: skip
    """Tell which lines of a block the box crosses, and which elements are inside of it."""
    first = bounds + (row if BOXES else row * 0) * (2 * AXES)
    start = tl.load(first + (2 * AXES - 2), mask=real, other=0)
    stop = tl.load(first + (2 * AXES - 1), mask=real, other=0)
    crossed = real & (start * INNER < chunk + COLUMNS) & (stop * INNER > chunk)
    if AXES == 2:
        crossed &= (high >= tl.load(first, mask=real, other=0)) & (high < tl.load(first + 1, mask=real, other=0))
    inside = crossed[:, None] & (along[None, :] >= start[:, None]) & (along[None, :] < stop[:, None])
    return crossed, inside


@triton.jit
def _paste_block(
    x, partner, cut, pasted, result, lines, lines_per_row, height, between, line,
    LINES: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, AXES: tl.constexpr, BOXES: tl.constexpr,
):  # fmt: skip
    """Cut and paste a block of neighbouring elements of a few lines, or of one.

    The partner is loaded on every line that the box crosses, inside of it and outside: a mask that changes along the
    line would break the wide loads up.
    """
    blocks = tl.cdiv(line, COLUMNS)
    this = tl.program_id(0) // blocks * LINES + tl.arange(0, LINES)
    chunk = tl.program_id(0) % blocks * COLUMNS
    column = chunk + tl.arange(0, COLUMNS)
    real = this < lines
    mask = real[:, None] & (column < line)[None, :]
    row = this // lines_per_row
    partner_row = tl.load(partner + row, mask=real, other=0)
    place = this.to(tl.int64)[:, None] * line + column[None, :]
    partner_place = (partner_row * lines_per_row + this % lines_per_row)[:, None] * line + column[None, :]
    value = tl.load(x + place, mask=mask)

    high, along = this // between % height, column // INNER
    crossed, inside = _box(cut, row, real, high, chunk, along, COLUMNS, INNER, AXES, BOXES)
    if pasted is None:
        partner_value = tl.load(x + partner_place, mask=mask & crossed[:, None])
        mixed = tl.where(inside, partner_value, value)
    else:
        crossed, chosen = _box(pasted, row, real, high, chunk, along, COLUMNS, INNER, AXES, BOXES)
        partner_value = tl.load(x + partner_place, mask=mask & crossed[:, None])
        if value.dtype != tl.float64:
            value, partner_value = value.to(tl.float32), partner_value.to(tl.float32)
        mixed = tl.where(inside, 0.0, value) + tl.where(chosen, partner_value, 0.0)
    tl.store(result + place, mixed.to(result.dtype.element_ty), mask=mask)
