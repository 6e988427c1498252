"""The losses: each a few lines of the formula, on top of one primitive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imix_aug import _check, _contrast
from imix_aug._check import Reduction
from imix_aug._cross_entropy import plain
from imix_aug._cross_entropy.columns import Positives
from imix_aug._cross_entropy.operator import without_autocast
from imix_aug._embeddings import prepared
from imix_aug._keys.dtensors import takes_dtensors
from imix_aug._labels import VirtualLabels
from imix_aug._types import Number

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


@takes_dtensors
def imix_nce_loss(
    query: Tensor,
    key: Tensor,
    labels: VirtualLabels | None = None,
    *,
    temperature: Number | Tensor = 0.2,
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
    """Contrast each mixed query with the keys of the batch: i-Mix for N-pair losses and MoCo.

    Row i is classified among all keys, its soft target being key i with weight ``lam_i`` and key ``partner(i)`` with
    the rest (Lee et al., ICLR 2021, arXiv 2010.08887, equations 3 and 4). Without labels this is InfoNCE. Memory grows
    with (N + K) x D: the logits are never stored. For symmetric training mix the other view too and
    call it again; never swap the arguments under the same labels (``imix_clip_loss`` knows both directions).

    Args:
        query: ``(N, D)``, embeddings of the mixed view.
        key: ``(N, D)``, embeddings of the other, unmixed view; costs no backward pass if it needs no gradient.
        labels: what ``IMix`` returned beside the mixed view; None for an unmixed batch.
        temperature: what the logits are divided by, a positive float or a 0-d tensor, which may need a gradient.
        negatives: ``(K, D)``, more keys that belong to no row, such as ``NegativeQueue.negatives``.
            A gradient goes to those that need one.
        normalize: scale all rows to unit length first (one shorter than 1e-12 is divided by 1e-12).
        reduction: "mean", "sum", or "none" for a loss per row.
        gather_distributed: take the keys of all ranks of ``process_group``, gradients included, so that DDP's averaged
            gradients equal those of one process with the whole batch. All ranks need equal batch sizes.
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
        >>> from imix_aug import IMix, imix_nce_loss
        >>> net = torch.nn.Linear(32, 16)
        >>> view_1, view_2 = torch.randn(8, 32), torch.randn(8, 32)
        >>> x, labels = IMix(alpha=1.0)(view_1)
        >>> loss = imix_nce_loss(net(x), net(view_2), labels, temperature=0.2)
        >>> loss.backward()
        >>> loss.shape
        torch.Size([])
    """
    _check.matrix("query", query)
    _check.paired_matrix("key", key, query)
    _check.labels(labels, query.shape[0], query.device)
    _check.keys_are_unmixed(labels, query, key)
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
        divisor = contrast.temperature
        if contrast.is_plain and isinstance(divisor, float) and plain.applies(query, key, labels, divisor, reduction):
            return plain.nce_loss(query, key, labels, divisor, reduction)
        return contrast.cross_entropy(query, key, Positives.of_rows(labels, query))


@takes_dtensors
def imix_ntxent_loss(
    query_1: Tensor,
    query_2: Tensor,
    key_1: Tensor | None = None,
    key_2: Tensor | None = None,
    labels: VirtualLabels | None = None,
    *,
    temperature: Number | Tensor = 0.5,
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
    """Contrast two mixed views with both unmixed ones: i-Mix for SimCLR's NT-Xent.

    Both views are mixed with the same labels, in one call of ``IMix`` as below: two calls draw two sets of labels, of
    which one would be lost, and no value shows it. Anchor i of view 1 is classified among all 2N unmixed embeddings,
    less its own components in its own view (columns i and ``partner(i)`` of ``key_1``); its soft target is spread over
    columns i and ``partner(i)`` of ``key_2``. View 2 likewise, and the result is the mean of both (Lee et al., ICLR
    2021, arXiv 2010.08887, its application to SimCLR). With identity labels and ``query_v is key_v`` this
    is the NT-Xent loss of Chen et al., ICML 2020, arXiv 2002.05709, equation 1.

    Args:
        query_1: ``(N, D)``, embeddings of view 1, mixed.
        query_2: ``(N, D)``, embeddings of view 2, mixed with the same lambdas and partners.
        key_1: ``(N, D)``, embeddings of view 1, unmixed; default, without labels, the queries themselves.
        key_2: ``(N, D)``, embeddings of view 2, unmixed; likewise.
        labels: the virtual labels of both mixed views; None for unmixed ones.
        temperature: what the logits are divided by, a positive float or a 0-d tensor, which may need a gradient.
        negatives: ``(K, D)``, more keys that belong to no row.
        normalize: scale all rows to unit length first (one shorter than 1e-12 is divided by 1e-12).
        reduction: "mean" and "sum" over the rows of the two views' mean, or "none" for that mean per row.
        gather_distributed: take the keys of all ranks of ``process_group``, gradients included.
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
        >>> from imix_aug import IMix, imix_ntxent_loss
        >>> net = torch.nn.Linear(32, 16)
        >>> views = torch.randn(2, 8, 32)
        >>> (mixed_1, mixed_2), labels = IMix()((views[0], views[1]))
        >>> loss = imix_ntxent_loss(net(mixed_1), net(mixed_2), net(views[0]), net(views[1]), labels, temperature=0.5)
    """
    _check.not_labels("key_1", key_1, "imix_ntxent_loss(query_1, query_2, key_1, key_2, labels)")
    if key_1 is None and key_2 is None:
        if labels is not None:
            raise ValueError(
                "labels must be None without keys, for mixed queries are contrasted with unmixed keys: "
                "imix_ntxent_loss(query_1, query_2, key_1, key_2, labels)"
            )
        key_1, key_2 = query_1, query_2
    _check.matrix("query_1", query_1)
    for name, value in ("query_2", query_2), ("key_1", key_1), ("key_2", key_2):
        _check.paired_matrix(name, value, query_1, "query_1")
    assert key_1 is not None
    assert key_2 is not None
    _check.labels(labels, query_1.shape[0], query_1.device)
    _check.keys_are_unmixed(labels, query_1, key_1, "_1")
    _check.keys_are_unmixed(labels, query_2, key_2, "_2")
    contrast = _contrast.checked(
        query_1,
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
    n = query_1.shape[0]
    own_view = torch.arange(n, device=query_1.device)[:, None]
    if labels is not None:
        own_view = torch.cat([own_view, labels.partner[:, None]], dim=1)
    with without_autocast(query_1):
        of_view = Positives.of_rows(labels, query_1)
        losses = contrast.cross_entropy(
            torch.cat([query_1, query_2]),
            torch.cat([key_1, key_2]),
            Positives.cat((of_view.shifted(n), of_view)),
            views=2,
            left_out=torch.cat([own_view, n + own_view]),
        )
    if reduction == "none":
        return losses.view(2, n).mean(dim=0)
    return losses / 2 if reduction == "sum" else losses


@takes_dtensors
def imix_clip_loss(
    query: Tensor,
    key: Tensor,
    labels: VirtualLabels | None = None,
    *,
    temperature: Number | Tensor = 0.07,
    normalize: bool = True,
    reduction: Reduction = "mean",
    gather_distributed: bool = False,
    process_group: ProcessGroup | DeviceMesh | None = None,
    ids: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Contrast pairs of two kinds in both directions, one of them mixed: i-Mix for CLIP.

    Each mixed query is classified among all keys, as in ``imix_nce_loss``, and each key among all mixed queries: its
    soft label is spread over the queries that hold a share of it, in proportion to these shares. The result is the mean
    of both directions (Radford et al., ICML 2021, arXiv 2103.00020, figure 3; soft labels as in Lee et al., ICLR 2021,
    arXiv 2010.08887). The arguments of ``imix_nce_loss`` cannot be swapped under the same labels instead. One
    sweep over the logits serves both directions; across ranks, where these are two matrices, there are two.

    Args:
        query: ``(N, D)``, embeddings of the mixed side (images, say).
        key: ``(N, D)``, embeddings of the other, unmixed side (their texts).
        labels: what ``IMix`` returned beside the mixed side, whose partners are a permutation; None for an unmixed one.
        temperature: what the logits are divided by, a positive float or a 0-d tensor, which may need a gradient.
            CLIP's ``logit_scale`` is the logarithm of its inverse: pass ``1 / logit_scale.exp()``.
        normalize: scale all rows to unit length first (one shorter than 1e-12 is divided by 1e-12).
        reduction: "mean" and "sum" over the rows of both directions' mean, or "none" for that mean per row.
        gather_distributed: take the rows of all ranks of ``process_group``, gradients included.
        process_group: a group or a mesh of one dimension; default the default group.
        ids: ``(N,)`` integers: what has the row's id and is none of its positives is no negative either.
        weight: ``(N,)``, what each row and its key count; "mean" is then the weighted mean.

    Returns:
        A 0-d tensor, or ``(N,)`` for ``reduction="none"``; float32, or float64 for float64 embeddings.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape, device or value; the message names the argument.

    Example:
        >>> import torch
        >>> from imix_aug import IMix, imix_clip_loss
        >>> images, texts = torch.randn(8, 32), torch.randn(8, 16)
        >>> image_net, text_net = torch.nn.Linear(32, 4), torch.nn.Linear(16, 4)
        >>> x, labels = IMix()(images)
        >>> loss = imix_clip_loss(image_net(x), text_net(texts), labels, temperature=0.07)
    """
    _check.matrix("query", query)
    _check.paired_matrix("key", key, query)
    _check.labels(labels, query.shape[0], query.device)
    _check.keys_are_unmixed(labels, query, key)
    _check.permutation(labels)
    contrast = _contrast.checked(
        query,
        temperature=temperature,
        normalize=normalize,
        reduction=reduction,
        gather_distributed=gather_distributed,
        process_group=process_group,
        ids=ids,
        weight=weight,
    )
    with without_autocast(query):
        divisor = contrast.temperature
        if (
            contrast.is_plain
            and isinstance(divisor, float)
            and plain.applies_to_both(query, key, labels, divisor, reduction)
        ):
            return plain.both_losses(query, key, labels, divisor, reduction)
        of_queries, of_keys = Positives.of_both(labels, query)
        if contrast.gather_distributed:  # A rank then has its rows over all columns and its columns over all rows.
            forth = contrast.cross_entropy(query, key, of_queries)
            return (forth + contrast.cross_entropy(key, query, of_keys)) / 2
        return contrast.cross_entropy_of_both(query, key, Positives.cat((of_queries, of_keys)))


