"""The soft cross-entropy in plain torch, one tile of logits at a time: CPU, MPS, and CUDA without Triton.

A tile's logits are computed in base 2 (``exp2`` takes less time than ``exp``), turned into ``2 ** (logit - peak)`` in
place, made softmax minus label, and used up by the gradients' matrix products while they are in cache. Where the rows'
lengths rule out large logits, as they do at usual temperatures, the peak is zero and costs nothing.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from imix_aug._cross_entropy.columns import LeftOut, Positives
from imix_aug._cross_entropy.positives import Found, add_key_grad, add_query_grad, balance, dots
from imix_aug._cross_entropy.products import add_transposed_times, times_transposed

LOG2_E = math.log2(math.e)

# Fewer rows make the products slower, on account of what they repack. A tile over the keys is as wide as the keys are
# many, since their gradient needs it whole: 2 ** 21 elements (8 MiB) stay in a usual last-level cache. A tile over the
# negatives is done with at once: 2 ** 19 elements (2 MiB) stay in the caches of two cores.
MAX_ROWS = 1024
MIN_ROWS = 128
KEY_TILE = 1 << 21
NEGATIVE_TILE = 1 << 19

# Up to here neither the powers of logits nor their sums and quotients can overflow or underflow, so no peak is needed.
SAFE_LOGIT = 32.0

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
    positives: Positives,
    left_out: LeftOut,
    further: Tensor | None,
    weight: Tensor | None,
    wants_query_grad: bool,
    wants_key_grad: bool,
) -> tuple[Found, Tensor | None]:
    """Return the losses and their gradient in each query row, and the gradient of their weighted sum in the keys."""
    dtype, n = torch.promote_types(query.dtype, torch.float32), query.shape[0]
    loss, level = (query.new_empty(n, dtype=dtype) for _ in range(2))
    logits, excess = (query.new_empty(positives.columns.shape, dtype=dtype) for _ in range(2))
    query_grad = query.new_empty(query.shape, dtype=dtype) if wants_query_grad else None
    key_grad = zeros_by_columns(key) if wants_key_grad else None
    in_half = dtype != query.dtype  # Then the positives' share of the gradients, often the largest, is not rounded.
    tiles = Tiles(query, key, negatives, left_out)
    for part in tiles.parts():
        rest, mean = tiles.sweep_negatives(part, wants_query_grad)
        own = Positives(*(each[part] for each in positives))
        powers, peak, own_logits = tiles.powers_of_keys(part, own.columns)
        # Everything is weighed relative to the largest: large logits would be rounded once for each sum they enter.
        beyond = None if further is None else further[part, None].to(dtype) * LOG2_E
        anchor = peak
        for each in (rest, beyond):
            anchor = anchor if each is None else finite(torch.maximum(anchor, each))
        total = powers.sum(dim=1, keepdim=True).log_().add_((peak - anchor) / LOG2_E)
        if rest is not None:
            rest = (rest - anchor) / LOG2_E
            total = torch.logaddexp(total, rest)
        if beyond is not None:
            total = torch.logaddexp(total, (beyond - anchor) / LOG2_E)
        loss[part], height, over = balance(total[:, 0], (own_logits - anchor) / LOG2_E, own)
        height = height[:, None]
        level[part] = (height + anchor / LOG2_E)[:, 0]
        logits[part], excess[part] = own_logits / LOG2_E, over
        if query_grad is None and key_grad is None:
            continue

        to_softmax = ((peak - anchor) / LOG2_E - height).exp_()
        unit: Tensor | None = to_softmax
        if not tiles.bounded:  # The peak may lie so far below the level that dividing by their difference overflows.
            powers.mul_(to_softmax)
            unit = None
        if not in_half:
            powers.scatter_add_(1, own.columns, over if unit is None else over / unit)
        tile = powers.to(key.dtype)
        if query_grad is not None:
            row_grad = times_transposed(tile, key.t())
            if unit is not None:
                row_grad.mul_(unit)
            if rest is not None and mean is not None:
                row_grad.addcmul_(mean, (rest - height).exp_())
            if in_half:
                add_query_grad(row_grad, key, own.columns, over)
            query_grad[part] = row_grad
        if key_grad is not None:
            weighted = query[part]
            share = None if weight is None else weight[part, None]
            for factor in (unit, share):
                weighted = weighted if factor is None else weighted * factor
            add_transposed_times(key_grad, tile, weighted.to(query.dtype))
            if in_half:
                add_key_grad(key_grad, query[part], own.columns, over if share is None else over * share)
    found = Found(loss, logits, level, excess, query_grad)
    return found, None if key_grad is None else key_grad.contiguous()


def sweep_keys(
    query: Tensor, key: Tensor, negatives: Tensor | None, left_out: LeftOut, wants_mean: bool
) -> tuple[Tensor, Tensor | None]:
    """Return each row's log-sum-exp over all columns that it does not leave out, and its softmax-weighted mean key."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    lse = query.new_empty((query.shape[0], 1), dtype=dtype)
    means = query.new_empty(query.shape, dtype=dtype) if wants_mean else None
    tiles = Tiles(query, key, negatives, left_out)
    for part in tiles.parts():
        rest, mean = tiles.sweep_negatives(part, wants_mean)
        powers, peak, _ = tiles.powers_of_keys(part, None)
        level = powers.sum(dim=1, keepdim=True).log2_().add_(peak)
        if rest is not None:
            level = _add_in_base_2(level, rest)
        lse[part] = level / LOG2_E
        if means is not None:
            anchor = finite(level)
            means[part] = times_transposed(powers.to(key.dtype), key.t()).mul_((peak - anchor).exp2_())
            if rest is not None and mean is not None:
                means[part].addcmul_(mean, (rest - anchor).exp2_())
    return lse[:, 0], means


