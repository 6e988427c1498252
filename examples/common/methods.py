"""The six methods. Each is one loss over two views, and takes i-Mix by the two lines of the quickstart."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from common.encoders import head
from imix_aug import (
    NegativeQueue,
    imix_byol_loss,
    imix_nce_loss,
    imix_ntxent_loss,
    imix_supcon_loss,
)

PROJECTION = 128


class Method(nn.Module):
    """An encoder, its projection, and the loss of two views; ``mix`` is an ``IMix``, or None to train without."""

    def __init__(self, encoder: nn.Module, temperature: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.net = nn.Sequential(encoder, head(encoder.features, encoder.features, PROJECTION))
        self.temperature = temperature

    def forward(self, view_1: Tensor, view_2: Tensor, mix: nn.Module | None, classes: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def after_step(self) -> None:
        """What moves once the optimiser has: the momentum copy and the queue."""


class NPair(Method):
    def forward(self, view_1, view_2, mix, classes=None):
        view_1, labels = mix(view_1) if mix else (view_1, None)
        return imix_nce_loss(self.net(view_1), self.net(view_2), labels, temperature=self.temperature)


class SimCLR(Method):
    def forward(self, view_1, view_2, mix, classes=None):
        key_1, key_2 = self.net(view_1), self.net(view_2)
        if mix is None:
            return imix_ntxent_loss(key_1, key_2, key_1, key_2, None, temperature=self.temperature)
        (mixed_1, mixed_2), labels = mix((view_1, view_2))
        query_1, query_2 = self.net(mixed_1), self.net(mixed_2)
        return imix_ntxent_loss(query_1, query_2, key_1, key_2, labels, temperature=self.temperature)


class SupCon(Method):
    def forward(self, view_1, view_2, mix, classes=None):
        view_1, labels = mix(view_1) if mix else (view_1, None)
        return imix_supcon_loss(self.net(view_1), self.net(view_2), classes, labels, temperature=self.temperature)


class MoCo(Method):
    def __init__(self, encoder: nn.Module, temperature: float, queue: int, momentum: float) -> None:
        super().__init__(encoder, temperature)
        self.key_net = copy.deepcopy(self.net).requires_grad_(False)
        self.queue = NegativeQueue(queue, PROJECTION)
        self._ema = get_ema_multi_avg_fn(momentum)
        self._keys: Tensor | None = None

    def forward(self, view_1, view_2, mix, classes=None):
        with torch.no_grad():
            keys = self._keys = F.normalize(self.key_net(view_2))
        negatives = self.queue.negatives
        if mix is None:  # MoCo as published: its own key against the queue alone
            query = F.normalize(self.net(view_1))
            logits = torch.cat([(query * keys).sum(1, keepdim=True), query @ negatives.T], 1) / self.temperature
            return F.cross_entropy(logits, logits.new_zeros(len(query), dtype=torch.long))
        view_1, labels = mix(view_1)
        return imix_nce_loss(self.net(view_1), keys, labels, temperature=self.temperature, negatives=negatives)

    @torch.no_grad()
    def after_step(self) -> None:
        self.queue.enqueue(self._keys)  # not earlier: the backward pass of the loss still needs the old rows
        self._ema(list(self.key_net.parameters()), list(self.net.parameters()), None)


class BYOL(Method):
    def __init__(self, encoder: nn.Module, momentum: float) -> None:
        super().__init__(encoder, temperature=1.0)
        self.predictor = head(PROJECTION, encoder.features, PROJECTION)
        self.target_net = copy.deepcopy(self.net).requires_grad_(False)
        self._ema = get_ema_multi_avg_fn(momentum)

    def forward(self, view_1, view_2, mix, classes=None):
        with torch.no_grad():
            target = self.target_net(view_2)
        view_1, labels = mix(view_1) if mix else (view_1, None)
        return imix_byol_loss(self.predictor(self.net(view_1)), target, labels)

    @torch.no_grad()
    def after_step(self) -> None:
        self._ema(list(self.target_net.parameters()), list(self.net.parameters()), None)


class SimSiam(Method):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__(encoder, temperature=1.0)
        self.net = nn.Sequential(self.net, nn.BatchNorm1d(PROJECTION, affine=False))  # keeps it from collapsing
        self.predictor = head(PROJECTION, PROJECTION // 4, PROJECTION)

    def forward(self, view_1, view_2, mix, classes=None):
        with torch.no_grad():
            target = self.net(view_2)
        view_1, labels = mix(view_1) if mix else (view_1, None)
        return imix_byol_loss(self.predictor(self.net(view_1)), target, labels)


METHODS = ("npair", "simclr", "moco", "byol", "simsiam", "supcon")


def build_method(name: str, encoder: nn.Module, *, temperature: float, queue: int, momentum: float) -> Method:
    """Build a method by its name on the command line."""
    if name == "moco":
        return MoCo(encoder, temperature, queue, momentum)
    if name == "byol":
        return BYOL(encoder, momentum)
    if name == "simsiam":
        return SimSiam(encoder)
    return {"npair": NPair, "simclr": SimCLR, "supcon": SupCon}[name](encoder, temperature)
