"""What all contrastive losses share: their common arguments, and the soft cross-entropy on top of the primitive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imix_aug import _check
from imix_aug._check import Reduction
from imix_aug._class_labels import over_class_mates, over_classes
from imix_aug._cross_entropy.blocked import SAFE_LOGIT
from imix_aug._cross_entropy.both import cross_entropy_of_both
from imix_aug._cross_entropy.columns import LeftOut, Positives
from imix_aug._cross_entropy.operator import autocast_dtype
from imix_aug._embeddings import prepared, product_dtype
from imix_aug._keys.choose import choose_keys

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Contrast:
    """The arguments that all contrastive losses take alike, once checked."""

    autocast: torch.dtype | None
    temperature: float | Tensor
    negatives: Tensor | None
    normalize: bool
    reduction: Reduction
    gather_distributed: bool
    process_group: ProcessGroup | None
    ids: Tensor | None
    negative_ids: Tensor | None
    hard_negatives: Tensor | None
    weight: Tensor | None

    @property
    def is_plain(self) -> bool:
        """Tell whether a batch's own keys are all that there is."""
        return (
            self.normalize
            and not self.gather_distributed
            and self.autocast is None
            and self.negatives is self.ids is self.hard_negatives is self.weight is None
        )

    @property
    def travelling(self) -> tuple[bool, ...]:
        """Tell what else ranks exchange, which all of them must do alike (``ranks.TRAVELLING``)."""
        weighted_mean = self.weight is not None and self.reduction == "mean"
        return self.ids is not None, weighted_mean, weighted_mean and _needs_gradient(self.weight)

    @property
    def bounds_logits(self) -> bool:
        """Tell whether unit rows and a known temperature keep all logits small."""
        return self.normalize and isinstance(self.temperature, float) and self.temperature * SAFE_LOGIT >= 1

    def cross_entropy(
        self,
        query: Tensor,
        key: Tensor,
        positives: Positives,
        *,
        views: int = 1,
        left_out: Tensor | None = None,
        classes: Tensor | None = None,
        same_view: bool = False,
    ) -> Tensor:
        """Return the queries' soft cross-entropy over all keys, reduced over the rows of all views.

        Args:
            query: ``(V * N, D)``, the views one after the other.
            key: ``(V * N, D)``.
            positives: the columns of ``key`` that a row's label is spread over.
            views: V; ids, weights and hard negatives are those of N rows.
            left_out: ``(V * N, E)``, columns of ``key`` that a row leaves out.
            classes: ``(V * N,)``: a positive column's share is spread evenly over all keys of its class.
            same_view: with ``classes``: a row leaves its positive columns out, and their shares go to the others.
        """
        ids, weight, hard = (_repeat(each, views) for each in (self.ids, self.weight, self.hard_negatives))
        embeddings = (query, key, self.negatives, self.hard_negatives)
        dtype = product_dtype(self.autocast, *(each for each in embeddings if each is not None))
        query, key = self._embedded(query, key)
        negatives = None if self.negatives is None else prepared(self.negatives, self.normalize)
        if classes is not None:
            key = _rounded(key, dtype)  # The mean over a class is to see the same rows as the products.
        keys = choose_keys(key, self.gather_distributed, self.process_group, self.travelling)
        counts, rest_of_label = weight, None
        if classes is not None:
            spread = over_class_mates if same_view else over_classes
            left_out = positives.columns if same_view else left_out
            positives, rest_of_label, mass = spread(positives, key, keys, classes)
            counts = mass if weight is None else weight if mass is None else weight * mass
        summed = self.reduction != "none" and not _needs_gradient(counts)
        losses = keys.soft_cross_entropy(
            query,
            negatives,
            positives,
            left_out=LeftOut(left_out, ids, ids, self.negative_ids),
            further=None if hard is None else _row_logsumexp(query, prepared(hard, self.normalize)),
            dtype=dtype,
            summed=summed,
            weight=counts if summed else None,
            bounded=self.bounds_logits,
        )
        if not summed and counts is not None:
            losses = losses * counts
        if rest_of_label is not None:
            agreement = (_rounded(query, dtype) * rest_of_label).sum(dim=1)
            agreement = agreement if weight is None else agreement * weight
            losses = losses - (agreement.sum() if summed else agreement)
        return self.reduced(losses, query.shape[0], weight)

    def cross_entropy_of_both(self, query: Tensor, key: Tensor, positives: Positives) -> Tensor:
        """Return the mean of the queries' soft cross-entropy over the keys and of the keys' over the queries.

        Args:
            query: ``(N, D)``.
            key: ``(N, D)``.
            positives: of 2N rows, the columns that each query's label is spread over, and then each key's.
        """
        summed = self.reduction != "none" and not _needs_gradient(self.weight)
        losses = cross_entropy_of_both(
            *self._embedded(query, key),
            positives,
            ids=self.ids,
            dtype=product_dtype(self.autocast, query, key),
            summed=summed,
            weight=self.weight if summed else None,
            bounded=self.bounds_logits,
        )
        if not summed and self.weight is not None:
            losses = losses * self.weight
        return self.reduced(losses, query.shape[0], self.weight)

    def _embedded(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows whose products are logits."""
        return prepared(query, self.normalize) / self.temperature, prepared(key, self.normalize)

    def reduced(self, losses: Tensor, n: int, weight: Tensor | None) -> Tensor:
        """Return the mean or the sum of n rows' losses, weighed already, or these themselves."""
        if self.reduction == "none":
            return losses
        total = losses if losses.dim() == 0 else losses.sum()
        if self.reduction == "sum":
            return total
        if weight is None:
            return total / n
        mass = weight.sum()
        if self.gather_distributed:
            from imix_aug._keys.ranks import mean_over_ranks

            mass = mean_over_ranks(mass, self.process_group)
        return total / mass


def checked(
    query: Tensor,
    *,
    temperature: object,
    negatives: object = None,
    normalize: object,
    reduction: object,
    gather_distributed: object,
    process_group: object,
    ids: object = None,
    negative_ids: object = None,
    hard_negatives: object = None,
    weight: object = None,
) -> Contrast:
    """Refuse what is wrong with the common arguments, and return the rest."""
    n, device = query.shape[0], query.device
    if negatives is not None:
        negatives = _check.negatives(negatives, query)
    if hard_negatives is not None:
        hard_negatives = _check.hard_negatives(hard_negatives, query)
    if ids is not None:
        ids = _check.integers("ids", ids, n, device)
    if negative_ids is not None:
        if negatives is None or ids is None:
            raise ValueError("negative_ids must be None unless negatives and ids are given")
        negative_ids = _check.integers("negative_ids", negative_ids, negatives.shape[0], device)
    if weight is not None:
        weight = _check.weight(weight, n, device)
    return Contrast(
        autocast=autocast_dtype(device.type),
        temperature=_check.temperature(temperature, device),
        negatives=negatives,
        normalize=_check.flag("normalize", normalize),
        reduction=_check.reduction(reduction),
        gather_distributed=_check.flag("gather_distributed", gather_distributed),
        process_group=_check.process_group(gather_distributed, process_group),
        ids=ids,
        negative_ids=negative_ids,
        hard_negatives=hard_negatives,
        weight=weight,
    )


def _repeat(per_row: Tensor | None, views: int) -> Tensor | None:
    return per_row if per_row is None or views == 1 else torch.cat([per_row] * views)


def _needs_gradient(weight: Tensor | None) -> bool:
    return weight is not None and weight.requires_grad and torch.is_grad_enabled()


def _row_logsumexp(query: Tensor, own_columns: Tensor) -> Tensor:
    """Return the log-sum-exp of each row's logits with its own columns, ``(N, H, D)``."""
    return torch.matmul(own_columns, query[:, :, None])[:, :, 0].logsumexp(dim=1)


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the numbers that the matrix products see, the gradient passing as if they were not rounded."""
    return values + (values.to(dtype).to(values.dtype) - values).detach()
