# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
"""Both sweeps fused, for rows short enough that a tile of them stays on the chip.

Each program keeps a tile of rows of one side and sweeps over the rows of the other: queries over columns for the
log-sum-exp and the mean key, keys over queries for the key gradient. A swept tile is loaded once and enters two matrix
products, the logits and the weighted sum, so that no logit leaves the chip. Where one side has too few tiles to fill
the card, each sweep is split between programs and their partial results are merged.

One compiled kernel serves every batch size and every queue: sizes are not specialised, and keys and negatives are swept
by one loop. What few steps need, a mask at the ragged end or for columns left out, is a branch that the others pass by:
a step knows the lowest and the highest column that its rows leave out, and rows mostly leave out their own.
"""

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from imix_aug._cross_entropy.columns import LeftOut
from imix_aug._cross_entropy.triton_tiles import Tile, tiles_for_keys, tiles_for_queries
from imix_aug._triton_launch import capability, first_that_fits, multiprocessors, on_device

LOG2_E = tl.constexpr(math.log2(math.e))
LN_2 = tl.constexpr(math.log(2))
INF = tl.constexpr(math.inf)

MAX_DIM = 256

# Of so many left-out columns a program knows the lowest and the highest; further ones are looked for in each step.
MANY = tl.constexpr(4)

# What belongs to the swept rows is padded to whole steps of any tile.
_LONGEST_STEP = 128


