"""Negatives that count by weights: debiased and hardness-weighted losses out of the rows that our losses return.

A row of `imix_nce_loss(..., reduction="none")` is the log-sum-exp over all columns less the positive's logit, so that
of the negatives alone is `positive + log(expm1(row))`. What these losses do to it is a function of a few numbers per
row (Chuang et al., NeurIPS 2020, arXiv 2007.00224; Robinson et al., ICLR 2021, arXiv 2010.04592), in memory that grows
with the rows alone. Both are linear in the label.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from imix_aug import VirtualLabels, imix_nce_loss


def weighted_loss(
    query: Tensor,
    key: Tensor,
    labels: VirtualLabels | None,
    *,
    temperature: float = 0.5,
    tau_plus: float = 0.1,
    beta: float = 0.0,
) -> Tensor:
    """Contrast mixed queries with keys, (N, D) each; tau_plus debiases the negatives, beta weighs them by hardness."""
    own = _row_losses(query, key, temperature, tau_plus, beta)
    if labels is None:
        return own.mean()
    other = _row_losses(query, key[labels.partner], temperature, tau_plus, beta)
    return (labels.lam * own + (1 - labels.lam) * other).mean()


def _row_losses(query: Tensor, key: Tensor, temperature: float, tau_plus: float, beta: float) -> Tensor:
    """Return the losses (N,) of queries whose positive is the key in the same row."""
    cosine, negatives = F.cosine_similarity(query, key), len(key) - 1

    def log_sum(at: float) -> Tensor:
        rows = imix_nce_loss(query, key, temperature=at, reduction="none")
        return cosine / at + torch.log(torch.expm1(rows))

    total = log_sum(temperature)
    if beta:  # each negative weighed by exp(beta * logit), relative to the mean of these weights
        total = log_sum(temperature / (1 + beta)) - log_sum(temperature / beta) + math.log(negatives)
    positive = cosine / temperature
    without_false_ones = (total.exp() - negatives * tau_plus * positive.exp()) / (1 - tau_plus)
    rest = without_false_ones.clamp_min(negatives * math.exp(-1 / temperature)).log()
    return F.softplus(rest - positive)