def sweep_queries(
    query: Tensor, key: Tensor, left_out: LeftOut, level: Tensor, weight: Tensor, key_level: Tensor | None = None
) -> Tensor:
    """Return what ``sweeps.sweep_queries`` says."""
    grad = zeros_by_columns(key)
    if len(key) == 0:
        return grad
    # In units of the largest, for weights such as 1 / N would underflow in float16.
    scale = weight.abs().amax()
    weight = weight / torch.where(scale == 0, 1, scale)
    tiles = Tiles(query, key, None, left_out)
    for part in tiles.parts():
        logits, rows = tiles.logits(part, key), query[part]
        by_column = None if key_level is None else (logits - key_level * LOG2_E).exp2_().mul_(weight)
        factor = logits.sub_(level[part, None] * LOG2_E).exp2_()
        if by_column is None:
            rows = (rows * weight[part, None]).to(query.dtype)
        else:
            factor.mul_(weight[part, None]).add_(by_column)
        add_transposed_times(grad, tiles.without(factor, part, 0.0).to(key.dtype), rows)
    return grad.contiguous().mul_(scale)


def zeros_by_columns(like: Tensor) -> Tensor:
    """Return zeros of the same shape in the dtype of sums, for ``add_transposed_times`` to add to."""
    return like.new_zeros(like.shape[::-1], dtype=torch.promote_types(like.dtype, torch.float32)).t()


