"""Keys sent round a ring of ranks, block after block, where a rank could not hold those of all."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imix_aug._cross_entropy.columns import LeftOut, Positives
from imix_aug._cross_entropy.operator import soft_cross_entropy
from imix_aug._cross_entropy.ring import Ring
from imix_aug._keys.class_sums import class_sums, with_ones


@dataclass(frozen=True)
class RingKeys:
    """Keys that stay where they are: every rank sees those of the others pass by, block after block."""

    key: Tensor
    group_name: str

    def soft_cross_entropy(
        self, query: Tensor, negatives: Tensor | None, positives: Positives, *, left_out: LeftOut, **how: Any
    ) -> Tensor:
        """Contrast the queries with the keys of all ranks and the negatives of this one."""
        return soft_cross_entropy(query, self.key, negatives, positives, left_out=left_out, ring=self.group_name, **how)

    def class_sums(self, classes: Tensor) -> Tensor:
        """Sum the keys of each row's class, whichever rank holds them, and count them."""
        return _RingClassSums.apply(with_ones(self.key), classes, self.group_name)


class _RingClassSums(torch.autograd.Function):
    """Sum the rows of each row's class. Sharing a class is symmetric between rows, so the gradient is the same sum."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, classes: Tensor, group_name: str) -> Tensor:
        ctx.save_for_backward(classes)
        ctx.group_name = group_name
        return _ring_class_sums_op(rows, classes, group_name)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (classes,) = ctx.saved_tensors
        return _ring_class_sums_op(grad.contiguous(), classes, ctx.group_name), None, None


@torch.library.custom_op("imix_aug::ring_class_sums", mutates_args=())
def _ring_class_sums_op(rows: Tensor, classes: Tensor, group_name: str) -> Tensor:
    total = torch.zeros_like(rows)
    for block, of_block in Ring(group_name, rows.device).pass_round(rows, classes):
        assert of_block is not None
        total += class_sums(block, of_block, classes)
    return total


@_ring_class_sums_op.register_fake
def _(rows: Tensor, classes: Tensor, group_name: str) -> Tensor:
    return torch.empty_like(rows)
