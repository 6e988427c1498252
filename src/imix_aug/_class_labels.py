"""Labels that spread over the keys of a class: one or two positives for the primitive, and the rest as a mean key.

A cross-entropy is linear in its label, so a label that is spread over many keys costs one product with their mean,
beside the primitive's cross-entropy with a few of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from imix_aug._cross_entropy.columns import Positives
from imix_aug._keys.class_sums import mean, with_ones
from imix_aug._keys.keys import Keys


class ClassLabels(NamedTuple):
    """What the rows' labels come to.

    Attributes:
        positives: the columns that the primitive contrasts with.
        rest: ``(N, D)``, each label's mean key, less what ``positives`` hold of it.
        mass: ``(N,)``, the part of each label that found a key; None where every label found one.
    """

    positives: Positives
    rest: Tensor
    mass: Tensor | None


def over_classes(components: Positives, key: Tensor, keys: Keys, classes: Tensor) -> ClassLabels:
    """Spread each component's share over all keys of its class, its own among them."""
    return ClassLabels(components, components.mean(mean(keys.class_sums(classes)) - key), None)


def over_class_mates(components: Positives, key: Tensor, keys: Keys, classes: Tensor) -> ClassLabels:
    """Spread each component's share over the keys of its class that are no component of the row; drop what finds none.

    The primitive gets a mate for each, so that of a single one no digits are lost; where none is among this process's
    keys, another row stands in, whose share ``rest`` takes back.
    """
    columns, shares = components
    of_class = classes[columns]
    present = columns != columns[:, :1]
    present[:, 0] = True
    own = with_ones(key)[columns]
    others = keys.class_sums(classes)[columns]
    for place in range(columns.shape[1]):
        is_mate = present[:, place, None] & (of_class[:, place, None] == of_class)
        others = others - torch.where(is_mate[:, :, None], own[:, place, None], 0)
    count = others[..., -1]
    mates, has_mate = _mates(classes, columns)
    stand_ins, _ = _mates(torch.zeros_like(classes), columns)
    mates = torch.where(has_mate, mates, stand_ins[:, :1])
    average = others[..., :-1] / count.clamp_min(1)[..., None]
    # Of two keys' sum less one of them the other is not left to the last digit.
    excess = torch.where((has_mate & (count == 1))[..., None], 0, average - key[mates])
    shares = torch.where(count > 0, shares, 0)
    mass = shares.sum(dim=1)
    return ClassLabels(_distinct(mates, shares, mass), (shares[..., None] * excess).sum(dim=1), mass)


def _mates(classes: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each column a row of its class that is none of the columns beside it, and whether there is one."""
    n, width = columns.shape
    ordered, order = classes.sort(stable=True)
    position = torch.empty_like(order).scatter(0, order, torch.arange(n, device=order.device))
    start, end = (torch.searchsorted(ordered, classes, side=side) for side in ("left", "right"))
    start, size, position = start[columns], (end - start)[columns], position[columns]
    mates, found = columns, torch.zeros_like(columns, dtype=torch.bool)
    for step in range(1, width + 1):  # Among so many steps one at least does not end at a column beside it.
        candidate = order[start + (position - start + step) % size]
        is_free = (candidate[:, :, None] != columns[:, None]).all(dim=2) & ~found
        mates, found = torch.where(is_free, candidate, mates), found | is_free
    return mates, found


def _distinct(columns: Tensor, shares: Tensor, mass: Tensor) -> Positives:
    """Bring the shares to a sum of one, and columns that come twice together; a row without mass gets any."""
    shares = shares / torch.where(mass == 0, 1, mass)[:, None]
    rest = torch.where(columns[:, 1:] == columns[:, :1], 0, shares[:, 1:])
    return Positives(columns, torch.cat([1 - rest.sum(dim=1, keepdim=True), rest], dim=1))
