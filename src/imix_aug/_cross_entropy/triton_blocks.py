# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
"""The row log-sum-exp in blocks of bounded size over cuBLAS, for long rows and for full float32.

A sum of (rows x D) no longer fits the registers beside the logits when D passes 256, and tiling it would compute the
logits once for each tile. So a block of the softmax goes through memory instead, and cuBLAS multiplies it.

In bfloat16 the logits are computed twice, once for their log-sum-exp and once for the softmax: another product costs
2 D operations an element, less than writing, reading and rewriting a float32 logit (14 bytes) would take, and the
softmax is rounded only once. In float32 cuBLAS writes the logits themselves, and a small kernel turns them into the
softmax in place: a product outside cuBLAS would be several times slower in full float32 than these 16 bytes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from imix_aug._cross_entropy.triton_sweep import INF, LN_2, LOG2_E
from imix_aug._triton_launch import first_that_fits, on_device

# A block of 2 ** 29 bytes holds 4096 rows of 65,536 columns in bfloat16: adding up the key gradient once a block
# then moves 10 bytes for every 8192 operations.
_BLOCK_BYTES = 1 << 29

# (rows, columns, depth, warps, stages), the next one where shared memory does not suffice.
Tile = tuple[int, int, int, int, int]
TILES: list[Tile] = [(128, 256, 64, 8, 4), (128, 256, 64, 8, 3), (128, 128, 32, 4, 3), (64, 64, 32, 4, 2)]


def forward(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    excluded: Tensor | None,
    want_query_grad: bool,
    want_key_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the rows' log-sum-exp, its gradient in each query row, and the gradient of its sum in the keys."""
    query, key = query.contiguous(), key.contiguous()
    more = key[:0] if negatives is None else negatives.contiguous()
    (n, d), m = query.shape, len(key)
    lse = query.new_empty(n, dtype=torch.float32)
    query_grad = query.new_empty((n, d), dtype=torch.float32) if want_query_grad else None
    key_total = key.new_zeros((m, d), dtype=torch.float32) if want_key_grad else None
    want_softmax = want_query_grad or want_key_grad
    size = _block_size(m + len(more), query, n)
    buffer = query.new_empty((size, m + len(more))) if want_softmax or query.dtype == torch.float32 else None
    with on_device(query):
        for start in range(0, n, size):
            block = slice(start, min(start + size, n))
            rows, left_out = query[block], None if excluded is None else excluded[block]
            softmax = None if buffer is None else buffer[: len(rows)]
            if query.dtype == torch.float32:
                assert softmax is not None
                torch.mm(rows, key.T, out=softmax[:, :m])
                torch.mm(rows, more.T, out=softmax[:, m:])
                _softmax(softmax, left_out, lse[block], known=False, store=want_softmax)
            else:
                lse[block] = _log_sums(rows, key, more, left_out)
                if softmax is not None:
                    _fill_softmax(rows, key, left_out, lse[block], None, softmax[:, :m])
                    _fill_softmax(rows, more, None, lse[block], None, softmax[:, m:])
            if softmax is None:
                continue
            if query_grad is not None:
                query_grad[block] = softmax[:, :m] @ key
                if len(more):
                    _add_product(query_grad[block], softmax[:, m:], more)
            if key_total is not None:
                _add_product(key_total, softmax[:, :m].T, rows)
    return lse, query_grad, key_total


def key_grad(query: Tensor, key: Tensor, excluded: Tensor | None, lse: Tensor, weight: Tensor) -> Tensor:
    """Return ``sum_i weight_i softmax_ij query_i`` for each key j, block by block of the keys."""
    query, key, weight = query.contiguous(), key.contiguous(), weight.contiguous()
    n, m = len(query), len(key)
    grad = key.new_empty(key.shape, dtype=torch.float32)
    size = _block_size(n, query, m)
    buffer = query.new_empty(n * size)
    with on_device(query):
        for start in range(0, m, size):
            columns = key[start : start + size]
            softmax = buffer[: n * len(columns)].view(n, len(columns))
            if query.dtype == torch.float32:
                torch.mm(query, columns.T, out=softmax)
                _softmax(softmax, excluded, lse, weight, first=start, known=True, store=True)
            else:
                _fill_softmax(query, columns, excluded, lse, weight, softmax, first=start)
            grad[start : start + size] = softmax.T @ query
    return grad


