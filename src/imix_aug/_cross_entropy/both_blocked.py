"""Both directions at once in plain torch, one tile of logits at a time.

The first sweep adds up each row and each column of the logits' powers; the second makes each tile softmax minus label
in both directions and multiplies it. It begins with the tile that the first one ended with, so that few rows, which are
one tile, take three matrix products, and many take four, where two losses would take six.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from imix_aug._cross_entropy.blocked import LOG2_E, Tiles, finite, zeros_by_columns
from imix_aug._cross_entropy.columns import LeftOut, Positives
from imix_aug._cross_entropy.positives import Balance, add_key_grad, add_query_grad, balance, excess_of_both
from imix_aug._cross_entropy.products import add_transposed_times, times_transposed


def forward(
    query: Tensor,
    key: Tensor,
    positives: Positives,
    ids: Tensor | None,
    weight: Tensor | None,
    wants: tuple[bool, bool],
) -> tuple[Balance, Tensor, tuple[Tensor | None, Tensor | None]]:
    """Return what rows and columns come to, the positives' logits, and the gradients that are wanted.

    These are of the sum over rows and columns, each times half its weight, or a half.
    """
    tiles = _Tiles(query, key, positives, ids)
    found, logits = tiles.sums()
    grads = tiles.gradients(found.level, found.excess, weight, wants) if any(wants) else (None, None)
    return found, logits, grads


def gradients(
    query: Tensor,
    key: Tensor,
    columns: Tensor,
    ids: Tensor | None,
    level: Tensor,
    excess: Tensor,
    weight: Tensor,
    wants: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients for weights that the forward pass did not know."""
    tiles = _Tiles(query, key, Positives(columns, excess), ids)
    return tiles.gradients(level, excess, weight, wants)


class _Tiles:
    def __init__(self, query: Tensor, key: Tensor, positives: Positives, ids: Tensor | None) -> None:
        if key.dtype == torch.float16:  # whose range a softmax over many columns does not respect
            query, key = query.float(), key.float()
        self.query, self.key, self.positives, self.n = query, key, positives, len(query)
        self.tiles = Tiles(query, key, None, LeftOut(None, ids, ids))
        self.last: Tensor | None = None
        # A second tile, kept: fresh memory takes longer to come by than to fill.
        self.beside = query.new_empty((self.tiles.step, len(key)), dtype=self.tiles.sums)

    def sums(self) -> tuple[Balance, Tensor]:
        """Sweep once: weigh each row and each column."""
        n, tiles = self.n, self.tiles
        columns, rows = self.positives.columns.chunk(2)
        total = self.query.new_zeros(2 * n, dtype=tiles.sums)
        logits = total.new_empty((2 * n, columns.shape[1]))
        peak = torch.full_like(total, 0 if tiles.bounded else -math.inf)
        by_column, top = total[n:], peak[n:]
        for part in tiles.parts():
            tile, logits[part] = tiles.masked(part, columns[part])
            if tiles.bounded:
                tile.exp2_()
                torch.sum(tile, 1, out=total[part])
                by_column += tile.sum(0)
            else:
                peak[part] = tile.amax(1)
                beside = self.beside[: len(tile)]
                torch.sum(torch.sub(tile, finite(peak[part, None]), out=beside).exp2_(), 1, out=total[part])
                higher = torch.maximum(top, tile.amax(0))
                anchor = finite(higher)
                by_column.mul_((top - anchor).exp2_()).add_(torch.sub(tile, anchor, out=beside).exp2_().sum(0))
                top.copy_(higher)
            self.last = tile
        logits[n:] = logits[:n].gather(0, rows)
        rest = total.log_()
        if tiles.bounded:
            logits /= LOG2_E
            return balance(rest, logits, self.positives), logits
        # Relative to the largest, for large logits would be rounded once for each sum they enter.
        anchor = finite(torch.maximum(peak, logits.amax(1)))
        rest += (finite(peak) - anchor) / LOG2_E
        loss, height, excess = balance(rest, (logits - anchor[:, None]) / LOG2_E, self.positives)
        return Balance(loss, height + anchor / LOG2_E, excess), logits / LOG2_E

    def gradients(
        self, level: Tensor, excess: Tensor, weight: Tensor | None, wants: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Sweep again, in the reverse order."""
        query, key, n, tiles = self.query, self.key, self.n, self.tiles
        columns = self.positives.columns[:n]
        at_positives = excess_of_both(
            columns, excess / 2 if weight is None else excess * (weight / 2).repeat(2)[:, None]
        )
        in_half = tiles.sums != query.dtype  # Then the positives' share of the gradients is not rounded.
        if tiles.bounded:
            by_row, by_column = (torch.exp(-each) / 2 for each in level.chunk(2))
            if weight is not None:
                by_row, by_column = by_row * weight, by_column * weight
        else:
            by_row, by_column = (each * LOG2_E + 1 for each in level.chunk(2))  # and so halves
        query_grad = query.new_empty(query.shape, dtype=tiles.sums) if wants[0] else None
        key_grad = zeros_by_columns(key) if wants[1] else None
        for part in reversed(tiles.parts()):
            tile, self.last = self.last, None
            if tile is None:
                tile, _ = tiles.masked(part, columns[part])
                if tiles.bounded:
                    tile.exp2_()
            beside = self.beside[: len(tile)]
            if tiles.bounded:
                tile.mul_(torch.add(by_row[part, None], by_column, out=beside))
            else:
                torch.sub(tile, by_column, out=beside).exp2_()
                tile.sub_(by_row[part, None]).exp2_()
                if weight is not None:
                    beside.mul_(weight)
                    tile.mul_(weight[part, None])
                tile.add_(beside)
            if not in_half:
                tile.scatter_add_(1, columns[part], at_positives[part])
            tile = tile.to(key.dtype)
            if query_grad is not None:
                row_grad = times_transposed(tile, key.t())
                query_grad[part] = (
                    add_query_grad(row_grad, key, columns[part], at_positives[part]) if in_half else row_grad
                )
            if key_grad is not None:
                add_transposed_times(key_grad, tile, query[part])
                if in_half:
                    add_key_grad(key_grad, query[part], columns[part], at_positives[part])
        return query_grad, None if key_grad is None else key_grad.contiguous()
