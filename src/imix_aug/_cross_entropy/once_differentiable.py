"""Derivatives that the losses do not have, each refused in one line."""

from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.autograd import forward_ad


def once_differentiable(gradients: tuple[Tensor | None, ...], *computed_from: Tensor) -> tuple[Tensor | None, ...]:
    """Pass gradients on as functions of what they were computed from, and refuse to differentiate them again."""
    if not torch.is_grad_enabled():
        return gradients
    return tuple(each if each is None else _Refusal.apply(each, *computed_from) for each in gradients)


def refuse_forward_mode(*inputs: Tensor | None) -> None:
    """Refuse inputs that carry a tangent: the loss would have none."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    tangents = (forward_ad.unpack_dual(each).tangent for each in inputs if each is not None)  # type: ignore[no-untyped-call]
    if any(tangent is not None for tangent in tangents):
        raise RuntimeError("imix_aug's contrastive losses have no forward-mode derivative: use backward() or grad")


def refuse_batched(grad: Tensor) -> None:
    """Refuse gradients that ``is_grads_batched=True`` batches."""
    if not torch.compiler.is_compiling() and _functorch.is_legacy_batchedtensor(grad):
        raise RuntimeError("imix_aug's contrastive losses take no batch of gradients: leave is_grads_batched False")


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(gradient: Tensor, *computed_from: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        raise RuntimeError("imix_aug's contrastive losses have no second derivative: their logits are never stored")
