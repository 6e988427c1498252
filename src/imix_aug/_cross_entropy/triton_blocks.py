# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
"""Both sweeps in blocks of bounded size over cuBLAS, for long rows and for full float32.

A sum of (rows x D) no longer fits the registers beside the logits when D passes 256, and tiling it would compute the
logits once for each tile. So a block of the softmax goes through memory instead, and cuBLAS multiplies it.

In bfloat16 the logits are computed twice, once for their log-sum-exp and once for the softmax: another product costs
2 D operations per element, less than writing, reading and rewriting a float32 logit (14 bytes) would take, and the
softmax is rounded only once. In float32 cuBLAS writes the logits themselves, and a small kernel turns them into the
softmax in place: a product outside cuBLAS would be several times slower in full float32 than these 16 bytes.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from imix_aug._cross_entropy.columns import LeftOut
from imix_aug._cross_entropy.triton_sweep import INF, LN_2, LOG2_E, packed
from imix_aug._cross_entropy.triton_tiles import BlockTile, tiles_for_blocks
from imix_aug._triton_launch import capability, first_that_fits, on_device

# A block of 2 ** 29 bytes holds 4096 rows of 65,536 columns in bfloat16: adding up the key gradient once per block
# then moves 10 bytes for every 8192 operations.
_BLOCK_BYTES = 1 << 29


class _Without(NamedTuple):
    """What some rows leave out among some columns.

    Attributes:
        columns: ``(rows, E)`` int32, by number.
        row_ids: ``(rows,)``.
        column_ids: ``(columns,)``; columns further on have none.
    """

    columns: Tensor | None = None
    row_ids: Tensor | None = None
    column_ids: Tensor | None = None

    def of_rows(self, part: slice) -> "_Without":
        columns, row_ids = (None if each is None else each[part] for each in self[:2])
        return _Without(columns, row_ids, self.column_ids)

    @classmethod
    def of(cls, left_out: LeftOut, *ids: Tensor | None) -> "_Without":
        columns = left_out.columns
        columns = None if columns is None else columns.to(torch.int32).contiguous()
        if left_out.row_ids is None or ids[0] is None:
            return cls(columns)
        known = [each for each in ids if each is not None]
        return cls(
            columns, left_out.row_ids.contiguous(), known[0].contiguous() if len(known) == 1 else torch.cat(known)
        )


def sweep_keys(
    query: Tensor, key: Tensor, negatives: Tensor | None, left_out: LeftOut, wants_mean: bool
) -> tuple[Tensor, Tensor | None]:
    """Return each row's log-sum-exp over all columns that it does not leave out, and its softmax-weighted mean key."""
    d = query.shape[1]
    query, key = _prepared(query), _prepared(key)
    negatives = key[:0] if negatives is None else _prepared(negatives)
    n, m, k = len(query), len(key), len(negatives)
    lse = query.new_empty(n, dtype=torch.float32)
    mean = torch.empty_like(query, dtype=torch.float32) if wants_mean else None
    # Keys, then negatives, each from a multiple of 16 columns on.
    start_of_negatives = _rounded(m)
    length = start_of_negatives + k
    size = _block_size(_rounded(length), query, n)
    in_full = query.dtype == torch.float32
    buffer = query.new_empty((size, _rounded(length))) if wants_mean or in_full else None
    gap = key.new_zeros(start_of_negatives - m, dtype=torch.int64)
    without_keys = _Without.of(left_out, left_out.key_ids)
    without_negatives = _Without.of(left_out._replace(columns=None), left_out.negative_ids if k else None)
    without_any = without_keys
    if in_full and without_negatives.column_ids is not None:
        without_any = _Without.of(left_out, left_out.key_ids, gap, left_out.negative_ids)
    with on_device(query):
        for start in range(0, n, size):
            block = slice(start, min(start + size, n))
            queries = query[block]
            softmax = None if buffer is None else buffer[: len(queries), :length]
            if in_full:
                assert softmax is not None
                torch.mm(queries, key.T, out=softmax[:, :m])
                softmax[:, m:start_of_negatives] = -math.inf
                torch.mm(queries, negatives.T, out=softmax[:, start_of_negatives:])
                _softmax(softmax, without_any.of_rows(block), lse[block], known=False, store=wants_mean)
            else:
                parts = [(key, without_keys.of_rows(block)), (negatives, without_negatives.of_rows(block))]
                lse[block] = _log_sums(queries, parts)
                if softmax is not None:
                    for (columns, without), place in zip(
                        parts, (softmax, softmax[:, start_of_negatives:]), strict=True
                    ):
                        _fill_softmax(queries, columns, without, lse[block], None, place[:, : len(columns)])
            if mean is not None and softmax is not None:
                mean[block] = softmax[:, :m] @ key
                if k:
                    _add_product(mean[block], softmax[:, start_of_negatives:], negatives)
    return lse, None if mean is None else mean[:, :d]


