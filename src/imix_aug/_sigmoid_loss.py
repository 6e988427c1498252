"""SigLIP's loss with virtual labels: every pair is a question of its own, to be answered yes by a share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imix_aug import _check, _contrast
from imix_aug._check import Reduction
from imix_aug._contrast import Contrast
from imix_aug._cross_entropy.columns import LeftOut, Positives
from imix_aug._cross_entropy.operator import without_autocast
from imix_aug._cross_entropy.softplus import softplus, softplus_sums
from imix_aug._embeddings import prepared, product_dtype
from imix_aug._keys.dtensors import takes_dtensors
from imix_aug._labels import VirtualLabels
from imix_aug._types import Number

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


@takes_dtensors
def imix_sigmoid_loss(
    query: Tensor,
    key: Tensor,
    labels: VirtualLabels | None = None,
    *,
    temperature: Number | Tensor = 0.1,
    bias: Number | Tensor = -10.0,
    negatives: Tensor | None = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    gather_distributed: bool = False,
    process_group: ProcessGroup | DeviceMesh | None = None,
    ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    hard_negatives: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Ask of each pair alone whether it belongs together: i-Mix for SigLIP.

    With logits ``s_ij = <query_i, key_j> / temperature + bias`` row i costs
    ``-sum_j (y_ij log sigmoid(s_ij) + (1 - y_ij) log sigmoid(-s_ij))``, where ``y_ij`` is ``lam_i`` at key i,
    ``1 - lam_i`` at key ``partner(i)`` and zero elsewhere (Zhai et al., ICCV 2023, arXiv 2303.15343, algorithm 1; soft
    labels as in Lee et al., ICLR 2021, arXiv 2010.08887). There is one direction: it knows all pairs. Memory grows
    with (N + K) x D: the logits are never stored.

    Args:
        query: ``(N, D)``, embeddings of the mixed side (images, say).
        key: ``(N, D)``, embeddings of the other, unmixed side (their texts).
        labels: what ``IMix`` returned beside the mixed side; None for an unmixed batch.
        temperature: what the logits are divided by, a positive float or a 0-d tensor, which may need a gradient.
            SigLIP's ``logit_scale`` is the logarithm of its inverse: pass ``1 / logit_scale.exp()``.
        bias: what is added to the logits, a float or a 0-d tensor, which may need a gradient: SigLIP's ``logit_bias``.
        negatives: ``(K, D)``, more keys that belong to no row.
        normalize: scale all rows to unit length first (one shorter than 1e-12 is divided by 1e-12).
        reduction: "mean" and "sum" over the rows, each the sum over its columns, or "none" for a loss per row.
        gather_distributed: take the keys of all ranks of ``process_group``, gradients included; every rank holds them.
        process_group: a group or a mesh of one dimension; default the default group.
        ids: ``(N,)`` integers: a column with the row's id that is none of its positives is left out.
        negative_ids: ``(K,)`` integers, those of ``negatives``.
        hard_negatives: ``(N, H, D)``, further columns of each row's own.
        weight: ``(N,)``, what each row counts; "mean" is then the weighted mean.

    Returns:
        A 0-d tensor, or ``(N,)`` for ``reduction="none"``; float32, or float64 for float64 embeddings.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape, device or value; the message names the argument.

    Example:
        >>> import torch
        >>> from imix_aug import IMix, imix_sigmoid_loss
        >>> images, texts = torch.randn(8, 32), torch.randn(8, 16)
        >>> image_net, text_net = torch.nn.Linear(32, 4), torch.nn.Linear(16, 4)
        >>> x, labels = IMix()(images)
        >>> loss = imix_sigmoid_loss(image_net(x), text_net(texts), labels, temperature=0.1, bias=-10.0)
    """
    _check.matrix("query", query)
    _check.paired_matrix("key", key, query)
    _check.labels(labels, query.shape[0], query.device)
    _check.keys_are_unmixed(labels, query, key)
    bias = _check.bias(bias, query.device)
    contrast = _contrast.checked(
        query,
        temperature=temperature,
        negatives=negatives,
        normalize=normalize,
        reduction=reduction,
        gather_distributed=gather_distributed,
        process_group=process_group,
        ids=ids,
        negative_ids=negative_ids,
        hard_negatives=hard_negatives,
        weight=weight,
    )
    with without_autocast(query):
        losses = _losses(query, key, labels, bias, contrast)
        return contrast.reduced(losses if weight is None else losses * weight, query.shape[0], weight)


def _losses(
    query: Tensor, key: Tensor, labels: VirtualLabels | None, bias: float | Tensor, contrast: Contrast
) -> Tensor:
    embeddings = (query, key, contrast.negatives, contrast.hard_negatives)
    dtype = product_dtype(contrast.autocast, *(each for each in embeddings if each is not None))
    query, key = prepared(query, contrast.normalize) / contrast.temperature, prepared(key, contrast.normalize)
    offset = bias.to(query) if isinstance(bias, Tensor) else query.new_full((), bias)
    key, key_ids, first = _of_all_ranks(key, contrast)
    positives = Positives.of_rows(labels, query).shifted(first)
    left_out = LeftOut(positives.columns, contrast.ids, key_ids)
    losses = softplus_sums(query, key, offset, left_out, dtype) + _at_positives(query, key, offset, positives)
    if contrast.negatives is not None:
        negatives = prepared(contrast.negatives, contrast.normalize)
        left_out = LeftOut(None, contrast.ids, contrast.negative_ids)
        losses = losses + softplus_sums(query, negatives, offset, left_out, dtype)
    if contrast.hard_negatives is not None:
        hard = prepared(contrast.hard_negatives, contrast.normalize)
        losses = losses + softplus(torch.matmul(hard, query[:, :, None])[:, :, 0] + offset).sum(dim=1)
    return losses


def _of_all_ranks(key: Tensor, contrast: Contrast) -> tuple[Tensor, Tensor | None, int]:
    """Return the keys and their ids, and the row at which this rank's own begin."""
    if not contrast.gather_distributed:
        return key, contrast.ids, 0
    from imix_aug._keys import ranks

    return ranks.gather_keys(key, contrast.ids, contrast.process_group, contrast.travelling)


def _at_positives(query: Tensor, key: Tensor, bias: Tensor, positives: Positives) -> Tensor:
    """Return what the rows' positive columns cost: a share says yes, the rest of it no."""
    total = query.new_zeros(query.shape[0])
    first = positives.columns[:, 0]
    for place, (column, share) in enumerate(zip(positives.columns.unbind(1), positives.shares.unbind(1), strict=True)):
        logits = (query * key[column]).sum(dim=1) + bias
        loss = share * softplus(-logits) + (1 - share) * softplus(logits)
        total = total + (loss if place == 0 else torch.where(column == first, 0, loss))
    return total
