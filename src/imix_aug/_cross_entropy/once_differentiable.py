"""Gradients that say in one line that they have no derivative of their own."""

from typing import Any

import torch
from torch import Tensor


def once_differentiable(gradients: tuple[Tensor | None, ...], *computed_from: Tensor) -> tuple[Tensor | None, ...]:
    """Pass gradients on as functions of what they were computed from, and refuse to differentiate them again."""
    if not torch.is_grad_enabled():
        return gradients
    return tuple(each if each is None else _Refusal.apply(each, *computed_from) for each in gradients)


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *computed_from: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        raise RuntimeError("imix_aug's contrastive losses have no second derivative: their logits are never stored")
