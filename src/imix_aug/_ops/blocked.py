"""The row log-sum-exp in plain torch, one block of rows at a time: CPU, MPS, and CUDA without Triton."""

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 18


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _logits(query: Tensor, key: Tensor, negatives: Tensor | None, excluded: Tensor | None) -> Tensor:
    """The block's logits, in the accumulator's dtype."""
    logits = (query @ key.T).to(_accumulator(query.dtype))
    if excluded is not None:
        logits.scatter_(1, excluded, float("-inf"))
    if negatives is not None:
        logits = torch.cat([logits, (query @ negatives.T).to(logits.dtype)], dim=1)
    return logits


def forward(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    excluded: Tensor | None,
    want_query_grad: bool,
    want_key_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the rows' log-sum-exp, its gradient in each query row, and the gradient of its sum in the keys."""
    dtype = _accumulator(query.dtype)
    columns = len(key) + (0 if negatives is None else len(negatives))
    rows = max(1, _BLOCK_ELEMENTS // columns)
    lse = query.new_empty(len(query), dtype=dtype)
    query_grad = torch.empty_like(query, dtype=dtype) if want_query_grad else None
    key_grad = torch.zeros_like(key, dtype=dtype) if want_key_grad else None
    for start in range(0, len(query), rows):
        block = slice(start, start + rows)
        logits = _logits(query[block], key, negatives, None if excluded is None else excluded[block])
        lse[block] = logits.logsumexp(dim=1)
        if not (want_query_grad or want_key_grad):
            continue
        softmax = logits.sub_(lse[block, None]).exp_().to(query.dtype)
        if query_grad is not None:
            query_grad[block] = softmax[:, : len(key)] @ key
            if negatives is not None:
                query_grad[block] += softmax[:, len(key) :] @ negatives
        if key_grad is not None:
            key_grad += softmax[:, : len(key)].T @ query[block]
    return lse, query_grad, key_grad


def key_grad(query: Tensor, key: Tensor, excluded: Tensor | None, lse: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient in the keys of the log-sum-exps' weighted sum: sum_i weight_i softmax_ij query_i."""
    grad = torch.zeros_like(key, dtype=lse.dtype)
    rows = max(1, _BLOCK_ELEMENTS // len(key))
    for start in range(0, len(query), rows):
        block = slice(start, start + rows)
        logits = _logits(query[block], key, None, None if excluded is None else excluded[block])
        softmax = logits.sub_(lse[block, None]).exp_().mul_(weight[block, None])
        grad += softmax.to(query.dtype).T @ query[block]
    return grad
