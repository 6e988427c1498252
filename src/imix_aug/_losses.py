"""The losses: each a few lines of the formula, on top of one primitive."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from imix_aug import _check
from imix_aug._keys.keys import Keys, choose_keys
from imix_aug._labels import VirtualLabels
from imix_aug._cross_entropy import node
from imix_aug._keys.ring import RingKeys

_REDUCTIONS = ("mean", "sum", "none")


def imix_nce_loss(
    query: Tensor,
    key: Tensor,
    labels: VirtualLabels | None = None,
    *,
    temperature: float | Tensor = 0.2,
    negatives: Tensor | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    gather_distributed: bool = False,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Contrast each mixed query with the keys of the batch: i-Mix for N-pair losses and MoCo.

    Row i is classified among all keys, its soft target being key i with weight ``lam_i`` and key ``partner(i)`` with
    the rest (Lee et al., ICLR 2021, arXiv 2010.08887, equations 3 and 4). Without labels this is InfoNCE. Memory grows
    with (N + K) x D: the logits are never stored. For symmetric training call it twice with the views' roles swapped.

    Args:
        query: ``(N, D)``, embeddings of the mixed view.
        key: ``(N, D)``, embeddings of the other, unmixed view; costs no backward pass if it needs no gradient.
        labels: what ``IMix`` returned beside the mixed view; None for an unmixed batch.
        temperature: what the logits are divided by, a positive float or a 0-d tensor, which may need a gradient.
        negatives: ``(K, D)``, more keys that belong to no row, such as ``NegativeQueue.negatives``; constant.
        normalize: scale all rows to unit length first (those shorter than 1e-12 are divided by that).
        reduction: "mean", "sum", or "none" for a loss a row.
        gather_distributed: take the keys of all ranks of ``process_group``, gradients included, so that DDP's averaged
            gradients equal those of one process with the whole batch. All ranks need equal batch sizes.
        process_group: default the default group.

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
        >>> loss = imix_nce_loss(net(x), net(view_2), labels)
        >>> loss.backward()
        >>> loss.shape
        torch.Size([])
    """
    _check.rows("query", query)
    _check.paired_rows("key", key, query)
    _check_contrast(query, labels, negatives, normalize, reduction, gather_distributed, process_group)
    temperature = _check.temperature(temperature, query.device)
    is_plain = normalize and negatives is None and not gather_distributed and not torch.compiler.is_compiling()
    if is_plain and isinstance(temperature, float):
        loss = node.nce_loss(query, key, labels, 1 / temperature, reduction)
        if loss is not None:
            return loss
    key = _rows(key, normalize)
    return _soft_cross_entropy(
        _rows(query, normalize) / temperature,
        _expected_rows(key, labels),
        choose_keys(key, gather_distributed, process_group),
        None if negatives is None else _rows(negatives.detach(), normalize),
        dtype=_product_dtype(query),
        reduction=reduction,
    )


