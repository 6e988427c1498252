"""What a loss asks of its keys, and the ordinary case: this process's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from imix_aug._cross_entropy.columns import LeftOut, Positives
from imix_aug._cross_entropy.operator import soft_cross_entropy
from imix_aug._keys.class_sums import class_sums, with_ones


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
    """The keys of this process, ``(N, D)``."""

    key: Tensor

    def soft_cross_entropy(
        self, query: Tensor, negatives: Tensor | None, positives: Positives, *, left_out: LeftOut, **how: Any
    ) -> Tensor:
        """Contrast the queries with these keys and the negatives."""
        return soft_cross_entropy(query, self.key, negatives, positives, left_out=left_out, **how)

    def class_sums(self, classes: Tensor) -> Tensor:
        """Sum the keys of each row's class, and count them."""
        return class_sums(with_ones(self.key), classes, classes)