@takes_dtensors
def imix_supcon_loss(
    query: Tensor,
    key: Tensor | None,
    classes: Tensor,
    labels: VirtualLabels | None = None,
    *,
    temperature: Number | Tensor = 0.1,
    negatives: Tensor | None = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    gather_distributed: bool = False,
    process_group: ProcessGroup | DeviceMesh | None = None,
    hard_negatives: Tensor | None = None,
    weight: Tensor | None = None,
    same_view: bool = False,
) -> Tensor:
    """Contrast each mixed query with the keys of its classes: i-Mix for supervised contrastive learning.

    A virtual class spreads its weight evenly over the keys of the row's class, the row's own key among them (the
    soft labels of Lee et al., ICLR 2021, arXiv 2010.08887, for the loss L_out of Khosla et al., NeurIPS 2020, arXiv
    2004.11362, equation 2, between two views).

    In one batch (``same_view=True``, or no ``key`` at all) a row leaves its own components out: its own key, and its
    partner's where that has a share. Each of its virtual classes spreads over the other keys of that class; one without
    any drops out, and so a row without a positive costs zero, and counts in the mean all the same.

    Args:
        query: ``(N, D)``, embeddings of the mixed view.
        key: ``(N, D)``, embeddings of the other, unmixed view; None, without labels: the queries, ``same_view``.
        classes: ``(N,)``, any integer dtype, the class of each row before it was mixed.
        labels: what ``IMix`` returned beside the mixed view; None for an unmixed batch.
        temperature: what the logits are divided by, a positive float or a 0-d tensor, which may need a gradient.
        negatives: ``(K, D)``, more keys that belong to no class of the batch.
        normalize: scale all rows to unit length first (one shorter than 1e-12 is divided by 1e-12).
        reduction: "mean", "sum", or "none" for a loss per row.
        gather_distributed: take the keys and classes of all ranks of ``process_group``, gradients included.
        process_group: a group or a mesh of one dimension; default the default group.
        hard_negatives: ``(N, H, D)``, further columns of each row's own.
        weight: ``(N,)``, what each row counts; "mean" is then the weighted mean.
        same_view: the keys are the very views that were mixed, not others: a row leaves its own components out.

    Returns:
        A 0-d tensor, or ``(N,)`` for ``reduction="none"``; float32, or float64 for float64 embeddings.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape, device or value; the message names the argument.

    Example:
        >>> import torch
        >>> from imix_aug import IMix, imix_supcon_loss
        >>> net = torch.nn.Linear(32, 16)
        >>> view_1, view_2, classes = torch.randn(8, 32), torch.randn(8, 32), torch.randint(3, (8,))
        >>> x, labels = IMix()(view_1)
        >>> loss = imix_supcon_loss(net(x), net(view_2), classes, labels, temperature=0.1)
        >>> in_one_batch = imix_supcon_loss(net(x), net(view_1), classes, labels, same_view=True)
    """
    _check.not_labels("classes", classes, "imix_supcon_loss(query, key, classes, labels)")
    _check.flag("same_view", same_view)
    if key is None:
        if labels is not None:
            raise ValueError(
                "labels must be None without key, for mixed queries are contrasted with unmixed keys: "
                "imix_supcon_loss(query, key, classes, labels, same_view=True)"
            )
        key, same_view = query, True
    _check.matrix("query", query)
    _check.paired_matrix("key", key, query)
    classes = _check.integers("classes", classes, query.shape[0], query.device)
    _check.labels(labels, query.shape[0], query.device)
    _check.keys_are_unmixed(labels, query, key)
    few = 1 if labels is None else 2
    if same_view and gather_distributed and query.shape[0] <= few:
        raise ValueError(
            f"query must have more than {few} rows per rank, for a row leaves out its components, got {query.shape[0]}"
        )
    contrast = _contrast.checked(
        query,
        temperature=temperature,
        negatives=negatives,
        normalize=normalize,
        reduction=reduction,
        gather_distributed=gather_distributed,
        process_group=process_group,
        hard_negatives=hard_negatives,
        weight=weight,
    )  # No ids: rows of one id have one class, so all that has the row's id is a positive, or its own key.
    with without_autocast(query):
        positives = Positives.of_rows(labels, query)
        return contrast.cross_entropy(query, key, positives, classes=classes, same_view=same_view)


