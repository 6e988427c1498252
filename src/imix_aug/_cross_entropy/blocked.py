"""The row log-sum-exp in plain torch, one tile of logits at a time: CPU, MPS, and CUDA without Triton.

A tile's logits are computed in base 2 (``exp2`` takes a third of ``exp``'s time), turned into ``2 ** (logit - peak)``
in place, and used up by the gradients' matrix products while they are in cache. Where the rows' lengths rule out large
logits, as they do at usual temperatures, the peak is zero and costs nothing. Else it is the row's largest logit so far;
what was summed before is rescaled when a later tile raises it.
"""

import math

import torch
from torch import Tensor

from imix_aug._cross_entropy.products import add_transposed_times, times_transposed

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
    dtype = torch.promote_types(query.dtype, torch.float32)
    lse = query.new_empty((query.shape[0], 1), dtype=dtype)
    query_grad = query.new_empty(query.shape, dtype=dtype) if want_query_grad else None
    key_grad = zeros_by_columns(key) if want_key_grad else None
    step = rows_per_tile(query.shape[0], key.shape[0])
    few_negatives = (
        () if negatives is None or len(negatives) == 0 else torch.split(negatives, max(1, NEGATIVE_TILE // step))
    )
    bounded = _is_bounded(query, key, negatives)

    for start in range(0, query.shape[0], step):
        part = slice(start, start + step)
        rows = query[part]
        peak = lse.new_full((rows.shape[0], 1), 0.0 if bounded else torch.finfo(dtype).min)
        powers, peak = _powers(rows, key, None if excluded is None else excluded[part], peak, bounded)
        total = powers.sum(dim=1, keepdim=True)
        powers = powers.to(key.dtype)
        row_grad = times_transposed(powers, key.t()) if want_query_grad else None

        key_peak = peak
        for few in few_negatives:
            others, raised = _powers(rows, few, None, peak, bounded)
            if raised is not peak:
                shrink = (peak - raised).exp2_()
                peak = raised
                total.mul_(shrink)
                if row_grad is not None:
                    row_grad.mul_(shrink)
            total.add_(others.sum(dim=1, keepdim=True))
            if row_grad is not None:
                row_grad.add_(times_transposed(others.to(few.dtype), few.t()))

        if query_grad is not None and row_grad is not None:
            torch.div(row_grad, total, out=query_grad[part])
        if key_grad is not None:
            weight = total.reciprocal() if key_peak is peak else (key_peak - peak).exp2_().div_(total)
            add_transposed_times(key_grad, powers, (rows * weight).to(rows.dtype))
        torch.add(peak, total.log2_(), out=lse[part])
    return lse.div_(LOG2_E)[:, 0], query_grad, None if key_grad is None else key_grad.contiguous()


def key_grad(query: Tensor, key: Tensor, excluded: Tensor | None, lse: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient in the keys of the log-sum-exps' weighted sum: sum_i weight_i softmax_ij query_i."""
    grad = zeros_by_columns(key)
    step = rows_per_tile(query.shape[0], key.shape[0])
    for start in range(0, query.shape[0], step):
        part = slice(start, start + step)
        rows = query[part]
        logits = _binary_logits(rows, key, None if excluded is None else excluded[part])
        softmax = logits.sub_(lse[part, None] * LOG2_E).exp2_()
        add_transposed_times(grad, softmax.to(key.dtype), (rows * weight[part, None]).to(rows.dtype))
    return grad.contiguous()


def zeros_by_columns(like: Tensor) -> Tensor:
    """Return zeros of the same shape in the dtype of sums, for ``add_transposed_times`` to add to."""
    return like.new_zeros(like.shape[::-1], dtype=torch.promote_types(like.dtype, torch.float32)).t()


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


def _powers(rows: Tensor, key: Tensor, excluded: Tensor | None, peak: Tensor, bounded: bool) -> tuple[Tensor, Tensor]:
    """Return 2 ** (logits - peak), and each row's peak, raised unless the logits are bounded."""
    logits = _binary_logits(rows, key, excluded)
    if bounded:
        return logits.exp2_(), peak
    peak = torch.maximum(peak, logits.amax(dim=1, keepdim=True))
    return logits.sub_(peak).exp2_(), peak


def _binary_logits(rows: Tensor, key: Tensor, excluded: Tensor | None) -> Tensor:
    logits = times_transposed(rows, key, LOG2_E)
    return logits if excluded is None else logits.scatter_(1, excluded, -math.inf)
