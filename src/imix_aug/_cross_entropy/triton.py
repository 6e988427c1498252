"""The row log-sum-exp on CUDA: which of two ways to take.

Rows of up to 256 elements go through one fused sweep a side: the logits stay on the chip. Longer rows, and float32 in
full precision, which Triton computes without the matrix units, go block by block through cuBLAS.
"""

import torch
from torch import Tensor

from imix_aug._cross_entropy import blocked, triton_blocks, triton_sweep


def forward(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    excluded: Tensor | None,
    want_query_grad: bool,
    want_key_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the rows' log-sum-exp, its gradient in each query row, and the gradient of its sum in the keys."""
    excluded = None if excluded is None else excluded.contiguous()
    if query.dtype == torch.float64:
        return blocked.forward(query, key, negatives, excluded, want_query_grad, want_key_grad)
    if _stays_on_chip(query):
        lse, query_grad = triton_sweep.row_logsumexp(query, key, negatives, excluded, want_query_grad)
        return lse, query_grad, triton_sweep.key_grad(query, key, excluded, lse, None) if want_key_grad else None
    query, key = _in_range(query), _in_range(key)
    negatives = None if negatives is None else _in_range(negatives)
    return triton_blocks.forward(query, key, negatives, excluded, want_query_grad, want_key_grad)


def key_grad(query: Tensor, key: Tensor, excluded: Tensor | None, lse: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient in the keys of the log-sum-exps' weighted sum: sum_i weight_i softmax_ij query_i."""
    excluded, lse = None if excluded is None else excluded.contiguous(), lse.contiguous()
    if query.dtype == torch.float64:
        return blocked.key_grad(query, key, excluded, lse, weight)
    if _stays_on_chip(query):
        return triton_sweep.key_grad(query, key, excluded, lse, weight)
    return triton_blocks.key_grad(_in_range(query), _in_range(key), excluded, lse, weight)


def _stays_on_chip(query: Tensor) -> bool:
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
