"""The six methods. Each is one loss over two views, and takes i-Mix by mixing the first and keeping its labels."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from imix_aug import (
    IMix,
    NegativeQueue,
    VirtualLabels,
    imix_byol_loss,
    imix_nce_loss,
    imix_ntxent_loss,
    imix_supcon_loss,
)
from runner.encoders import head
from runner.manifold import find_layer, mix_views, mixing_at
from runner.ranks import apply_shuffled

PROJECTION = 128


class Method(nn.Module):
    """An encoder, its projection, and the loss of two views; ``imix`` is an ``IMix``, or None to train without.

    ``mix_at`` names the layer of the encoder whose output is mixed; None mixes the input. With several processes,
    ``gather`` contrasts with the keys of all, and ``shuffle`` draws what the momentum copy sees from all their batches.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        temperature: float,
        projection_bn: str = "hidden",
        mix_at: str | None = None,
        gather: bool = False,
        shuffle: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.net = nn.Sequential(encoder, head(encoder.features, encoder.features, PROJECTION, projection_bn))
        self.temperature, self.gather, self.shuffle, self.mix_at = temperature, gather, shuffle, mix_at
        if mix_at:
            find_layer(encoder, mix_at)

    @property
    def contrast(self) -> dict[str, Any]:
        """What the contrastive losses are told."""
        return {"temperature": self.temperature, "gather_distributed": self.gather}

    def query(self, x: Tensor, imix: IMix | None, views: int = 1) -> tuple[Tensor, VirtualLabels | None]:
        """Mix and project; the two lines of the quickstart, or their counterpart at a hidden layer."""
        if imix is None:
            return self.net(x), None
        if self.mix_at:
            with mixing_at(find_layer(self.encoder, self.mix_at), imix, views) as drawn:
                query = self.net(x)
            (labels,) = drawn
            return query, labels
        mixed, labels = mix_views(x, imix, views)
        return self.net(mixed), labels

    def query_and_keys(
        self, view_1: Tensor, view_2: Tensor, imix: IMix | None
    ) -> tuple[Tensor, Tensor, VirtualLabels | None]:
        """Mix the first view and project both in one pass, so that batch normalisation sees them together."""
        labels = None
        if imix is not None and self.mix_at:
            layer = find_layer(self.encoder, self.mix_at)
            with mixing_at(layer, imix, views=1, unmixed=len(view_2)) as drawn:
                projected = self.net(torch.cat([view_1, view_2]))
            (labels,) = drawn
        else:
            if imix is not None:
                view_1, labels = imix(view_1)
            projected = self.net(torch.cat([view_1, view_2]))
        query, keys = projected.split([len(view_1), len(view_2)])
        return query, keys, labels

    def apply_copy(self, copy_of_net: nn.Module, x: Tensor) -> Tensor:
        """Apply the momentum copy."""
        return apply_shuffled(copy_of_net, x) if self.shuffle else copy_of_net(x)

    def forward(self, view_1: Tensor, view_2: Tensor, imix: IMix | None, classes: Tensor) -> Tensor:
        """Return the loss of a batch."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Move what follows the optimiser: the momentum copy and the queue."""


class NPair(Method):
    def forward(self, view_1, view_2, imix, classes):
        query, keys, labels = self.query_and_keys(view_1, view_2, imix)
        return imix_nce_loss(query, keys, labels, **self.contrast)


class SimCLR(Method):
    def forward(self, view_1, view_2, imix, classes):
        views = torch.cat([view_1, view_2])
        keys = self.net(views)
        queries, labels = (keys, None) if imix is None else self.query(views, imix, views=2)
        return imix_ntxent_loss(*queries.chunk(2), *keys.chunk(2), labels, **self.contrast)


class SupCon(Method):
    def forward(self, view_1, view_2, imix, classes):
        query, keys, labels = self.query_and_keys(view_1, view_2, imix)
        return imix_supcon_loss(query, keys, classes, labels, **self.contrast)


class MoCo(Method):
    def __init__(self, encoder: nn.Module, *, queue: int, momentum: float, **options: Any) -> None:
        super().__init__(encoder, **options)
        self.key_net = copy.deepcopy(self.net).requires_grad_(False)
        self.queue = NegativeQueue(queue, PROJECTION)
        self.queue.enqueue(F.normalize(torch.randn(queue, PROJECTION)))  # full from the first step, as published
        self._move = get_ema_multi_avg_fn(momentum)
        self._keys: Tensor | None = None

    def forward(self, view_1, view_2, imix, classes):
        with torch.no_grad():
            keys = self._keys = F.normalize(self.apply_copy(self.key_net, view_2).float())
        negatives = self.queue.negatives
        query, labels = self.query(view_1, imix)
        if imix is None:  # MoCo as published: its own key against the queue alone
            query = F.normalize(query.float())
            logits = torch.cat([(query * keys).sum(1, keepdim=True), query @ negatives.T], 1) / self.temperature
            return F.cross_entropy(logits, logits.new_zeros(len(query), dtype=torch.long))
        return imix_nce_loss(query, keys, labels, negatives=negatives, **self.contrast)

    @torch.no_grad()
    def after_step(self) -> None:
        # Not before the loss: these keys are its positives.
        self.queue.enqueue(self._keys, gather_distributed=self.gather)
        self._move(list(self.key_net.parameters()), list(self.net.parameters()), None)


class BYOL(Method):
    def __init__(self, encoder: nn.Module, *, momentum: float, prediction_bn: str = "hidden", **options: Any) -> None:
        super().__init__(encoder, **options)
        self.predictor = head(PROJECTION, encoder.features, PROJECTION, prediction_bn)
        self.target_net = copy.deepcopy(self.net).requires_grad_(False)
        self._move = get_ema_multi_avg_fn(momentum)

    def forward(self, view_1, view_2, imix, classes):
        with torch.no_grad():
            target = self.apply_copy(self.target_net, view_2)
        query, labels = self.query(view_1, imix)
        return imix_byol_loss(self.predictor(query), target, labels)

    @torch.no_grad()
    def after_step(self) -> None:
        self._move(list(self.target_net.parameters()), list(self.net.parameters()), None)


class SimSiam(Method):
    def __init__(self, encoder: nn.Module, *, prediction_bn: str = "hidden", **options: Any) -> None:
        super().__init__(encoder, **options)
        self.net.append(nn.BatchNorm1d(PROJECTION, affine=False))  # keeps it from collapsing
        self.predictor = head(PROJECTION, PROJECTION // 4, PROJECTION, prediction_bn)

    def forward(self, view_1, view_2, imix, classes):
        with torch.no_grad():
            target = self.net(view_2)
        query, labels = self.query(view_1, imix)
        return imix_byol_loss(self.predictor(query), target, labels) / 2  # 1 - cos: the published rate is for - cos


METHODS = {"npair": NPair, "simclr": SimCLR, "moco": MoCo, "byol": BYOL, "simsiam": SimSiam, "supcon": SupCon}


def build_method(
    name: str, encoder: nn.Module, *, queue: int, momentum: float, prediction_bn: str, **options: Any
) -> Method:
    """Build a method by its name; it gets those of the options that are for it."""
    own = {
        "moco": {"queue": queue, "momentum": momentum},
        "byol": {"momentum": momentum, "prediction_bn": prediction_bn},
        "simsiam": {"prediction_bn": prediction_bn},
    }
    return METHODS[name](encoder, **own.get(name, {}), **options)
