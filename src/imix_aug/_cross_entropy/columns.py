"""The columns that a row treats apart from all others: its positives, and those that it leaves out."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from imix_aug._values import readable

if TYPE_CHECKING:
    from imix_aug._labels import VirtualLabels


class Positives(NamedTuple):
    """The columns that the soft label of each row is spread over, and its shares of them.

    Attributes:
        columns: ``(N, P)`` int64. A column equal to the row's first stands for none.
        shares: ``(N, P)``; a row's sum to one, and that of a column which stands for none is zero.
    """

    columns: Tensor
    shares: Tensor

    @classmethod
    def of(cls, labels: VirtualLabels, dtype: torch.dtype) -> Positives:
        """Return the columns of virtual labels: a row's own and its partner's, if that has a share."""
        lam, partner = labels.lam.to(torch.promote_types(dtype, torch.float32)), labels.partner
        own = row_numbers(partner)
        alone = partner == own
        if not lam.requires_grad:  # Else a share of zero has a gradient all the same.
            alone = alone.logical_or_(lam == 1)
        return cls._own_and(partner, 1 - lam, own, alone)

    @classmethod
    def of_keys(cls, labels: VirtualLabels, dtype: torch.dtype) -> Positives:
        """Return for each key the queries that hold a share of it, in proportion to these shares.

        Column p of this and column p of the queries' positives are inverse permutations, entries that stand for none
        aside: both name the same logits.
        """
        own = row_numbers(labels.partner)
        holder = torch.empty_like(labels.partner).scatter(0, labels.partner, own)
        columns, shares = cls.of(labels, dtype)
        held_by_own, held_by_other = shares[:, 0], shares[holder, 1]
        whole = held_by_own + held_by_other
        return cls._own_and(
            holder, held_by_other / torch.where(whole == 0, 1, whole), own, columns[holder, 1] == holder
        )

    @classmethod
    def of_rows(cls, labels: VirtualLabels | None, rows: Tensor) -> Positives:
        """Return those of mixed rows, or without labels of unmixed ones."""
        if labels is None:
            return cls.own(rows.shape[0], rows.device, torch.promote_types(rows.dtype, torch.float32))
        return cls.of(labels, rows.dtype)

    @classmethod
    def of_both(cls, labels: VirtualLabels | None, rows: Tensor) -> tuple[Positives, Positives]:
        """Return those of the rows, and those of their keys."""
        of_rows = cls.of_rows(labels, rows)
        return of_rows, of_rows if labels is None else cls.of_keys(labels, rows.dtype)

    @classmethod
    def cat(cls, parts: Iterable[Positives]) -> Positives:
        """Join those of several groups of rows, which have the same columns."""
        return cls(*(torch.cat(each) for each in zip(*parts, strict=True)))

    @classmethod
    def _own_and(cls, other: Tensor, share: Tensor, own: Tensor, alone: Tensor) -> Positives:
        share = torch.where(alone, 0, share)
        return cls(torch.stack((own, torch.where(alone, own, other)), 1), torch.stack((1 - share, share), 1))

    @classmethod
    def own(cls, n: int, device: torch.device, dtype: torch.dtype) -> Positives:
        """Return the columns of unmixed rows: each its own."""
        return cls(torch.arange(n, device=device)[:, None], torch.ones((n, 1), dtype=dtype, device=device))

    def mean(self, rows: Tensor) -> Tensor:
        """Return each label's mean over the rows, ``sum_p share_ip rows_column(i, p)``."""
        first, *others = (
            rows[column] * share[:, None]
            for column, share in zip(self.columns.unbind(1), self.shares.to(rows.dtype).unbind(1), strict=True)
        )
        return sum(others, first)

    def shifted(self, by: int) -> Positives:
        """Return the same for keys that begin at row ``by`` of a larger matrix."""
        return Positives(self.columns + by, self.shares) if by else self


class LeftOut(NamedTuple):
    """Columns that a row leaves out: a few of ``key`` by number, and those that have the row's id.

    Attributes:
        columns: ``(N, E)`` int64; a column may come twice.
        row_ids: ``(N,)`` integers.
        key_ids: ``(M,)`` integers.
        negative_ids: ``(K,)`` integers.
    """

    columns: Tensor | None = None
    row_ids: Tensor | None = None
    key_ids: Tensor | None = None
    negative_ids: Tensor | None = None

    def and_columns(self, columns: Tensor) -> LeftOut:
        """Leave these columns of ``key`` out too."""
        return self._replace(columns=columns if self.columns is None else torch.cat([columns, self.columns], 1))

    def shifted(self, by: int) -> LeftOut:
        """Return the same for keys that begin at row ``by`` of a larger matrix."""
        return self._replace(columns=self.columns + by) if by and self.columns is not None else self


NOTHING = LeftOut()


def row_numbers(like: Tensor) -> Tensor:
    """Return 0 to N - 1 for a tensor of N rows, on its device."""
    return _arange(like.shape[0]) if readable(like) else torch.arange(like.shape[0], device=like.device)


@functools.lru_cache(maxsize=16)
def _arange(n: int) -> Tensor:
    """Count the rows once for each batch size; nobody writes to it."""
    return torch.arange(n, device="cpu")
