"""Both directions at once on the CPU, one tile of logits at a time.

The first sweep adds up each row and each column of the logits' powers; the second makes each tile softmax minus label
in both directions and multiplies it. It begins with the tile that the first one ended with, so that few rows, which are
one tile, take three matrix products, and many take four, where two losses would take six.

One power of a logit serves both directions, and powers are most of what a tile costs beside its products. Large logits
are taken relative to half the row's height and half the column's, which are those of their positives or of their
log-sum-exps. A power then overflows or vanishes only where heights lie further apart than those of unit rows do at a
usual temperature; there each direction goes by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imix_aug._cross_entropy.blocked import LOG2_E, Tiles, zeros_by_columns
from imix_aug._cross_entropy.columns import LeftOut, Positives
from imix_aug._cross_entropy.positives import Balance, add_key_grad, add_query_grad, balance, dots, excess_of_both
from imix_aug._cross_entropy.products import add_transposed_times, times_transposed

# What falls below float32's smallest power, 2 ** -126, is then lost below 2 ** -50 of a row's positive.
HALVES_APART = 76.0


def forward(
    query: Tensor,
    key: Tensor,
    positives: Positives,
    ids: Tensor | None,
    weight: Tensor | None,
    wants: tuple[bool, bool],
) -> tuple[Balance, Tensor, tuple[Tensor | None, Tensor | None]] | None:
    """Return what rows and columns come to, the positives' logits, and the gradients that are wanted.

    These are of the sum over rows and columns, each times half its weight, or a half. None where the positives' logits
    lie too far apart, or others too far above them.
    """
    columns, back = positives.columns.chunk(2)
    logits = dots(query * LOG2_E, key, columns)
    logits = torch.cat((logits, logits.gather(0, back)))
    tiles = _Tiles(query, key, columns, ids, logits.amax(1))
    rest = tiles.sums() if tiles.serve else None
    if rest is None:
        return None
    # Relative to the heights, for large logits would be rounded once for each sum they enter.
    loss, level, excess = balance(rest, (logits - tiles.heights[:, None]) / LOG2_E, positives)
    grads = tiles.gradients(level, excess, weight, wants) if any(wants) else (None, None)
    return Balance(loss, level + tiles.heights / LOG2_E, excess), logits / LOG2_E, grads


def gradients(
    query: Tensor,
    key: Tensor,
    columns: Tensor,
    ids: Tensor | None,
    level: Tensor,
    excess: Tensor,
    weight: Tensor,
    wants: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None] | None:
    """Return the gradients for weights that the forward pass did not know; None where levels lie too far apart."""
    tiles = _Tiles(query, key, columns[: len(query)], ids, level * LOG2_E)
    return tiles.gradients(level - tiles.heights / LOG2_E, excess, weight, wants) if tiles.serve else None


class _Tiles:
    """The powers of logits, tile by tile.

    Attributes:
        heights: ``(2N,)``, in base 2, what sums over rows and columns are relative to; zero where no logit is large.
        halves: of them, which a logit is taken relative to: its row's and its column's. None for zero. They are whole
            numbers, so that taking them off rounds nothing.
        rest: ``top - halves``, where ``top`` is the highest of them.
        scales: ``2 ** -rest``.
        serve: whether the heights lie close enough together.
    """

    def __init__(self, query: Tensor, key: Tensor, columns: Tensor, ids: Tensor | None, heights: Tensor) -> None:
        self.query, self.key, self.columns, self.n = query, key, columns, len(query)
        self.tiles = Tiles(query, key, None, LeftOut(None, ids, ids))
        self.last: Tensor | None = None
        # A second tile, kept: fresh memory takes longer to come by than to fill.
        self.beside = query.new_empty((self.tiles.step, len(key)), dtype=self.tiles.sums)
        self.heights = torch.zeros_like(heights)
        self.halves: Tensor | None = None
        self.serve = True
        if not self.tiles.bounded:
            self.halves = (heights / 2).round()
            self.heights = 2 * self.halves
            self.rest = self.halves.max() - self.halves
            self.scales = torch.exp2(-self.rest)
            self.serve = self.rest.max().item() <= HALVES_APART

    def powers(self, part: slice) -> Tensor:
        """Return a tile's, zero at positives and at what is left out."""
        tile = self.tiles.without(self.tiles.logits(part, self.key), part, -torch.inf, self.columns[part])
        if self.halves is not None:
            tile.sub_(self.halves[part, None]).sub_(self.halves[self.n :])
        return tile.exp2_()

    def sums(self) -> Tensor | None:
        """Sweep once: return rows' and columns' log-sum-exp, less their heights; None where a power is too large."""
        total = self.query.new_zeros(2 * self.n, dtype=self.tiles.sums)
        by_column = total[self.n :]
        for part in self.tiles.parts():
            tile = self.powers(part)
            if self.halves is None:
                torch.sum(tile, 1, out=total[part])
                by_column += tile.sum(0)
            else:
                torch.mv(tile, self.scales[self.n :], out=total[part])
                by_column.addmv_(tile.t(), self.scales[part])
            self.last = tile
        if self.halves is None:
            return total.log_()
        if not total.max().item() < torch.inf:  # or no number
            return None
        return total.log2_().add_(self.rest).div_(LOG2_E)

    def gradients(
        self, level: Tensor, excess: Tensor, weight: Tensor | None, wants: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Sweep again, in the reverse order; ``level`` is less the heights."""
        query, key, columns, n = self.query, self.key, self.columns, self.n
        half = level.new_full((1,), 0.5) if weight is None else (weight / 2).repeat(2)
        at_positives = excess_of_both(columns, excess * half[:, None])
        exponents = level * -LOG2_E
        if self.halves is not None:
            exponents += self.rest
        by_row, by_column = exponents.exp2_().mul_(half).chunk(2)
        in_half = self.tiles.sums != query.dtype  # Then the positives' share of the gradients is not rounded.
        query_grad = query.new_empty(query.shape, dtype=self.tiles.sums) if wants[0] else None
        key_grad = zeros_by_columns(key) if wants[1] else None
        for part in reversed(self.tiles.parts()):
            tile, self.last = self.last, None
            tile = self.powers(part) if tile is None else tile
            factor = self.beside[: len(tile)]
            if self.halves is None:
                torch.add(by_row[part, None], by_column, out=factor)
            else:
                torch.mul(by_row[part, None], self.scales[n:], out=factor)
                factor.addcmul_(self.scales[part, None], by_column)
            tile.mul_(factor)
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
