# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
"""The row log-sum-exp in one fused sweep, for rows short enough that a tile of them stays on the chip.

Each program keeps a tile of rows of one side and sweeps over the rows of the other: queries over keys for the
log-sum-exp and its query gradient, keys over queries for the key gradient. A swept tile is loaded once and enters two
matrix products, the logits and the weighted sum, so that no logit leaves the chip. Where one side has too few tiles to
fill the card, each sweep is split between programs and their partial results are merged.
"""

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from imix_aug._triton_launch import first_that_fits, multiprocessors, on_device

LOG2_E = tl.constexpr(math.log2(math.e))
LN_2 = tl.constexpr(math.log(2))
INF = tl.constexpr(math.inf)

MAX_DIM = 256

# (rows kept, rows swept, warps, stages) by (D at most, bytes an element), the preferred one first; the next is taken
# where shared memory does not suffice. The sum kept is (rows kept x D) float32 in registers: with 8 warps 64 a thread
# for 128 x 128, and as many for the logits; at D = 256 it takes 128, which leaves room for half the logits. 128 rows
# kept do 256 operations for each byte swept in 16 bits: 600 TFLOP/s then ask 2.3 TB/s of the second-level cache.
Tile = tuple[int, int, int, int]
TILES: dict[tuple[int, int], list[Tile]] = {
    (64, 2): [(128, 128, 8, 3), (128, 64, 4, 2), (64, 32, 4, 2)],
    (128, 2): [(128, 128, 8, 2), (128, 64, 8, 2), (64, 32, 4, 2)],
    (256, 2): [(128, 64, 8, 2), (64, 32, 4, 2), (32, 32, 4, 1)],
    (64, 4): [(128, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2)],
    (128, 4): [(128, 64, 8, 2), (64, 32, 4, 2), (32, 32, 4, 1)],
    (256, 4): [(64, 32, 8, 2), (32, 32, 4, 1), (16, 16, 4, 1)],
}