def sweep_keys(
    query: Tensor, key: Tensor, negatives: Tensor | None, left_out: LeftOut, wants_mean: bool, bounded: bool
) -> tuple[Tensor, Tensor | None]:
    """Return each row's log-sum-exp over all columns that it does not leave out, and its softmax-weighted mean key."""
    (n, d), m, k = query.shape, len(key), 0 if negatives is None else len(negatives)
    query, key = packed(query), packed(key)
    negatives = key if negatives is None or k == 0 else packed(negatives)
    columns = None if left_out.columns is None else left_out.columns.to(torch.int32).contiguous()
    lse = query.new_empty(n, dtype=torch.float32)
    mean = torch.empty_like(query, dtype=torch.float32) if wants_mean else None
    depth, width = query.shape[1], _width(d)

    def launch(tile: Tile) -> None:
        kept, swept, warps, stages = tile
        programs = triton.cdiv(n, kept)
        splits = _splits(programs, triton.cdiv(m, swept) + triton.cdiv(k, swept), multiprocessors(query.device))
        partial_lse = lse if splits == 1 else lse.new_empty((splits, n))
        partial_mean = mean if mean is None or splits == 1 else mean.new_empty((splits, *mean.shape))
        _sweep_keys[programs, splits](
            query, key, negatives, columns, *ids_of(left_out), partial_lse, partial_mean, n, m, k, depth, splits,
            KEPT=kept, SWEPT=swept, WIDTH=width, SHIFT=_shift(query),
            LEFT_OUT=0 if columns is None else columns.shape[1],
            PART_WIDTH=width != depth, PEAK=not bounded or query.dtype == torch.float16,  # whose range is too small
            num_warps=warps, num_stages=stages, enable_fp_fusion=True,
        )  # fmt: skip
        if splits > 1:
            _merge[n,](
                partial_lse, partial_mean, lse, mean, n, depth, splits,
                WIDTH=width, num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip

    tiles = tiles_for_keys(capability(query.device), query.element_size(), width)
    with on_device(query):
        first_that_fits(launch, tiles, "keys", query.device, query.dtype, width)
    return lse, None if mean is None else mean[:, :d]


def sweep_queries(
    query: Tensor, key: Tensor, left_out: LeftOut, level: Tensor, weight: Tensor, key_level: Tensor | None = None
) -> Tensor:
    """Do as ``triton.sweep_queries`` does."""
    (n, d), m = query.shape, len(key)
    if m == 0:
        return key.new_empty(key.shape, dtype=torch.float32)
    query, key = packed(query), packed(key)
    depth, width, shift = query.shape[1], _width(d), _shift(query)
    # Rows beyond the last get an exponent of minus infinity, and so no share of anything.
    padding = -n % _LONGEST_STEP
    offset = F.pad(torch.add(shift, level, alpha=-LOG2_E.value), (0, padding), value=-math.inf)
    key_offset = None if key_level is None else torch.add(shift, key_level, alpha=-LOG2_E.value)
    scale = None
    if shift:
        # Weights such as 1 / N would underflow in float16, so the products see them in units of the largest one.
        scale = weight.abs().amax() * (1 if key_level is None else 2)  # Two of them may add up.
        weight = weight / torch.where(scale == 0, 1, scale)
    weight = F.pad(weight, (0, padding))
    columns = None if left_out.columns is None else F.pad(left_out.columns.t().to(torch.int32), (0, padding), value=-1)

    def launch(tile: Tile) -> Tensor:
        kept, swept, warps, stages = tile
        programs = triton.cdiv(m, kept)
        splits = _splits(programs, triton.cdiv(n, swept), multiprocessors(query.device))
        partial = torch.empty((splits, *key.shape), dtype=torch.float32, device=key.device)
        lowest, highest = (None, None) if columns is None else columns.view(len(columns), -1, swept).aminmax(dim=2)
        _sweep_queries[programs, splits](
            query, key, columns, lowest, highest, *ids_of(left_out)[:2], offset, key_offset, weight, scale, partial,
            n, m, depth, len(offset), splits,
            KEPT=kept, SWEPT=swept, WIDTH=width, SHIFT=shift, LEFT_OUT=0 if columns is None else len(columns),
            PART_WIDTH=width != depth,
            num_warps=warps, num_stages=stages, enable_fp_fusion=True,
        )  # fmt: skip
        return partial[0] if splits == 1 else partial.sum(dim=0)

    tiles = tiles_for_queries(capability(query.device), query.element_size(), width, key_level is not None)
    with on_device(query):
        grad = first_that_fits(launch, tiles, "queries", query.device, query.dtype, width)
    return grad[:, :d]


def packed(rows: Tensor) -> Tensor:
    """Return rows that follow each other, each on whole 16 elements, with zeros added: wide loads in every sweep.

    What is not so is copied, one pass over (N, D).
    """
    if rows.shape[1] % 16:
        return F.pad(rows, (0, -rows.shape[1] % 16))
    return (
        rows
        if rows.is_contiguous() and rows.data_ptr() % 16 == 0
        else rows.clone(memory_format=torch.contiguous_format)
    )


def ids_of(left_out: LeftOut) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the ids of rows, keys and negatives, or none."""
    row_ids, key_ids, negative_ids = (None if ids is None else ids.contiguous() for ids in left_out[1:])
    if row_ids is None or key_ids is None:
        return None, None, None
    return row_ids, key_ids, negative_ids


def _width(d: int) -> int:
    """Return the tile's columns: a power of two, and no less than a matrix product takes."""
    return max(16, triton.next_power_of_2(d))


def _shift(rows: Tensor) -> int:
    """A softmax over many keys falls below float16's normal numbers, so it enters the products times 2 ** shift."""
    return 15 if rows.dtype == torch.float16 else 0


@functools.lru_cache
def _splits(tiles: int, steps: int, processors: int) -> int:
    """Return into how many programs each sweep of ``steps`` is split, so that the card's last wave is full.

    A program costs about two steps beside its sweep, for loading its rows and for storing and merging its sums.
    """
    most = max(1, min(steps, 4 * processors // max(1, tiles)))
    return min(
        range(1, most + 1),
        key=lambda splits: triton.cdiv(tiles * splits, processors) * (triton.cdiv(steps, splits) + 2),
    )


@triton.jit
def _load_rows(
    matrix, start, count, depth, ROWS: tl.constexpr, WIDTH: tl.constexpr, PART_WIDTH: tl.constexpr
):  # fmt: skip
    """Load a tile of rows, zero beyond the last row and column. Only the tile's start takes 64 bits."""
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    pointers = matrix + tl.cast(start, tl.int64) * depth + (row * depth + column)
    real = row < count - start
    if PART_WIDTH:
        real = real & (column < depth)
    return tl.load(pointers, mask=real, other=0.0)


@triton.jit
def _store_rows(pointer, tile, start, count, depth, ROWS: tl.constexpr, WIDTH: tl.constexpr, PART_WIDTH: tl.constexpr):
    """Store a tile of float32 rows."""
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    real = row < count - start
    if PART_WIDTH:
        real = real & (column < depth)
    tl.store(pointer + tl.cast(start, tl.int64) * depth + (row * depth + column), tile, mask=real)


@triton.jit
def _left_out_of(left_out, row, n, each: tl.constexpr, LEFT_OUT: tl.constexpr):
    """Load one left-out column of each row."""
    return tl.load(left_out + row.to(tl.int64) * LEFT_OUT + each, mask=row < n, other=-1)


@triton.jit
def _range_left_out(left_out, row, n, each: tl.constexpr, LEFT_OUT: tl.constexpr):
    """Return the lowest and the highest of one left-out column of each row."""
    lowest, highest = 2147483647, -1
    if each < LEFT_OUT:
        column = _left_out_of(left_out, row, n, each, LEFT_OUT)
        lowest = tl.min(tl.where(row < n, column, 2147483647), 0)
        highest = tl.max(column, 0)
    return lowest, highest


@triton.jit
def _leave_out(
    logits, left_out, row, n, first, lowest, highest, each: tl.constexpr, LEFT_OUT: tl.constexpr, SWEPT: tl.constexpr
):  # fmt: skip
    """Mask one column of each row, if the tile has any of them."""
    if each < LEFT_OUT:  # noqa: SIM102, known when the kernel is compiled
        if (lowest < first + SWEPT) & (highest >= first):
            column = _left_out_of(left_out, row, n, each, LEFT_OUT) - first
            logits = tl.where(tl.arange(0, SWEPT)[None, :] == column[:, None], -INF, logits)
    return logits


@triton.jit(do_not_specialize=["n", "m", "k", "splits"])
def _sweep_keys(
    query, key, negatives, left_out, row_ids, key_ids, negative_ids, lse, mean, n, m, k, depth, splits,
    KEPT: tl.constexpr, SWEPT: tl.constexpr, WIDTH: tl.constexpr, SHIFT: tl.constexpr, LEFT_OUT: tl.constexpr,
    PART_WIDTH: tl.constexpr, PEAK: tl.constexpr,
):  # fmt: skip
    """Give a tile of queries the log-sum-exp and the mean key of one split of the columns."""
    start = tl.program_id(0) * KEPT
    split = tl.program_id(1)
    row = start + tl.arange(0, KEPT)
    tile = _load_rows(query, start, n, depth, KEPT, WIDTH, PART_WIDTH)
    lowest_0, highest_0 = _range_left_out(left_out, row, n, 0, LEFT_OUT)
    lowest_1, highest_1 = _range_left_out(left_out, row, n, 1, LEFT_OUT)
    lowest_2, highest_2 = _range_left_out(left_out, row, n, 2, LEFT_OUT)
    lowest_3, highest_3 = _range_left_out(left_out, row, n, 3, LEFT_OUT)
    if row_ids is not None:
        row_id = tl.load(row_ids + row, mask=row < n, other=0)
    peak = tl.full([KEPT], -INF, tl.float32)
    total = tl.zeros([KEPT], tl.float32)
    weighted = tl.zeros([KEPT, WIDTH], tl.float32)
    column = tl.arange(0, SWEPT)

    key_steps = tl.cdiv(m, SWEPT)
    steps = key_steps + tl.cdiv(k, SWEPT)
    share = tl.cdiv(steps, splits)
    for step in range(split * share, tl.minimum(split * share + share, steps)):
        in_key = step < key_steps
        first = tl.where(in_key, step, step - key_steps) * SWEPT
        count = tl.where(in_key, m, k)
        swept = _load_rows(tl.where(in_key, key, negatives), first, count, depth, SWEPT, WIDTH, PART_WIDTH)
        logits = tl.dot(tile, tl.trans(swept), input_precision="tf32")
        if first + SWEPT > count:
            logits = tl.where(column[None, :] < count - first, logits, -INF)
        if LEFT_OUT > 0:
            # What is left out by its number is a key, none of the negatives.
            here = tl.where(in_key, first, 2147483647 - SWEPT)
            logits = _leave_out(logits, left_out, row, n, here, lowest_0, highest_0, 0, LEFT_OUT, SWEPT)
            logits = _leave_out(logits, left_out, row, n, here, lowest_1, highest_1, 1, LEFT_OUT, SWEPT)
            logits = _leave_out(logits, left_out, row, n, here, lowest_2, highest_2, 2, LEFT_OUT, SWEPT)
            logits = _leave_out(logits, left_out, row, n, here, lowest_3, highest_3, 3, LEFT_OUT, SWEPT)
            for each in tl.static_range(MANY, LEFT_OUT):
                logits = _leave_out(logits, left_out, row, n, here, 0, 2147483647, each, LEFT_OUT, SWEPT)
        if row_ids is not None:
            if negative_ids is None:
                is_key = column < tl.where(in_key, count - first, 0)
                column_id = tl.load(key_ids + first + column, mask=is_key, other=0)
                logits = tl.where(is_key[None, :] & (column_id[None, :] == row_id[:, None]), -INF, logits)
            else:
                ids = tl.where(in_key, key_ids, negative_ids) + first
                column_id = tl.load(ids + column, mask=column < count - first, other=0)
                logits = tl.where(column_id[None, :] == row_id[:, None], -INF, logits)

        if PEAK:
            # A maximum passes over NaN; the total below does not. With an infinite peak, whose difference from itself
            # would be NaN, nothing is subtracted: exp2 gives the right zeros and infinities as it stands.
            higher = tl.maximum(peak, tl.max(logits, 1))
            anchor = tl.where(tl.abs(higher) == INF, 0.0, higher * LOG2_E)
            weight = tl.exp2(logits * LOG2_E - (anchor - SHIFT)[:, None])
            fade = tl.exp2(peak * LOG2_E - anchor)
            total = total * fade
            weighted = weighted * fade[:, None]
            peak = higher
        else:
            weight = tl.exp2(logits * LOG2_E + SHIFT)
        total += tl.sum(weight, 1)
        if mean is not None:
            weighted = tl.dot(weight.to(swept.dtype), swept, weighted, input_precision="tf32")

    anchor = tl.where(tl.abs(peak) == INF, 0.0, peak)
    tl.store(lse + split.to(tl.int64) * n + row, anchor + (tl.log2(total) - SHIFT) * LN_2, mask=row < n)
    if mean is not None:
        weighted = weighted * tl.where(total == 0, 0.0, 1 / total)[:, None]
        _store_rows(mean + split.to(tl.int64) * n * depth, weighted, start, n, depth, KEPT, WIDTH, PART_WIDTH)


@triton.jit(do_not_specialize=["n", "splits"])
def _merge(partial_lse, partial_mean, lse, mean, n, depth, splits, WIDTH: tl.constexpr):
    """Merge the splits of one row, eight at a time: each counts by its share of the total."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    peak = tl.full([], -INF, tl.float32)
    for start in range(0, splits, 32):
        split = start + tl.arange(0, 32)
        logs = tl.load(partial_lse + split.to(tl.int64) * n + row, mask=split < splits, other=-INF)
        peak = tl.maximum(peak, tl.max(logs, 0))
    anchor = tl.where(tl.abs(peak) == INF, 0.0, peak)
    total = tl.zeros([], tl.float32)
    merged = tl.zeros([WIDTH], tl.float32)
    for start in range(0, splits, 8):
        split = start + tl.arange(0, 8)
        logs = tl.load(partial_lse + split.to(tl.int64) * n + row, mask=split < splits, other=-INF)
        share = tl.exp2((logs - anchor) * LOG2_E)
        total += tl.sum(share, 0)
        if mean is not None:
            part = partial_mean + (split.to(tl.int64) * n + row)[:, None] * depth + column[None, :]
            mask = (split < splits)[:, None] & (column < depth)[None, :]
            merged += tl.sum(share[:, None] * tl.load(part, mask=mask, other=0.0), 0)
    tl.store(lse + row, anchor + tl.log2(total) * LN_2)
    if mean is not None:
        tl.store(mean + row * depth + column, merged * tl.where(total == 0, 0.0, 1 / total), mask=column < depth)


@triton.jit(do_not_specialize=["n", "m", "splits"])
def _sweep_queries(
    query, key, left_out, lowest, highest, row_ids, key_ids, offset, key_offset, weight, scale, grad,
    n, m, depth, padded, splits,
    KEPT: tl.constexpr, SWEPT: tl.constexpr, WIDTH: tl.constexpr, SHIFT: tl.constexpr, LEFT_OUT: tl.constexpr,
    PART_WIDTH: tl.constexpr,
):  # fmt: skip
    """Give a tile of keys the weighted queries of one split of the queries."""
    start = tl.program_id(0) * KEPT
    split = tl.program_id(1)
    column = start + tl.arange(0, KEPT)
    tile = _load_rows(key, start, m, depth, KEPT, WIDTH, PART_WIDTH)
    if row_ids is not None:
        column_id = tl.load(key_ids + column, mask=column < m, other=0)
    if key_offset is not None:
        above = tl.load(key_offset + column, mask=column < m, other=-INF)
        share_of_column = tl.load(weight + column, mask=column < m, other=0.0)
    total = tl.zeros([KEPT, WIDTH], tl.float32)
    steps = tl.cdiv(n, SWEPT)
    share = tl.cdiv(steps, splits)
    for step in range(split * share, tl.minimum(split * share + share, steps)):
        first = step * SWEPT
        row = first + tl.arange(0, SWEPT)
        swept = _load_rows(query, first, n, depth, SWEPT, WIDTH, PART_WIDTH)
        masked = tl.dot(tile, tl.trans(swept), input_precision="tf32")
        if key_offset is None:  # Masked are exponents then, which takes fewer registers; of two levels, the logits.
            masked = masked * LOG2_E + tl.load(offset + row)[None, :]
        for each in tl.static_range(LEFT_OUT):
            place = each * (padded // SWEPT) + step
            if (tl.load(lowest + place) < start + KEPT) & (tl.load(highest + place) >= start):
                other = tl.load(left_out + each * padded + row)
                masked = tl.where(column[:, None] == other[None, :], -INF, masked)
        if row_ids is not None:
            row_id = tl.load(row_ids + row, mask=row < n, other=0)
            masked = tl.where(column_id[:, None] == row_id[None, :], -INF, masked)
        if key_offset is None:
            power = tl.exp2(masked) * tl.load(weight + row)[None, :]
        else:
            power = tl.exp2(masked * LOG2_E + tl.load(offset + row)[None, :]) * tl.load(weight + row)[None, :]
            if first + SWEPT > n:  # Rows beyond the last have a logit, of zero.
                masked = tl.where((row < n)[None, :], masked, -INF)
            power += tl.exp2(masked * LOG2_E + above[:, None]) * share_of_column[:, None]
        total = tl.dot(power.to(swept.dtype), swept, total, input_precision="tf32")
    total = total * (0.5**SHIFT)
    if scale is not None:
        total = total * tl.load(scale)
    _store_rows(grad + split.to(tl.int64) * m * depth, total, start, m, depth, KEPT, WIDTH, PART_WIDTH)