def imix_byol_loss(
    prediction: Tensor,
    target: Tensor,
    labels: VirtualLabels | None = None,
    *,
    normalize: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """Pull each mixed prediction towards its expected target: i-Mix for BYOL and SimSiam.

    Row i costs ``2 - 2 <p_i, lam_i z_i + (1 - lam_i) z_partner(i)>`` (Lee et al., ICLR 2021, arXiv 2010.08887, its
    application to BYOL; without labels, and with normalisation, Grill et al., NeurIPS 2020, arXiv 2006.07733, equation
    2). SimSiam's published loss is half of it, less one: take half of it, and its learning rate fits.

    Args:
        prediction: ``(N, D)``, the predictor's output for the mixed view.
        target: ``(N, D)``, the target projection of the other, unmixed view; a constant, no gradient goes to it.
        labels: what ``IMix`` returned beside the mixed view; None for an unmixed batch.
        normalize: scale all rows to unit length first (one shorter than 1e-12 is divided by 1e-12).
        reduction: "mean", "sum", or "none" for a loss per row.

    Returns:
        A 0-d tensor, or ``(N,)`` for ``reduction="none"``; float32, or float64 for float64 embeddings.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape, device or value; the message names the argument.

    Example:
        >>> import torch
        >>> from imix_aug import VirtualLabels, imix_byol_loss
        >>> labels = VirtualLabels(torch.tensor([0.75, 0.5]), torch.tensor([1, 0]))
        >>> imix_byol_loss(torch.eye(2), torch.eye(2), labels, reduction="none")
        tensor([0.5000, 1.0000])
    """
    _check.matrix("prediction", prediction)
    _check.paired_matrix("target", target, prediction, "prediction")
    _check.labels(labels, prediction.shape[0], prediction.device)
    _check.flag("normalize", normalize)
    _check.reduction(reduction)
    with without_autocast(prediction):
        constant = prepared(target.detach(), normalize)
        expected = constant if labels is None else Positives.of(labels, prediction.dtype).mean(constant)
    return reduce(2 - 2 * (prepared(prediction, normalize) * expected).sum(dim=1), reduction)


def reduce(losses: Tensor, reduction: str) -> Tensor:
    """Return the mean or the sum of the rows' losses, or these themselves."""
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()