def sweep_queries(
    query: Tensor, key: Tensor, left_out: LeftOut, level: Tensor, weight: Tensor, key_level: Tensor | None = None
) -> Tensor:
    """Do as ``triton.sweep_queries`` does, block by block of the keys."""
    d = query.shape[1]
    query, key, level, weight = _prepared(query), _prepared(key), level.contiguous(), weight.contiguous()
    n, m = len(query), len(key)
    grad = torch.empty_like(key, dtype=torch.float32)
    size = _block_size(n, query, m)
    buffer = query.new_empty(n * _rounded(size))
    without = _Without.of(left_out, left_out.key_ids)
    with on_device(query):
        for start in range(0, m, size):
            columns = key[start : start + size]
            count = len(columns)
            softmax = buffer[: n * _rounded(count)].view(n, -1)[:, :count]
            here = without
            if without.column_ids is not None:
                here = without._replace(column_ids=without.column_ids[start : start + size])
            own_level = None if key_level is None else key_level[start : start + size]
            if query.dtype == torch.float32:
                torch.mm(query, columns.T, out=softmax)
                _softmax(softmax, here, level, weight, own_level, first=start, known=True, store=True)
            else:
                _fill_softmax(query, columns, here, level, weight, softmax, own_level, first=start)
            grad[start : start + size] = softmax.T @ query
    return grad[:, :d]


def _prepared(rows: Tensor) -> Tensor:
    """Pack the rows, and widen float16, whose range neither a softmax nor a sum over many queries respects.

    TF32, where it is allowed, holds every float16 number exactly.
    """
    return packed(rows.float() if rows.dtype == torch.float16 else rows)