def rows_per_tile(queries: int, keys: int) -> int:
    """Return how many rows of logits to hold at once."""
    return min(queries, MAX_ROWS, max(MIN_ROWS, KEY_TILE // max(1, keys)))


class Tiles:
    """The logits, tile by tile."""

    def __init__(self, query: Tensor, key: Tensor, negatives: Tensor | None, left_out: LeftOut) -> None:
        self.query, self.key = query, key
        self.sums = torch.promote_types(query.dtype, torch.float32)
        self.negatives = negatives if negatives is not None and len(negatives) else None
        self.left_out = left_out
        self.step = rows_per_tile(query.shape[0], key.shape[0])

    @functools.cached_property
    def bounded(self) -> bool:
        """Tell whether no logit is large, so that powers need no peak."""
        return _is_bounded(self.query, self.key, self.negatives)

    def parts(self) -> list[slice]:
        """Return the rows of each tile."""
        n = self.query.shape[0]
        return [slice(start, min(start + self.step, n)) for start in range(0, n, self.step)]

    def logits(self, part: slice, key: Tensor, scale: float = LOG2_E) -> Tensor:
        """Return a tile, in base 2 by itself; in float32 at least: the CPU rounds a product of half precision to it."""
        return times_transposed(self.query[part].to(self.sums), key.to(self.sums), scale)

    def powers_of_keys(self, part: slice, positives: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return a tile's powers relative to its rows' peaks, zero at positives; the peaks; the positives' logits."""
        tile = self.logits(part, self.key)
        own = tile.new_empty((tile.shape[0], 0)) if positives is None else self._own_logits(part, tile, positives)
        return *self._powers(self.without(tile, part, -math.inf, positives), own), own

    def sweep_negatives(self, part: slice, wants_mean: bool) -> tuple[Tensor | None, Tensor | None]:
        """Return the rows' log-sum-exp over the negatives, and their softmax-weighted mean."""
        if self.negatives is None:
            return None, None
        peak = self.query.new_full((len(self.query[part]), 1), 0.0 if self.bounded else -math.inf, dtype=self.sums)
        total = torch.zeros_like(peak)
        mean: Tensor | None = None
        ids = self.left_out.negative_ids
        step = max(1, NEGATIVE_TILE // self.step)
        for start in range(0, len(self.negatives), step):
            block = self.negatives[start : start + step]
            tile = self.logits(part, block)
            if ids is not None and self.left_out.row_ids is not None:
                tile.masked_fill_(self.left_out.row_ids[part, None] == ids[start : start + step], -math.inf)
            if not self.bounded:  # Powers are relative to the largest logit so far.
                before, peak = peak, _largest(tile, peak)
                shrink = (before - finite(peak)).exp2_()
                total.mul_(shrink)
                mean = None if mean is None else mean.mul_(shrink)
                tile.sub_(finite(peak))
            powers = tile.exp2_()
            total.add_(powers.sum(dim=1, keepdim=True))
            if wants_mean:
                more = times_transposed(powers.to(block.dtype), block.t())
                mean = more if mean is None else mean.add_(more)
        lse = total.log2_().add_(finite(peak))
        if mean is not None:
            mean.mul_((finite(peak) - finite(lse)).exp2_())
        return lse, mean

    def without(self, tile: Tensor, part: slice, value: float, positives: Tensor | None = None) -> Tensor:
        """Put a value into the columns that are left out, and into the positives."""
        columns, row_ids, key_ids, _ = self.left_out
        if row_ids is not None and key_ids is not None:
            tile.masked_fill_(row_ids[part, None] == key_ids, value)
        for each in (None if columns is None else columns[part], positives):
            if each is not None:
                tile.scatter_(1, each, value)
        return tile

    def _own_logits(self, part: slice, tile: Tensor, columns: Tensor) -> Tensor:
        if self.query.dtype in (torch.float16, torch.bfloat16):
            return dots(self.query[part], self.key, columns).mul_(LOG2_E)
        return tile.gather(1, columns)

    def _powers(self, tile: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Return the powers, and each row's peak: its largest logit, its positives' included."""
        if self.bounded:
            return tile.exp2_(), tile.new_zeros(())
        peak = finite(_largest(tile, own))
        return tile.sub_(peak).exp2_(), peak


def _largest(tile: Tensor, own: Tensor) -> Tensor:
    largest = tile.amax(dim=1, keepdim=True)
    return torch.maximum(largest, own.amax(dim=1, keepdim=True)) if own.shape[1] else largest


def finite(peak: Tensor) -> Tensor:
    """Take nothing off a row without a column, or with an infinite logit: their differences would be no numbers."""
    return torch.where(peak.isinf(), 0, peak)


def _add_in_base_2(first: Tensor, second: Tensor) -> Tensor:
    """Return ``log2(2 ** first + 2 ** second)``."""
    peak = finite(torch.maximum(first, second))
    return (first - peak).exp2_().add_((second - peak).exp2_()).log2_().add_(peak)


def _is_bounded(query: Tensor, *keys: Tensor | None) -> bool:
    """Say whether the rows' lengths rule out logits beyond ``SAFE_LOGIT``; on the CPU only, where asking is no wait."""
    if query.device.type != "cpu":
        return False
    lengths: list[float] = [
        torch.linalg.vector_norm(rows, dim=1, dtype=torch.promote_types(rows.dtype, torch.float32)).max().item()
        for rows in (query, *keys)
        if rows is not None and len(rows)
    ]
    if len(lengths) == 1:
        return True
    longest_query, longest_key = lengths[0], max(lengths[1:])
    if not longest_query * longest_key <= SAFE_LOGIT:  # or no number
        return False
    # The gradients multiply powers by rows: those must stay clear of float32's ends too.
    return min(longest_query, longest_key) > 1e-12 and max(longest_query, longest_key) < 1e12
