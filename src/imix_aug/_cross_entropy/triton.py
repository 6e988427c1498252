"""The two sweeps on CUDA: which of two ways to take.

Rows of up to 256 elements go through one fused sweep a side: the logits stay on the chip. Longer rows, and float32 in
full precision, which Triton computes without the matrix units, go block by block through cuBLAS.
"""

import importlib.metadata

import torch
from torch import Tensor

from imix_aug._cross_entropy import blocked, triton_blocks, triton_sweep
from imix_aug._cross_entropy.columns import LeftOut

_TRITON = tuple(int(part) for part in importlib.metadata.version("triton").split(".")[:2])


def sweep_keys(
    query: Tensor, key: Tensor, negatives: Tensor | None, left_out: LeftOut, wants_mean: bool
) -> tuple[Tensor, Tensor | None]:
    """Return each row's log-sum-exp over all columns that it does not leave out, and its softmax-weighted mean key."""
    if query.dtype == torch.float64 or left_out.row_ids is not None:
        return blocked.sweep_keys(query, key, negatives, left_out, wants_mean)
    columns = _small(left_out.columns)
    if _stays_on_chip(query):
        return triton_sweep.row_logsumexp(query, key, negatives, columns, wants_mean)
    query, key = _in_range(query), _in_range(key)
    negatives = None if negatives is None else _in_range(negatives)
    lse, mean, _ = triton_blocks.forward(query, key, negatives, columns, wants_mean, False)
    return lse, mean


def sweep_queries(query: Tensor, key: Tensor, left_out: LeftOut, level: Tensor, weight: Tensor) -> Tensor:
    """Return ``sum_i weight_i exp(s_ij - level_i) query_i`` for each key j, over the rows that do not leave it out."""
    if query.dtype == torch.float64 or left_out.row_ids is not None:
        return blocked.sweep_queries(query, key, left_out, level, weight)
    columns, level = _small(left_out.columns), level.contiguous()
    if _stays_on_chip(query):
        return triton_sweep.key_grad(query, key, columns, level, weight)
    return triton_blocks.key_grad(_in_range(query), _in_range(key), columns, level, weight)


def _small(columns: Tensor | None) -> Tensor | None:
    """Return the columns as the kernels compare them, in 32 bits."""
    return None if columns is None or columns.shape[1] == 0 else columns.to(torch.int32).contiguous()


def _stays_on_chip(query: Tensor) -> bool:
    if query.dtype == torch.float32 and query.shape[1] > 128 and _TRITON < (3, 2):
        return False  # Triton 3.0 and 3.1 end the process when they compile this case for Hopper.
    return query.shape[1] <= triton_sweep.MAX_DIM and (query.dtype != torch.float32 or _tf32_allowed())


def _tf32_allowed() -> bool:
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # set through the newer fp32_precision, which the older call refuses to read
        return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")


def _in_range(rows: Tensor) -> Tensor:
    """Widen float16, whose range neither a softmax over many keys nor a sum over many queries respects.

    TF32, where it is allowed, holds every float16 number exactly.
    """
    return rows.float() if rows.dtype == torch.float16 else rows
