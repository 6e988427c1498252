"""The keys that queries are contrasted with: this process's own, or those of all ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from imix_aug._cross_entropy.columns import LeftOut, Positives
from imix_aug._cross_entropy.operator import soft_cross_entropy
from imix_aug._keys.class_sums import class_sums, with_ones

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Keys(Protocol):
    """What a loss asks of its keys, wherever they are. Row numbers are those of this process."""

    def soft_cross_entropy(
        self, query: Tensor, negatives: Tensor | None, positives: Positives, *, left_out: LeftOut, **how: Any
    ) -> Tensor:
        """Return the queries' cross-entropies, or their sum, as ``operator.soft_cross_entropy`` does."""
        ...

    def class_sums(self, classes: Tensor) -> Tensor:
        """Return for each of this process's rows the sum of its class's keys and their count, ``(N, D + 1)``."""
        ...


@dataclass(frozen=True)
class OwnKeys:
    """The keys of this process."""

    rows: Tensor

    def soft_cross_entropy(
        self, query: Tensor, negatives: Tensor | None, positives: Positives, *, left_out: LeftOut, **how: Any
    ) -> Tensor:
        """Contrast the queries with these keys and the negatives."""
        return soft_cross_entropy(query, self.rows, negatives, positives, left_out=left_out, **how)

    def class_sums(self, classes: Tensor) -> Tensor:
        """Sum the keys of each row's class, and count them."""
        return class_sums(with_ones(self.rows), classes, classes)


def choose_keys(
    rows: Tensor, gather_distributed: bool, process_group: ProcessGroup | None, travelling: tuple[bool, ...] = ()
) -> Keys:
    """Return what queries are to be contrasted with: this process's keys, or those of all ranks.

    ``travelling`` says what else ranks exchange (``ranks.TRAVELLING``), which all of them must do alike.
    """
    if not gather_distributed:
        return OwnKeys(rows)
    from imix_aug._keys import ranks

    return ranks.keys_of_all(rows, process_group, travelling)