def row_logsumexp(
    query: Tensor, key: Tensor, negatives: Tensor | None, excluded: Tensor | None, want_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the rows' log-sum-exp and, if wanted, its gradient in each query row: the softmax-weighted keys."""
    query, key = _unit_stride(query), _unit_stride(key)
    more = key[:0] if negatives is None else _unit_stride(negatives)
    (n, d), m, k = query.shape, len(key), len(more)
    lse = query.new_empty(n, dtype=torch.float32)
    grad = query.new_empty((n, d), dtype=torch.float32) if want_grad else None
    width, case = _width(d), (max(64, _width(d)), query.element_size())

    def launch(tile: Tile) -> None:
        kept, swept, warps, stages = tile
        tiles = triton.cdiv(n, kept)
        splits = _splits(tiles, triton.cdiv(m, swept) + triton.cdiv(k, swept), multiprocessors(query.device))
        partial_lse = lse if splits == 1 else lse.new_empty((splits, n))
        partial_grad = grad if grad is None or splits == 1 else grad.new_empty((splits, n, d))
        _sweep_keys[tiles, splits](
            query, key, more, excluded, partial_lse, partial_grad,
            n, m, k, d, query.stride(0), key.stride(0), more.stride(0), splits,
            KEPT=kept, SWEPT=swept, WIDTH=width, SHIFT=_shift(query),
            EXCLUDED=_columns(excluded),
            PART_WIDTH=width != d, PART_KEYS=m % swept != 0, PART_MORE=k % swept != 0,
            num_warps=warps, num_stages=stages, enable_fp_fusion=True,
        )  # fmt: skip
        if splits > 1:
            _merge[n,](
                partial_lse, partial_grad, lse, grad, n, d, splits,
                SPLITS=triton.next_power_of_2(splits), WIDTH=width, num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip

    with on_device(query):
        first_that_fits(launch, _tiles(case, query.device), "keys", query.device, case)
    return lse, grad


def key_grad(query: Tensor, key: Tensor, excluded: Tensor | None, lse: Tensor, weight: Tensor | None) -> Tensor:
    """Return ``sum_i weight_i softmax_ij query_i`` for each key j; without weights, all of them are one."""
    query, key = _unit_stride(query), _unit_stride(key)
    (n, d), m = query.shape, len(key)
    scale = None
    if weight is not None:
        # Weights such as 1 / N would underflow in float16, so the products see them in units of the largest one.
        scale = weight.abs().amax()
        weight = (weight / torch.where(scale == 0, 1, scale)).contiguous()
    width, case = _width(d), (max(64, _width(d)), query.element_size())

    def launch(tile: Tile) -> Tensor:
        kept, swept, warps, stages = tile
        tiles = triton.cdiv(m, kept)
        splits = _splits(tiles, triton.cdiv(n, swept), multiprocessors(query.device))
        partial = key.new_empty((splits, m, d), dtype=torch.float32)
        _sweep_queries[tiles, splits](
            query, key, excluded, lse, weight, scale, partial,
            n, m, d, query.stride(0), key.stride(0), splits,
            KEPT=kept, SWEPT=swept, WIDTH=width, SHIFT=_shift(query),
            EXCLUDED=_columns(excluded), PART_WIDTH=width != d, PART_ROWS=n % swept != 0,
            num_warps=warps, num_stages=stages, enable_fp_fusion=True,
        )  # fmt: skip
        return partial[0] if splits == 1 else partial.sum(dim=0)

    with on_device(query):
        return first_that_fits(launch, _tiles(case, query.device), "queries", query.device, case)


def _tiles(case: tuple[int, int], device: torch.device) -> list[Tile]:
    """Return the tiles to try; before Hopper operands take registers too, and the first tiles would spill theirs."""
    hopper = device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)
    return TILES[case] if hopper else TILES[case][1:]


def _unit_stride(rows: Tensor) -> Tensor:
    """Copy rows whose elements lie apart: one pass over (N, D) buys whole words in every sweep."""
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _width(d: int) -> int:
    """Return the tile's columns: a power of two, and no less than a matrix product takes."""
    width: int = max(16, triton.next_power_of_2(d))
    return width


def _shift(rows: Tensor) -> int:
    """A softmax over many keys falls below float16's normal numbers, so it enters the products times 2 ** shift."""
    return 15 if rows.dtype == torch.float16 else 0


def _columns(excluded: Tensor | None) -> int:
    return 0 if excluded is None else excluded.shape[1]


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
    rows, stride, start, count, d,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, PART_ROWS: tl.constexpr, PART_WIDTH: tl.constexpr,
):  # fmt: skip
    """Load a tile of rows, zero beyond the last row and column. Only the tile's start takes 64 bits."""
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    pointers = rows + tl.cast(start, tl.int64) * stride + (row * stride + column)
    if PART_ROWS and PART_WIDTH:
        tile = tl.load(pointers, mask=(start + row < count) & (column < d), other=0.0)
    elif PART_ROWS:
        tile = tl.load(pointers, mask=start + row < count, other=0.0)
    elif PART_WIDTH:
        tile = tl.load(pointers, mask=column < d, other=0.0)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def _store_rows(pointer, tile, start, count, d, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Store a tile of float32 rows that lie d apart."""
    row = start + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    tl.store(pointer + (row.to(tl.int64) * d + column), tile, mask=(row < count) & (column < d))


@triton.jit
def _absorb(
    query, peak, total, grad, keys, excluded, stride, first, last, n, count, d, row,
    SWEPT: tl.constexpr, WIDTH: tl.constexpr, SHIFT: tl.constexpr, EXCLUDED: tl.constexpr,
    PART_WIDTH: tl.constexpr, PART_KEYS: tl.constexpr, WANT_GRAD: tl.constexpr,
):  # fmt: skip
    """Add the keys of the steps first to last to the running softmax: its peak, its total, its weighted keys."""
    for step in range(first, last):
        start = step * SWEPT
        key = _load_rows(keys, stride, start, count, d, SWEPT, WIDTH, PART_KEYS, PART_WIDTH)
        logits = tl.dot(query, tl.trans(key), input_precision="tf32")
        column = start + tl.arange(0, SWEPT)
        if PART_KEYS:
            logits = tl.where(column[None, :] < count, logits, -INF)
        for each in tl.static_range(EXCLUDED):
            left_out = tl.load(excluded + row.to(tl.int64) * EXCLUDED + each, mask=row < n, other=-1)
            logits = tl.where(column[None, :] == left_out[:, None], -INF, logits)
        # A maximum passes over NaN; the total below does not. With an infinite peak, whose difference from itself
        # would be NaN, nothing is subtracted: exp2 gives the right zeros and infinities as it stands.
        higher = tl.maximum(peak, tl.max(logits, 1))
        anchor = tl.where(tl.abs(higher) == INF, 0.0, higher * LOG2_E)
        weight = tl.exp2(logits * LOG2_E - (anchor - SHIFT)[:, None])
        fade = tl.exp2(peak * LOG2_E - anchor)
        total = total * fade + tl.sum(weight, 1)
        if WANT_GRAD:
            grad = tl.dot(weight.to(key.dtype), key, grad * fade[:, None], input_precision="tf32")
        peak = higher
    return peak, total, grad


@triton.jit
def _sweep_keys(
    query, key, more, excluded, lse, grad, n, m, k, d, query_stride, key_stride, more_stride, splits,
    KEPT: tl.constexpr, SWEPT: tl.constexpr, WIDTH: tl.constexpr, SHIFT: tl.constexpr, EXCLUDED: tl.constexpr,
    PART_WIDTH: tl.constexpr, PART_KEYS: tl.constexpr, PART_MORE: tl.constexpr,
):  # fmt: skip
    """Give a tile of queries the log-sum-exp and the softmax-weighted keys of one split of the keys."""
    start = tl.program_id(0) * KEPT
    split = tl.program_id(1)
    row = start + tl.arange(0, KEPT)
    tile = _load_rows(query, query_stride, start, n, d, KEPT, WIDTH, True, PART_WIDTH)
    peak = tl.full([KEPT], -INF, tl.float32)
    total = tl.zeros([KEPT], tl.float32)
    weighted = tl.zeros([KEPT, WIDTH], tl.float32)

    key_steps = tl.cdiv(m, SWEPT)
    steps = key_steps + tl.cdiv(k, SWEPT)
    share = tl.cdiv(steps, splits)
    first = split * share
    last = tl.minimum(first + share, steps)
    peak, total, weighted = _absorb(
        tile, peak, total, weighted, key, excluded, key_stride, first, tl.minimum(last, key_steps), n, m, d, row,
        SWEPT, WIDTH, SHIFT, EXCLUDED, PART_WIDTH, PART_KEYS, grad is not None,
    )  # fmt: skip
    peak, total, weighted = _absorb(
        tile, peak, total, weighted, more, None, more_stride, tl.maximum(first - key_steps, 0), last - key_steps,
        n, k, d, row, SWEPT, WIDTH, SHIFT, 0, PART_WIDTH, PART_MORE, grad is not None,
    )  # fmt: skip

    anchor = tl.where(tl.abs(peak) == INF, 0.0, peak)
    result = anchor + (tl.log2(total) - SHIFT) * LN_2
    tl.store(lse + split.to(tl.int64) * n + row, result, mask=row < n)
    if grad is not None:
        weighted = weighted * tl.where(total == 0, 0.0, 1 / total)[:, None]
        _store_rows(grad + split.to(tl.int64) * n * d, weighted, start, n, d, KEPT, WIDTH)


@triton.jit
def _merge(partial_lse, partial_grad, lse, grad, n, d, splits, SPLITS: tl.constexpr, WIDTH: tl.constexpr):
    """Merge the splits of one row: each counts by its share of the total."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    logs = tl.load(partial_lse + split * n + row, mask=split < splits, other=-INF)
    peak = tl.max(logs, 0)
    anchor = tl.where(tl.abs(peak) == INF, 0.0, peak)
    whole = anchor + tl.log2(tl.sum(tl.exp2((logs - anchor) * LOG2_E), 0)) * LN_2
    tl.store(lse + row, whole)
    if grad is not None:
        column = tl.arange(0, WIDTH)
        total = tl.zeros([WIDTH], tl.float32)
        anchor = tl.where(whole == -INF, 0.0, whole)
        for each in range(splits):
            share = tl.exp2((tl.load(partial_lse + tl.cast(each, tl.int64) * n + row) - anchor) * LOG2_E)
            part = partial_grad + (tl.cast(each, tl.int64) * n + row) * d + column
            total += share * tl.load(part, mask=column < d, other=0.0)
        tl.store(grad + row * d + column, total, mask=column < d)


@triton.jit
def _sweep_queries(
    query, key, excluded, lse, weight, scale, grad, n, m, d, query_stride, key_stride, splits,
    KEPT: tl.constexpr, SWEPT: tl.constexpr, WIDTH: tl.constexpr, SHIFT: tl.constexpr, EXCLUDED: tl.constexpr,
    PART_WIDTH: tl.constexpr, PART_ROWS: tl.constexpr,
):  # fmt: skip
    """Give a tile of keys the softmax-weighted queries of one split of the queries."""
    start = tl.program_id(0) * KEPT
    split = tl.program_id(1)
    column = start + tl.arange(0, KEPT)
    tile = _load_rows(key, key_stride, start, m, d, KEPT, WIDTH, True, PART_WIDTH)
    total = tl.zeros([KEPT, WIDTH], tl.float32)
    share = tl.cdiv(tl.cdiv(n, SWEPT), splits)
    for step in range(split * share, tl.minimum(split * share + share, tl.cdiv(n, SWEPT))):
        first = step * SWEPT
        row = first + tl.arange(0, SWEPT)
        rows = _load_rows(query, query_stride, first, n, d, SWEPT, WIDTH, PART_ROWS, PART_WIDTH)
        logits = tl.dot(tile, tl.trans(rows), input_precision="tf32")
        # Rows beyond the last, and rows without a single column, get an infinite log-sum-exp: softmax zero.
        level = tl.load(lse + row, mask=row < n, other=INF)
        level = tl.where(level == -INF, INF, level) * LOG2_E
        softmax = tl.exp2(logits * LOG2_E - (level - SHIFT)[None, :])
        for each in tl.static_range(EXCLUDED):
            left_out = tl.load(excluded + row.to(tl.int64) * EXCLUDED + each, mask=row < n, other=-1)
            softmax = tl.where(column[:, None] == left_out[None, :], 0.0, softmax)
        if weight is not None:
            softmax = softmax * tl.load(weight + row, mask=row < n, other=0.0)[None, :]
        total = tl.dot(softmax.to(rows.dtype), rows, total, input_precision="tf32")
    total = total * (0.5**SHIFT)
    if scale is not None:
        total = total * tl.load(scale)
    _store_rows(grad + split.to(tl.int64) * m * d, total, start, m, d, KEPT, WIDTH)
