"""Who computes the same loss: imix-aug, the paper's formula, and other packages' kernels."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from imix_aug import VirtualLabels, imix_clip_loss, imix_nce_loss, imix_ntxent_loss

TEMPERATURE = 0.2
Loss = Callable[["Batch"], Tensor]


@dataclass
class Batch:
    """Embeddings of a mixed view (unmixed without labels) and the other; MoCo's keys are constant, with negatives."""

    query: Tensor
    key: Tensor
    labels: VirtualLabels | None
    negatives: Tensor | None

    @classmethod
    def draw(
        cls, n: int, k: int, d: int, dtype: torch.dtype, device: torch.device, *, unmixed: bool = False
    ) -> "Batch":
        generator = torch.Generator().manual_seed(n + k + d)

        def rows(count: int) -> Tensor:
            return torch.randn(count, d, generator=generator).to(device, dtype)

        labels = VirtualLabels(torch.rand(n, generator=generator) / 2 + 0.5, torch.randperm(n, generator=generator))
        query, key = rows(n).requires_grad_(), rows(n).requires_grad_(k == 0)
        return cls(query, key, None if unmixed else labels.to(device), rows(k) if k else None)

    @property
    def leaves(self) -> list[Tensor]:
        return [rows for rows in (self.query, self.key) if rows.requires_grad]

    def keys(self) -> Tensor:
        unit = F.normalize(self.key)
        return unit if self.negatives is None else torch.cat([unit, F.normalize(self.negatives)])

    def double(self) -> "Batch":
        query, key = (rows.detach().double().requires_grad_(rows.requires_grad) for rows in (self.query, self.key))
        return Batch(query, key, self.labels, None if self.negatives is None else self.negatives.double())


def imix_aug(batch: Batch) -> Tensor:
    return imix_nce_loss(batch.query, batch.key, batch.labels, negatives=batch.negatives, temperature=TEMPERATURE)


def formula(batch: Batch) -> Tensor:
    """The paper's own: two cross-entropies over dense logits."""
    logits = F.normalize(batch.query) @ batch.keys().T / TEMPERATURE
    return _mixed(lambda target: F.cross_entropy(logits, target, reduction="none"), batch)


