"""Functions that a graph keeps whole, one of them with gradients of its own, in the shapes that PyTorch wants."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from imix_aug._values import differentiates, readable


class Opaque:
    """One opaque operator, without gradients; plain tensors in eager mode do without, and save its cost.

    Args:
        name: the operator's.
        function: what it computes; its annotations are the operator's schema.
        shapes: the same for tensors without values.
    """

    def __init__(self, name: str, function: Callable[..., Any], *, shapes: Callable[..., Any]) -> None:
        self._function, self._operator = function, torch.library.custom_op(name, function, mutates_args=())
        self._operator.register_fake(shapes)

    def __call__(self, query: Tensor, *others: Any) -> Any:
        """Return what it computes."""
        return (self._function if readable(query) or differentiates() else self._operator)(query, *others)


class Node:
    """The same with gradients.

    Args:
        name: the operator's.
        forward: what it computes: the loss, or a tuple that begins with it; its annotations are the schema.
        shapes: the same for tensors without values.
        keep: puts into a context what the backward pass needs, ``setup_context`` of ``torch.autograd.Function``.
        gradients: the backward pass.
    """

    def __init__(
        self,
        name: str,
        forward: Callable[..., Tensor | tuple[Tensor, ...]],
        *,
        shapes: Callable[..., Tensor | tuple[Tensor, ...]],
        keep: Callable[..., None],
        gradients: Callable[..., tuple[Tensor | None, ...]],
    ) -> None:
        class UnderGrad(torch.autograd.Function):
            """For ``torch.func.grad``, which wants its context set up apart."""

        class WithoutOperator(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *inputs: Any) -> Tensor:
                output = forward(*inputs)
                keep(ctx, inputs, output)
                return _loss(output)

        UnderGrad.forward, UnderGrad.setup_context = staticmethod(forward), staticmethod(keep)  # type: ignore[method-assign]
        for each in (UnderGrad, WithoutOperator):
            each.backward = staticmethod(gradients)  # type: ignore[method-assign]
        self._under_grad, self._without_operator = UnderGrad, WithoutOperator
        self._operator = torch.library.custom_op(name, forward, mutates_args=())
        self._operator.register_fake(shapes)
        self._operator.register_autograd(gradients, setup_context=keep)

    def __call__(self, query: Tensor, *others: Any) -> Tensor:
        """Return the loss."""
        if readable(query):
            return self._without_operator.apply(query, *others)
        return _loss((self._under_grad.apply if differentiates() else self._operator)(query, *others))


def _loss(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
