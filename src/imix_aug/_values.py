"""What a tensor holds, and whether its values can be looked at without a wait."""

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.utils._python_dispatch import _get_current_dispatch_mode

_PLAIN = (Tensor, torch.nn.Parameter)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def readable(*tensors: Tensor) -> bool:
    """Tell whether all are real tensors on the CPU that nobody traces."""
    if torch.compiler.is_compiling():
        return False
    for each in tensors:
        if type(each) not in _PLAIN or not each.is_cpu:
            return False
    return torch._C._get_tracing_state() is None and _get_current_dispatch_mode() is None and not transformed()


def transformed() -> bool:
    """Tell whether a transform of ``torch.func`` or forward-mode differentiation is at work."""
    if torch.compiler.is_compiling():
        return False
    return _functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0


def differentiates() -> bool:
    """Tell whether the innermost transform of ``torch.func`` is a gradient."""
    if torch.compiler.is_compiling():
        return False
    innermost = _functorch.peek_interpreter_stack()
    return innermost is not None and innermost.key() == _functorch.TransformType.Grad


def unusual(tensor: Tensor) -> str | None:
    """Name what keeps rows from being taken out of a tensor: it is nested, quantized or sparse."""
    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized:
        return "quantized"
    return None if tensor.layout == torch.strided else str(tensor.layout).removeprefix("torch.")