def _rounded(count: int) -> int:
    """Return the next multiple of 16: rows of a block that begin there are read and written in whole words."""
    return -(-count // 16) * 16


def _block_size(length: int, rows: Tensor, most: int) -> int:
    """Return how many rows of this length make a block, in whole tiles."""
    size = _BLOCK_BYTES // (max(1, length) * rows.element_size())
    return max(1, min(most, size if size < 128 else size // 128 * 128))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _log_sums(query: Tensor, parts: list[tuple[Tensor, _Without]]) -> Tensor:
    """Return the log-sum-exp of each row without storing a logit."""

    def launch(tile: BlockTile) -> Tensor:
        tiles = [triton.cdiv(len(key), tile.columns) for key, _ in parts]
        sums = query.new_empty((len(query), sum(tiles)), dtype=torch.float32)
        for (key, without), places in zip(parts, torch.split(sums, tiles, dim=1), strict=True):
            _launch_tiles(tile, query, key, without, None, None, None, places)
        return sums.logsumexp(dim=1)

    return first_that_fits(launch, tiles_for_blocks(capability(query.device)), "sums", query.device)


def _fill_softmax(
    query: Tensor,
    key: Tensor,
    without: _Without,
    level: Tensor,
    weight: Tensor | None,
    softmax: Tensor,
    key_level: Tensor | None = None,
    *,
    first: int = 0,
) -> None:
    """Write the softmax of each row over these keys, whose log-sum-exp over all keys is known, times its weight.

    Keys with a level of their own add their softmax over all rows, times their weight.
    """
    first_that_fits(
        lambda tile: _launch_tiles(tile, query, key, without, level, weight, softmax, None, key_level, first=first),
        tiles_for_blocks(capability(query.device)),
        "softmax",
        query.device,
    )


def _launch_tiles(
    tile: BlockTile,
    query: Tensor,
    key: Tensor,
    without: _Without,
    level: Tensor | None,
    weight: Tensor | None,
    softmax: Tensor | None,
    sums: Tensor | None,
    key_level: Tensor | None = None,
    *,
    first: int = 0,
) -> None:
    rows, columns, depth, warps, stages = tile
    (n, d), m = query.shape, len(key)
    if n == 0 or m == 0:
        return
    _logits_tile[triton.cdiv(n, rows) * triton.cdiv(m, columns),](
        query, key, *without, level, weight, key_level, softmax, sums, n, m, d, first,
        0 if softmax is None else softmax.stride(0), 0 if sums is None else sums.stride(0),
        ROWS=rows, COLUMNS=columns, DEPTH=depth, PART_DEPTH=d % depth != 0,
        LEFT_OUT=0 if without.columns is None else without.columns.shape[1],
        num_warps=warps, num_stages=stages, enable_fp_fusion=True,
    )  # fmt: skip


def _softmax(
    logits: Tensor,
    without: _Without,
    level: Tensor,
    weight: Tensor | None = None,
    key_level: Tensor | None = None,
    *,
    first: int = 0,
    known: bool,
    store: bool,
) -> None:
    """Find the log-sum-exp of each row unless it is known, and turn the logits into the softmax in place."""
    if logits.numel() == 0:
        if not known:
            level.fill_(-math.inf)
        return
    _softmax_row[len(logits),](
        logits, *without, level, weight, key_level, logits.shape[1], first, logits.stride(0),
        0 if without.column_ids is None else len(without.column_ids),
        BLOCK=4096 if logits.shape[1] > 1024 else 1024,
        LEFT_OUT=0 if without.columns is None else without.columns.shape[1],
        KNOWN=known, STORE=store, num_warps=8, enable_fp_fusion=True,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n", "m", "first", "sums_stride"])
def _logits_tile(
    query, key, left_out, row_ids, key_ids, level, weight, key_level, softmax, sums, n, m, depth, first,
    softmax_stride, sums_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PART_DEPTH: tl.constexpr, LEFT_OUT: tl.constexpr,
):  # fmt: skip
    """Compute a tile of logits, and store the log-sum-exps of its rows or, where their level is known, its softmax."""
    # Eight tiles of rows share each tile of columns while it is in the second-level cache.
    tiles_down, tiles_across = tl.cdiv(n, ROWS), tl.cdiv(m, COLUMNS)
    program = tl.program_id(0)
    band = program // (8 * tiles_across) * 8
    height = tl.minimum(tiles_down - band, 8)
    down = band + program % (8 * tiles_across) % height
    across = program % (8 * tiles_across) // height

    row = down * ROWS + tl.arange(0, ROWS)
    column = across * COLUMNS + tl.arange(0, COLUMNS)
    place = tl.arange(0, DEPTH)
    # Rows beyond the last repeat it: they are computed and not stored, and need no mask in the loop.
    query_pointers = query + tl.minimum(row, n - 1).to(tl.int64)[:, None] * depth + place[None, :]
    key_pointers = key + tl.minimum(column, m - 1).to(tl.int64)[None, :] * depth + place[:, None]
    logits = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, depth, DEPTH):
        if PART_DEPTH:
            query_tile = tl.load(query_pointers, mask=start + place[None, :] < depth, other=0.0)
            key_tile = tl.load(key_pointers, mask=start + place[:, None] < depth, other=0.0)
        else:
            query_tile = tl.load(query_pointers)
            key_tile = tl.load(key_pointers)
        logits = tl.dot(query_tile, key_tile, logits)
        query_pointers += DEPTH
        key_pointers += DEPTH

    logits = tl.where(column[None, :] < m, logits, -INF)
    for each in tl.static_range(LEFT_OUT):
        other = tl.load(left_out + row.to(tl.int64) * LEFT_OUT + each, mask=row < n, other=-1) - first
        logits = tl.where(column[None, :] == other[:, None], -INF, logits)
    if row_ids is not None:
        row_id = tl.load(row_ids + row, mask=row < n, other=0)
        key_id = tl.load(key_ids + column, mask=column < m, other=0)
        logits = tl.where(row_id[:, None] == key_id[None, :], -INF, logits)
    if softmax is None:
        peak = tl.max(logits, 1)
        anchor = tl.where(tl.abs(peak) == INF, 0.0, peak)
        total = tl.sum(tl.exp2((logits - anchor[:, None]) * LOG2_E), 1)
        tl.store(sums + row.to(tl.int64) * sums_stride + across, anchor + tl.log2(total) * LN_2, mask=row < n)
    else:
        height_of_row = tl.load(level + row, mask=row < n, other=INF)
        height_of_row = tl.where(height_of_row == -INF, INF, height_of_row)
        share = tl.exp2((logits - height_of_row[:, None]) * LOG2_E)
        if weight is not None:
            share = share * tl.load(weight + row, mask=row < n, other=0.0)[:, None]
        if key_level is not None:
            height_of_column = tl.load(key_level + column, mask=column < m, other=INF)
            weight_of_column = tl.load(weight + first + column, mask=column < m, other=0.0)
            share += tl.exp2((logits - height_of_column[None, :]) * LOG2_E) * weight_of_column[None, :]
        pointers = softmax + row.to(tl.int64)[:, None] * softmax_stride + column[None, :]
        tl.store(pointers, share.to(softmax.dtype.element_ty), mask=(row < n)[:, None] & (column < m)[None, :])


@triton.jit
def _visible(
    value, column, row, left_out, row_ids, column_ids, first, identified, LEFT_OUT: tl.constexpr
):  # fmt: skip
    """Mask what the row leaves out."""
    for each in tl.static_range(LEFT_OUT):
        value = tl.where(column == tl.load(left_out + row * LEFT_OUT + each) - first, -INF, value)
    if row_ids is not None:
        known = column < identified
        same = tl.load(column_ids + column, mask=known, other=0) == tl.load(row_ids + row)
        value = tl.where(known & same, -INF, value)
    return value


@triton.jit(do_not_specialize=["columns", "first", "identified"])
def _softmax_row(
    logits, left_out, row_ids, column_ids, level, weight, key_level, columns, first, stride, identified,
    BLOCK: tl.constexpr, LEFT_OUT: tl.constexpr, KNOWN: tl.constexpr, STORE: tl.constexpr,
):  # fmt: skip
    """Turn a row of logits into its softmax, in place."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    offset = tl.arange(0, BLOCK)
    if KNOWN:
        height = tl.load(level + row)
    else:
        peak = tl.full([], -INF, tl.float32)
        total = tl.zeros([], tl.float32)
        for start in range(0, columns, BLOCK):
            column = start + offset
            value = tl.load(logits + column, mask=column < columns, other=-INF)
            value = _visible(value, column, row, left_out, row_ids, column_ids, first, identified, LEFT_OUT)
            higher = tl.maximum(peak, tl.max(value, 0))
            anchor = tl.where(tl.abs(higher) == INF, 0.0, higher)
            total = total * tl.exp2((peak - anchor) * LOG2_E) + tl.sum(tl.exp2((value - anchor) * LOG2_E), 0)
            peak = higher
        height = tl.where(tl.abs(peak) == INF, 0.0, peak) + tl.log2(total) * LN_2
        tl.store(level + row, height)
    if STORE:
        height = tl.where(height == -INF, INF, height)
        factor = tl.full([], 1.0, tl.float32)
        if weight is not None:
            factor = tl.load(weight + row)
        for start in range(0, columns, BLOCK):
            column = start + offset
            value = tl.load(logits + column, mask=column < columns, other=-INF)
            value = _visible(value, column, row, left_out, row_ids, column_ids, first, identified, LEFT_OUT)
            share = tl.exp2((value - height) * LOG2_E) * factor
            if key_level is not None:
                height_of_column = tl.load(key_level + column, mask=column < columns, other=INF)
                weight_of_column = tl.load(weight + first + column, mask=column < columns, other=0.0)
                share += tl.exp2((value - height_of_column) * LOG2_E) * weight_of_column
            tl.store(logits + column, share, mask=column < columns)
