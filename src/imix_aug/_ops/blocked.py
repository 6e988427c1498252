"""The row log-sum-exp in plain torch, one tile of logits at a time: CPU, MPS, and CUDA without Triton.

A tile's logits are computed in base 2 (``exp2`` takes a third of ``exp``'s time), turned into ``2 ** (logit - peak)``
in place, and used up by the gradients' matrix products while they are in cache. Where the rows' lengths rule out large
logits, as they do at usual temperatures, the peak is zero and costs nothing. Else it is the row's largest logit so far;
what was summed before is rescaled when a later tile raises it.
"""

import math

import torch
from torch import Tensor

LOG2_E = math.log2(math.e)

# Fewer rows make the products slower, on account of what they repack. A tile over the keys is as wide as the keys are
# many, since their gradient needs it whole: 2 ** 21 elements (8 MiB) stay in a usual last-level cache. A tile over the
# negatives is done with at once: 2 ** 19 elements (2 MiB) stay in the caches of two cores.
MAX_ROWS = 1024
MIN_ROWS = 128
KEY_TILE = 1 << 21
NEGATIVE_TILE = 1 << 19

# Logits up to this size need no peak taken off: their powers and those' sums are far from float32's ends.
SAFE_LOGIT = 40.0

_capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
_HAS_BFLOAT16_UNITS = any(_capabilities.get(unit, False) for unit in ("avx512_bf16", "amx_bf16", "bf16"))


def product_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what the CPU multiplies in: float32, exact and faster, where no unit takes the half precision."""
    if dtype == torch.float16 or (dtype == torch.bfloat16 and not _HAS_BFLOAT16_UNITS):
        return torch.float32
    return dtype


def forward(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    excluded: Tensor | None,
    want_query_grad: bool,
    want_key_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the rows' log-sum-exp, its gradient in each query row, and the gradient of its sum in the keys."""
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    lse = query.new_empty((query.shape[0], 1), dtype=dtype)
    query_grad = query.new_empty(query.shape, dtype=dtype) if want_query_grad else None
    key_grad = key.new_zeros(key.shape, dtype=dtype) if want_key_grad else None
    step = rows_per_tile(query.shape[0], key.shape[0])
    key_tile = lse.new_empty((step, key.shape[0]))
    few_negatives = (
        () if negatives is None or len(negatives) == 0 else torch.split(negatives, max(1, NEGATIVE_TILE // step))
    )
    negative_tile = lse.new_empty((step, few_negatives[0].shape[0])) if few_negatives else key_tile
    bounded = _is_bounded(query, key, negatives)

    for start in range(0, query.shape[0], step):
        stop = start + step
        rows = query[start:stop]
        peak = lse.new_full((rows.shape[0], 1), 0.0 if bounded else torch.finfo(dtype).min)
        powers, peak = _powers(rows, key, key_tile, None if excluded is None else excluded[start:stop], peak, bounded)
        total = powers.sum(dim=1, keepdim=True)
        row_grad = None if query_grad is None else query_grad[start:stop]
        if row_grad is not None:
            _multiply(row_grad, powers, key, beta=0)

        key_peak = peak
        for few in few_negatives:
            others, raised = _powers(rows, few, negative_tile, None, peak, bounded)
            if raised is not peak:
                shrink = (peak - raised).exp2_()
                peak = raised
                total.mul_(shrink)
                if row_grad is not None:
                    row_grad.mul_(shrink)
            total.add_(others.sum(dim=1, keepdim=True))
            if row_grad is not None:
                _multiply(row_grad, others, few, beta=1)

        if row_grad is not None:
            row_grad.div_(total)
        if key_grad is not None:
            weight = total.reciprocal() if key_peak is peak else (key_peak - peak).exp2_().div_(total)
            _multiply(key_grad, powers.t(), (rows * weight).to(rows.dtype), beta=1)
        torch.add(peak, total.log2_(), out=lse[start:stop])
    return lse.div_(LOG2_E)[:, 0], query_grad, key_grad


def key_grad(query: Tensor, key: Tensor, excluded: Tensor | None, lse: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient in the keys of the log-sum-exps' weighted sum: sum_i weight_i softmax_ij query_i."""
    grad = key.new_zeros(key.shape, dtype=lse.dtype)
    step = rows_per_tile(query.shape[0], key.shape[0])
    tile = grad.new_empty((step, key.shape[0]))
    for start in range(0, query.shape[0], step):
        stop = start + step
        rows = query[start:stop]
        logits = _multiply(tile[: rows.shape[0]], rows, key.t(), beta=0, alpha=LOG2_E)
        if excluded is not None:
            logits.scatter_(1, excluded[start:stop], -math.inf)
        softmax = logits.sub_(lse[start:stop, None] * LOG2_E).exp2_()
        _multiply(grad, softmax.t(), (rows * weight[start:stop, None]).to(rows.dtype), beta=1)
    return grad


def rows_per_tile(queries: int, keys: int) -> int:
    """Return how many rows of logits to hold at once."""
    return min(queries, MAX_ROWS, max(MIN_ROWS, KEY_TILE // max(1, keys)))


def _is_bounded(query: Tensor, *keys: Tensor | None) -> bool:
    """Say whether the rows' lengths rule out logits beyond ``SAFE_LOGIT``; on the CPU only, where asking is no wait."""
    if query.device.type != "cpu":
        return False
    lengths: list[float] = [
        torch.linalg.vector_norm(rows, dim=1, dtype=torch.promote_types(rows.dtype, torch.float32)).max().item()
        for rows in (query, *keys)
        if rows is not None and len(rows)
    ]
    longest_query, longest_key = lengths[0], max(lengths[1:])
    if not longest_query * longest_key <= SAFE_LOGIT:  # or no number
        return False
    # The gradients multiply powers by rows: those must stay clear of float32's ends too.
    return min(longest_query, longest_key) > 1e-12 and max(longest_query, longest_key) < 1e12


def _powers(
    rows: Tensor, key: Tensor, tile: Tensor, excluded: Tensor | None, peak: Tensor, bounded: bool
) -> tuple[Tensor, Tensor]:
    """Return 2 ** (logits - peak), in the tile's memory, and each row's peak, raised unless the logits are bounded."""
    tile = tile[: rows.shape[0]] if tile.shape[1] == key.shape[0] else tile[: rows.shape[0], : key.shape[0]]
    logits = _multiply(tile, rows, key.t(), beta=0, alpha=LOG2_E)
    if excluded is not None:
        logits.scatter_(1, excluded, -math.inf)
    if bounded:
        return logits.exp2_(), peak
    peak = torch.maximum(peak, logits.amax(dim=1, keepdim=True))
    return logits.sub_(peak).exp2_(), peak


def _multiply(out: Tensor, left: Tensor, right: Tensor, *, beta: int, alpha: float = 1.0) -> Tensor:
    """Put ``alpha * left @ right + beta * out`` into ``out``, multiplying in the dtype of the queries and keys."""
    dtype = right.dtype
    if dtype == out.dtype:
        return torch.addmm(out, left, right, beta=beta, alpha=alpha, out=out)
    product = torch.mm(left.to(dtype), right).to(out.dtype)
    return out.mul_(beta).add_(product, alpha=alpha) if beta else torch.mul(product, alpha, out=out)