def _mixed(cross_entropy: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    own = torch.arange(len(batch.query), device=batch.query.device)
    if batch.labels is None:
        return cross_entropy(own).mean()
    lam, partner = batch.labels
    return (lam * cross_entropy(own) + (1 - lam) * cross_entropy(partner)).mean()


def _cut_cross_entropy() -> Loss:
    linear_cross_entropy = importlib.import_module("cut_cross_entropy").linear_cross_entropy

    def loss(batch: Batch) -> Tensor:
        query, keys = F.normalize(batch.query) / TEMPERATURE, batch.keys()
        return _mixed(lambda target: linear_cross_entropy(query, keys, target, reduction="none"), batch)

    return loss


def _liger() -> Loss:
    linear_cross_entropy = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()

    def loss(batch: Batch) -> Tensor:
        query, keys = F.normalize(batch.query) / TEMPERATURE, batch.keys()
        # It has no loss per row: the batch's mean lambda stands for the rows' own, which takes the same time.
        return _mixed(lambda target: linear_cross_entropy(keys, query, target), batch)

    return loss


def _inf_cl() -> Loss:
    flash_loss = importlib.import_module("inf_cl").cal_flash_loss

    def loss(batch: Batch) -> Tensor:
        query, keys = F.normalize(batch.query), batch.keys()
        scale = torch.tensor(1 / TEMPERATURE, device=query.device)
        return _mixed(lambda target: flash_loss(query, keys, target, scale), batch)

    return loss


def _torch_chunked() -> Loss:
    try:
        options = torch.nn.LinearCrossEntropyOptions()
    except AttributeError as error:
        raise ImportError("torch 2.14 brings it", name="torch >= 2.14") from error

    def loss(batch: Batch) -> Tensor:
        query, keys = F.normalize(batch.query) / TEMPERATURE, batch.keys()
        plain = F.linear_cross_entropy(query, keys, torch.arange(len(query), device=query.device), options=options)
        if batch.labels is None:
            return plain
        lam, partner = batch.labels
        # One call is enough: the second label differs by a term that is linear in the keys.
        towards_partner = (query * (keys[: len(query)] - keys[partner])).sum(1)
        return plain + ((1 - lam) * towards_partner).mean()

    return loss


def _compiled() -> Loss:
    return torch.compile(formula)


# What has to be installed, on what device it runs, and how to make the loss.
PEERS: dict[str, tuple[str, str, Callable[[], Loss]]] = {
    "formula compiled": ("torch", "any", _compiled),
    "torch chunked": ("torch", "any", _torch_chunked),
    "Inf-CL": ("inf_cl", "cuda", _inf_cl),
    "cut-cross-entropy": ("cut_cross_entropy", "cuda", _cut_cross_entropy),
    "Liger": ("liger_kernel", "cuda", _liger),
}


def available(names: list[str], device: torch.device) -> tuple[dict[str, Loss], list[str]]:
    """Return the peers that can run here, and a line on each that cannot."""
    losses, absent = {}, []
    for name in names:
        module, where, make = PEERS[name]
        if where not in ("any", device.type):
            absent.append(f"{name}: needs {where}")
            continue
        try:
            losses[name] = make()
        except ImportError as error:
            absent.append(f"{name}: not installed ({error.name or module})")
    return losses, absent


def with_gradients(loss: Loss, batch: Batch) -> Callable[[], object]:
    return lambda: torch.autograd.grad(loss(batch), batch.leaves)


def matrix_products(batch: Batch) -> Callable[[], object]:
    """The floor: the three matrix products of loss and gradients, two where the keys need none."""
    query, keys = batch.query.detach(), batch.key.detach()
    if batch.negatives is not None:
        keys = torch.cat([keys, batch.negatives])

    def run() -> None:
        logits = query @ keys.T
        logits @ keys
        if batch.key.requires_grad:
            logits.T @ query

    return run


# Unit rows need no running peak down to a temperature of 1/32; a temperature that is a tensor might be anything.
TEMPERATURES: dict[str, Callable[[Tensor], float | Tensor]] = {
    "0.2": lambda like: 0.2,
    "0.2, a tensor": lambda like: like.new_tensor(0.2),
    "0.02": lambda like: 0.02,
}


def directions(temperature: Callable[[Tensor], float | Tensor]) -> dict[str, Loss]:
    """One direction, two by a call each, and two by one call.

    The labels of the second direction are not those of the first; that takes no other time.
    """

    def one(batch: Batch, query: Tensor, key: Tensor) -> Tensor:
        return imix_nce_loss(query, key, batch.labels, temperature=temperature(query))

    return {
        "one direction": lambda batch: one(batch, batch.query, batch.key),
        "two calls": lambda batch: one(batch, batch.query, batch.key) + one(batch, batch.key, batch.query),
        "imix_clip_loss": lambda batch: imix_clip_loss(
            batch.query, batch.key, batch.labels, temperature=temperature(batch.query)
        ),
    }


def relative_error(loss: Loss, batch: Batch, rows_at_once: int = 2048) -> float:
    """Return the greatest relative error of loss and gradients (by norm) against the formula in float64."""
    value = loss(batch)
    grads = torch.autograd.grad(value, batch.leaves)
    exact = batch.double()
    keys, n = exact.keys(), len(exact.query)
    labels = exact.labels or VirtualLabels.identity(n).to(keys.device)
    lam = labels.lam.double()
    total = 0.0
    sums = [torch.zeros_like(leaf) for leaf in exact.leaves]
    for start in range(0, n, rows_at_once):
        part = slice(start, start + rows_at_once)
        logits = F.normalize(exact.query[part]) @ keys.T / TEMPERATURE
        own = torch.arange(n, device=logits.device)[part]
        each = lam[part] * F.cross_entropy(logits, own, reduction="none")
        each = each + (1 - lam[part]) * F.cross_entropy(logits, labels.partner[part], reduction="none")
        share = each.sum() / n
        total += share.item()
        for so_far, grad in zip(sums, torch.autograd.grad(share, exact.leaves, retain_graph=True), strict=True):
            so_far += grad
    errors = [abs(value.item() - total) / abs(total)]
    errors += [((grad - right).norm() / right.norm()).item() for grad, right in zip(grads, sums, strict=True)]
    return max(errors)


def simclr(names: list[str]) -> tuple[dict[str, Callable[[Tensor, Tensor], Tensor]], list[str]]:
    """Return the unmixed NT-Xent losses of this package and of others, which compute the same, and who is absent."""
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "imix-aug": lambda a, b: imix_ntxent_loss(a, b, a, b, None, temperature=TEMPERATURE)
    }
    absent = []
    for name, module in (("lightly", "lightly.loss"), ("pytorch-metric-learning", "pytorch_metric_learning.losses")):
        if name not in names:
            continue
        try:
            package = importlib.import_module(module)
        except ImportError as error:
            absent.append(f"{name}: not installed ({error.name})")
            continue
        loss = package.NTXentLoss(temperature=TEMPERATURE)
        losses[name] = loss if name == "lightly" else package.SelfSupervisedLoss(loss)
    return losses, absent
