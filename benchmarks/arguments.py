"""One loss per argument that the losses take beside embeddings and labels, for what each of them costs."""

import functools

import torch
from torch import Tensor

from benchmarks.contestants import Batch, Loss
from imix_aug import (
    imix_clip_loss,
    imix_nce_loss,
    imix_ntxent_loss,
    imix_sigmoid_loss,
    imix_supcon_loss,
)

HARD, NEGATIVES = 4, 4096


def ids(batch: Batch) -> Tensor:
    return torch.arange(len(batch.query), device=batch.query.device) // 2


def like(batch: Batch, *shape: int, learnt: bool = False) -> Tensor:
    return _drawn((*shape, batch.query.shape[1]), batch.query.dtype, batch.query.device, learnt)


@functools.cache  # once, for drawing takes longer than much that is timed
def _drawn(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, learnt: bool) -> Tensor:
    return torch.randn(*shape, dtype=dtype, device=device).requires_grad_(learnt)


def nce(batch: Batch, **how: object) -> Tensor:
    return imix_nce_loss(batch.query, batch.key, batch.labels, temperature=0.2, **how)  # type: ignore[arg-type]


def temperature(batch: Batch) -> Tensor:
    return batch.query.new_tensor(0.2).requires_grad_()


ARGUMENTS: dict[str, Loss] = {
    "imix_nce_loss": nce,
    "labels=None": lambda batch: imix_nce_loss(batch.query, batch.key, temperature=0.2),
    'reduction="none"': lambda batch: nce(batch, reduction="none").sum(),
    "temperature, learnt": lambda batch: imix_nce_loss(
        batch.query, batch.key, batch.labels, temperature=temperature(batch)
    ),
    "ids": lambda batch: nce(batch, ids=ids(batch)),
    "weight": lambda batch: nce(batch, weight=torch.rand_like(batch.query[:, 0])),
    f"negatives, {NEGATIVES:,}": lambda batch: nce(batch, negatives=like(batch, NEGATIVES)),
    f"negatives, {NEGATIVES:,} learnt": lambda batch: nce(batch, negatives=like(batch, NEGATIVES, learnt=True)),
    f"hard_negatives, {HARD} learnt": lambda batch: nce(
        batch, hard_negatives=like(batch, len(batch.query), HARD, learnt=True)
    ),
    "imix_ntxent_loss": lambda batch: imix_ntxent_loss(
        batch.query, batch.query.flip(1), batch.key, batch.key.flip(1), batch.labels, temperature=0.2
    ),
    "imix_clip_loss": lambda batch: imix_clip_loss(batch.query, batch.key, batch.labels, temperature=0.2),
    "imix_sigmoid_loss": lambda batch: imix_sigmoid_loss(batch.query, batch.key, batch.labels),
    "imix_supcon_loss": lambda batch: imix_supcon_loss(batch.query, batch.key, ids(batch), batch.labels),
    "same_view=True": lambda batch: imix_supcon_loss(batch.query, batch.key, ids(batch), batch.labels, same_view=True),
}
