"""The two sweeps on CUDA: which of two ways to take.

Rows of up to 256 elements go through one fused sweep per side: the logits stay on the chip. Longer rows, and float32 in
full precision, which Triton computes without the matrix units, go block by block through cuBLAS.
"""

import importlib.metadata

import torch
from torch import Tensor

from imix_aug._cross_entropy import blocked, triton_blocks, triton_sweep
from imix_aug._cross_entropy.columns import LeftOut

_TRITON = tuple(int(part) for part in importlib.metadata.version("triton").split(".")[:2])


def sweep_keys(
    query: Tensor, key: Tensor, negatives: Tensor | None, left_out: LeftOut, wants_mean: bool, bounded: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return each row's log-sum-exp over all columns that it does not leave out, and its softmax-weighted mean key."""
    if query.dtype == torch.float64:
        return blocked.sweep_keys(query, key, negatives, left_out, wants_mean)
    if _stays_on_chip(query):
        return triton_sweep.sweep_keys(query, key, negatives, left_out, wants_mean, bounded)
    return triton_blocks.sweep_keys(query, key, negatives, left_out, wants_mean)


def sweep_queries(
    query: Tensor, key: Tensor, left_out: LeftOut, level: Tensor, weight: Tensor, key_level: Tensor | None = None
) -> Tensor:
    """Return what ``sweeps.sweep_queries`` says."""
    if query.dtype == torch.float64:
        return blocked.sweep_queries(query, key, left_out, level, weight, key_level)
    if _stays_on_chip(query):
        return triton_sweep.sweep_queries(query, key, left_out, level, weight, key_level)
    return triton_blocks.sweep_queries(query, key, left_out, level, weight, key_level)


def _stays_on_chip(query: Tensor) -> bool:
    if query.dtype == torch.float32 and query.shape[1] > 128 and _TRITON < (3, 2):
        return False  # Triton 3.0 and 3.1 end the process when they compile this case for Hopper.
    return query.shape[1] <= triton_sweep.MAX_DIM and (query.dtype != torch.float32 or _tf32_allowed())


def _tf32_allowed() -> bool:
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # set through the newer fp32_precision, which the older call refuses to read
        return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")