def imix_ntxent_loss(
    query_1: Tensor,
    query_2: Tensor,
    key_1: Tensor,
    key_2: Tensor,
    labels: VirtualLabels | None,
    *,
    temperature: float | Tensor = 0.5,
    negatives: Tensor | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    gather_distributed: bool = False,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Contrast two mixed views with both unmixed ones: i-Mix for SimCLR's NT-Xent.

    Both views are mixed with the same labels. Anchor i of view 1 is classified among all 2N unmixed embeddings, less
    its own components in its own view (columns i and ``partner(i)`` of ``key_1``); its soft target is spread over
    columns i and ``partner(i)`` of ``key_2``. View 2 likewise, and the result is the mean of both (Lee et al., ICLR
    2021, arXiv 2010.08887, its application to SimCLR). With identity labels and ``query_v is key_v`` this
    is the NT-Xent loss of Chen et al., ICML 2020, arXiv 2002.05709, equation 1.

    Args:
        query_1: ``(N, D)``, embeddings of view 1, mixed.
        query_2: ``(N, D)``, embeddings of view 2, mixed with the same lambdas and partners.
        key_1: ``(N, D)``, embeddings of view 1, unmixed.
        key_2: ``(N, D)``, embeddings of view 2, unmixed.
        labels: the virtual labels of both mixed views; None for unmixed ones.
        temperature: what the logits are divided by, a positive float or a 0-d tensor, which may need a gradient.
        negatives: ``(K, D)``, more keys that belong to no row; constant.
        normalize: scale all rows to unit length first (those shorter than 1e-12 are divided by that).
        reduction: "mean" and "sum" over the rows of the two views' mean, or "none" for that mean a row.
        gather_distributed: take the keys of all ranks of ``process_group``, gradients included.
        process_group: default the default group.

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
        >>> loss = imix_ntxent_loss(net(mixed_1), net(mixed_2), net(views[0]), net(views[1]), labels)
    """
    _check.rows("query_1", query_1)
    for name, value in ("query_2", query_2), ("key_1", key_1), ("key_2", key_2):
        _check.paired_rows(name, value, query_1, "query_1")
    _check_contrast(query_1, labels, negatives, normalize, reduction, gather_distributed, process_group)
    temperature = _check.temperature(temperature, query_1.device)

    n, dtype = query_1.shape[0], _product_dtype(query_1)
    query_1, query_2, key_1, key_2 = (_rows(each, normalize) for each in (query_1, query_2, key_1, key_2))
    own = torch.arange(n, device=query_1.device)
    components = own[:, None] if labels is None else torch.stack([own, labels.partner], dim=1)
    losses = _soft_cross_entropy(
        torch.cat([query_1, query_2]) / temperature,
        torch.cat([_expected_rows(key_2, labels), _expected_rows(key_1, labels)]),
        choose_keys(torch.cat([key_1, key_2]), gather_distributed, process_group),
        None if negatives is None else _rows(negatives.detach(), normalize),
        excluded=torch.cat([components, n + components]),
        dtype=dtype,
        reduction=reduction,
    )
    if reduction == "none":
        return losses.view(2, n).mean(dim=0)
    return losses / 2 if reduction == "sum" else losses


def imix_supcon_loss(
    query: Tensor,
    key: Tensor,
    classes: Tensor,
    labels: VirtualLabels | None = None,
    *,
    temperature: float | Tensor = 0.1,
    negatives: Tensor | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    gather_distributed: bool = False,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Contrast each mixed query with the keys of its classes: i-Mix for supervised contrastive learning.

    A virtual class spreads its weight evenly over the keys of the row's class, the row's own key among them (the
    soft labels of Lee et al., ICLR 2021, arXiv 2010.08887, for the loss L_out of Khosla et al., NeurIPS 2020, arXiv
    2004.11362, equation 2, between two views).

    Args:
        query: ``(N, D)``, embeddings of the mixed view.
        key: ``(N, D)``, embeddings of the other, unmixed view.
        classes: ``(N,)``, any integer dtype, the class of each row before it was mixed.
        labels: what ``IMix`` returned beside the mixed view; None for an unmixed batch.
        temperature: what the logits are divided by, a positive float or a 0-d tensor, which may need a gradient.
        negatives: ``(K, D)``, more keys that belong to no class of the batch; constant.
        normalize: scale all rows to unit length first (those shorter than 1e-12 are divided by that).
        reduction: "mean", "sum", or "none" for a loss a row.
        gather_distributed: take the keys and classes of all ranks of ``process_group``, gradients included.
        process_group: default the default group.

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
        >>> loss = imix_supcon_loss(net(x), net(view_2), classes, labels)
    """
    _check.rows("query", query)
    _check.paired_rows("key", key, query)
    _check.classes(classes, query.shape[0], query.device)
    _check_contrast(query, labels, negatives, normalize, reduction, gather_distributed, process_group)
    temperature = _check.temperature(temperature, query.device)
    keys = choose_keys(_rows(key, normalize), gather_distributed, process_group)
    return _soft_cross_entropy(
        _rows(query, normalize) / temperature,
        _expected_rows(keys.class_means(classes), labels),
        keys,
        None if negatives is None else _rows(negatives.detach(), normalize),
        dtype=_product_dtype(query),
        reduction=reduction,
    )


def imix_byol_loss(
    prediction: Tensor,
    target: Tensor,
    labels: VirtualLabels | None = None,
    *,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """Pull each mixed prediction towards its expected target: i-Mix for BYOL and SimSiam.

    Row i costs ``2 - 2 <p_i, lam_i z_i + (1 - lam_i) z_partner(i)>`` (Lee et al., ICLR 2021, arXiv 2010.08887, its
    application to BYOL; without labels, and with normalisation, Grill et al., NeurIPS 2020, arXiv 2006.07733, equation
    2).

    Args:
        prediction: ``(N, D)``, the predictor's output for the mixed view.
        target: ``(N, D)``, the target projection of the other, unmixed view; a constant, no gradient goes to it.
        labels: what ``IMix`` returned beside the mixed view; None for an unmixed batch.
        normalize: scale all rows to unit length first (those shorter than 1e-12 are divided by that).
        reduction: "mean", "sum", or "none" for a loss a row.

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
    _check.rows("prediction", prediction)
    _check.paired_rows("target", target, prediction, "prediction")
    _check.labels(labels, prediction.shape[0], prediction.device)
    _check.flag("normalize", normalize)
    _check.choice("reduction", reduction, _REDUCTIONS)
    expected = _expected_rows(_rows(target.detach(), normalize), labels)
    return reduce(2 - 2 * (_rows(prediction, normalize) * expected).sum(dim=1), reduction)


def _soft_cross_entropy(
    query: Tensor,
    target: Tensor,
    keys: Keys | RingKeys,
    negatives: Tensor | None,
    *,
    excluded: Tensor | None = None,
    dtype: torch.dtype,
    reduction: str,
) -> Tensor:
    """Return the cross-entropy of each query's soft label; ``target`` holds the keys' means under these labels."""
    if reduction == "none":
        rows = keys.row_logsumexp(query, negatives, excluded=excluded, dtype=dtype, summed=False)
        return rows - (query * target).sum(dim=1)
    total = keys.row_logsumexp(query, negatives, excluded=excluded, dtype=dtype, summed=True) - (query * target).sum()
    return total if reduction == "sum" else total / query.shape[0]


def _rows(embeddings: Tensor, normalize: bool) -> Tensor:
    """Return the embeddings in the dtype of all sums, at unit length if wanted."""
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    return unit_rows(embeddings) if normalize else embeddings


def unit_rows(rows: Tensor, eps: float = 1e-12) -> Tensor:
    """Divide each row by its length, or by ``eps`` where that is greater; squares may overflow no row."""
    if rows.device.type == "cpu" and not torch.compiler.is_compiling():  # where a look at a value costs nothing
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        if lengths.sum().item() < math.inf:
            return torch.div(rows, lengths.clamp_min(eps))
    largest = rows.detach().abs().amax(dim=1, keepdim=True).clamp_min(1)
    rows = rows / largest
    return torch.div(rows, torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(eps / largest))


def _expected_rows(rows: Tensor, labels: VirtualLabels | None) -> Tensor:
    """Return each label's mean over the rows: ``lam_i rows_i + (1 - lam_i) rows_partner(i)``."""
    if labels is None:
        return rows
    return torch.lerp(rows.index_select(0, labels.partner), rows, labels.lam[:, None].to(rows.dtype))


def _product_dtype(rows: Tensor) -> torch.dtype:
    """Return the dtype of the matrix products: autocast's where it is on, else that of the embeddings."""
    device = rows.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype


def reduce(losses: Tensor, reduction: str) -> Tensor:
    """Return the mean or the sum of the rows' losses, or these themselves."""
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def _check_contrast(
    query: Tensor,
    labels: object,
    negatives: object,
    normalize: object,
    reduction: object,
    gather_distributed: object,
    process_group: object,
) -> None:
    _check.labels(labels, query.shape[0], query.device)
    if negatives is not None:
        _check.rows("negatives", negatives, query)
    _check.flag("normalize", normalize)
    _check.choice("reduction", reduction, _REDUCTIONS)
    _check.process_group(gather_distributed, process_group)
