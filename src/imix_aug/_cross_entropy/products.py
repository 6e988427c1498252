"""Matrix products on the CPU: through oneDNN where it beats MKL, which PyTorch multiplies float32 with."""

import torch
from torch import Tensor

# Fewer elements of the largest matrix than this, and starting oneDNN costs more than it saves.
MIN_ELEMENTS = 1 << 18

# MKL keeps its fastest kernels for Intel's processors. On one of AMD's with AVX-512 oneDNN took 0.7 to 0.9 of its time;
# others were not measured, and get PyTorch's choice.
_capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
PREFERS_ONEDNN = (
    "AMD" in str(_capabilities.get("cpu_name"))
    and bool(_capabilities.get("avx512_f"))
    and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def times_transposed(left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
    """Return ``scale * left @ right.T``; in float32 for rows of half precision."""
    if left.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(left, right.t()).float().mul_(scale)
    if _suits_onednn(left, right):
        return torch.ops.mkldnn._linear_pointwise(left if scale == 1 else left * scale, right, None, "none", [], "")
    product = left.new_empty((left.shape[0], right.shape[0]))
    # Given a place for the result, autocast leaves the dtype alone.
    return torch.addmm(product, left, right.t(), beta=0, alpha=scale, out=product)


def add_transposed_times(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left.T @ right`` to ``total``, fastest if that lies in memory column by column."""
    by_columns = total.stride(0) == 1
    if right.dtype != total.dtype or (by_columns and _suits_onednn(left.t(), right.t())):
        total.add_(times_transposed(right.t(), left.t()).t())
    else:
        torch.addmm(total, left.t(), right, out=total)


def _suits_onednn(left: Tensor, right: Tensor) -> bool:
    largest = max(left.numel(), right.numel(), left.shape[0] * right.shape[0])
    return PREFERS_ONEDNN and largest >= MIN_ELEMENTS and left.dtype == torch.float32 and left.device.type == "cpu"