def _block_size(length: int, rows: Tensor, most: int) -> int:
    """Return how many rows of this length make a block, in whole tiles."""
    size = _BLOCK_BYTES // (max(1, length) * rows.element_size())
    return max(1, min(most, size if size < 128 else size // 128 * 128))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _log_sums(query: Tensor, key: Tensor, more: Tensor, excluded: Tensor | None) -> Tensor:
    """Return the log-sum-exp of each row without storing a logit."""

    def launch(tile: Tile) -> Tensor:
        key_tiles, more_tiles = triton.cdiv(len(key), tile[1]), triton.cdiv(len(more), tile[1])
        sums = query.new_empty((len(query), key_tiles + more_tiles), dtype=torch.float32)
        _launch_tiles(tile, query, key, excluded, None, None, None, sums[:, :key_tiles])
        _launch_tiles(tile, query, more, None, None, None, None, sums[:, key_tiles:])
        return sums.logsumexp(dim=1)

    return first_that_fits(launch, TILES, "sums", query.device)


def _fill_softmax(
    query: Tensor,
    key: Tensor,
    excluded: Tensor | None,
    lse: Tensor,
    weight: Tensor | None,
    softmax: Tensor,
    *,
    first: int = 0,
) -> None:
    """Write the softmax of each row over these keys, whose log-sum-exp over all keys is known, times its weight."""
    first_that_fits(
        lambda tile: _launch_tiles(tile, query, key, excluded, lse, weight, softmax, None, first=first),
        TILES,
        "softmax",
        query.device,
    )


def _launch_tiles(
    tile: Tile,
    query: Tensor,
    key: Tensor,
    excluded: Tensor | None,
    lse: Tensor | None,
    weight: Tensor | None,
    softmax: Tensor | None,
    sums: Tensor | None,
    *,
    first: int = 0,
) -> None:
    rows, columns, depth, warps, stages = tile
    (n, d), m = query.shape, len(key)
    _logits_tile[triton.cdiv(n, rows) * triton.cdiv(m, columns),](
        query, key, excluded, lse, weight, softmax, sums,
        n, m, d, first, query.stride(0), key.stride(0),
        0 if softmax is None else softmax.stride(0), 0 if sums is None else sums.stride(0),
        ROWS=rows, COLUMNS=columns, DEPTH=depth, PART_DEPTH=d % depth != 0,
        EXCLUDED=0 if excluded is None else excluded.shape[1],
        num_warps=warps, num_stages=stages, enable_fp_fusion=True,
    )  # fmt: skip


def _softmax(
    logits: Tensor,
    excluded: Tensor | None,
    lse: Tensor,
    weight: Tensor | None = None,
    *,
    first: int = 0,
    known: bool,
    store: bool,
) -> None:
    """Find the log-sum-exp of each row unless it is known, and turn the logits into the softmax in place."""
    _softmax_row[len(logits),](
        logits, excluded, lse, weight, logits.shape[1], first, logits.stride(0),
        BLOCK=min(4096, max(16, triton.next_power_of_2(logits.shape[1]))),
        EXCLUDED=0 if excluded is None else excluded.shape[1],
        KNOWN=known, STORE=store, num_warps=8, enable_fp_fusion=True,
    )  # fmt: skip


@triton.jit
def _logits_tile(
    query, key, excluded, lse, weight, softmax, sums, n, m, d, first,
    query_stride, key_stride, softmax_stride, sums_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PART_DEPTH: tl.constexpr, EXCLUDED: tl.constexpr,
):  # fmt: skip
    """Compute a tile of logits, and store the log-sum-exps of its rows or, where these are known, its softmax."""
    # Eight tiles of rows share each tile of columns while it is in the second-level cache.
    tiles_down, tiles_across = tl.cdiv(n, ROWS), tl.cdiv(m, COLUMNS)
    program = tl.program_id(0)
    band = program // (8 * tiles_across) * 8
    height = tl.minimum(tiles_down - band, 8)
    down = band + program % (8 * tiles_across) % height
    across = program % (8 * tiles_across) // height

    row = down * ROWS + tl.arange(0, ROWS)
    column = across * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    # Rows beyond the last repeat it: they are computed and not stored, and need no mask in the loop.
    query_pointers = query + tl.minimum(row, n - 1).to(tl.int64)[:, None] * query_stride + depth[None, :]
    key_pointers = key + tl.minimum(column, m - 1).to(tl.int64)[None, :] * key_stride + depth[:, None]
    logits = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, d, DEPTH):
        if PART_DEPTH:
            query_tile = tl.load(query_pointers, mask=start + depth[None, :] < d, other=0.0)
            key_tile = tl.load(key_pointers, mask=start + depth[:, None] < d, other=0.0)
        else:
            query_tile = tl.load(query_pointers)
            key_tile = tl.load(key_pointers)
        logits = tl.dot(query_tile, key_tile, logits)
        query_pointers += DEPTH
        key_pointers += DEPTH

    logits = tl.where(column[None, :] < m, logits, -INF)
    for each in tl.static_range(EXCLUDED):
        left_out = tl.load(excluded + row.to(tl.int64) * EXCLUDED + each, mask=row < n, other=-1) - first
        logits = tl.where(column[None, :] == left_out[:, None], -INF, logits)
    if softmax is None:
        peak = tl.max(logits, 1)
        anchor = tl.where(tl.abs(peak) == INF, 0.0, peak)
        total = tl.sum(tl.exp2((logits - anchor[:, None]) * LOG2_E), 1)
        tl.store(sums + row.to(tl.int64) * sums_stride + across, anchor + tl.log2(total) * LN_2, mask=row < n)
    else:
        level = tl.load(lse + row, mask=row < n, other=INF)
        level = tl.where(level == -INF, INF, level) * LOG2_E
        share = tl.exp2(logits * LOG2_E - level[:, None])
        if weight is not None:
            share = share * tl.load(weight + row, mask=row < n, other=0.0)[:, None]
        pointers = softmax + row.to(tl.int64)[:, None] * softmax_stride + column[None, :]
        tl.store(pointers, share.to(softmax.dtype.element_ty), mask=(row < n)[:, None] & (column < m)[None, :])


@triton.jit
def _softmax_row(
    logits, excluded, lse, weight, columns, first, stride,
    BLOCK: tl.constexpr, EXCLUDED: tl.constexpr, KNOWN: tl.constexpr, STORE: tl.constexpr,
):  # fmt: skip
    """Turn a row of logits into its softmax, in place."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    offset = tl.arange(0, BLOCK)
    if KNOWN:
        level = tl.load(lse + row)
    else:
        peak = tl.full([], -INF, tl.float32)
        total = tl.zeros([], tl.float32)
        for start in range(0, columns, BLOCK):
            column = start + offset
            value = tl.load(logits + column, mask=column < columns, other=-INF)
            for each in tl.static_range(EXCLUDED):
                value = tl.where(column == tl.load(excluded + row * EXCLUDED + each) - first, -INF, value)
            higher = tl.maximum(peak, tl.max(value, 0))
            anchor = tl.where(tl.abs(higher) == INF, 0.0, higher)
            total = total * tl.exp2((peak - anchor) * LOG2_E) + tl.sum(tl.exp2((value - anchor) * LOG2_E), 0)
            peak = higher
        level = tl.where(tl.abs(peak) == INF, 0.0, peak) + tl.log2(total) * LN_2
        tl.store(lse + row, level)
    if STORE:
        level = tl.where(level == -INF, INF, level)
        factor = tl.full([], 1.0, tl.float32)
        if weight is not None:
            factor = tl.load(weight + row)
        for start in range(0, columns, BLOCK):
            column = start + offset
            value = tl.load(logits + column, mask=column < columns, other=-INF)
            for each in tl.static_range(EXCLUDED):
                value = tl.where(column == tl.load(excluded + row * EXCLUDED + each) - first, -INF, value)
            tl.store(logits + column, tl.exp2((value - level) * LOG2_E) * factor, mask=column < columns)
