"""Across ranks: ids, hard negatives, weights and negatives with a gradient, against one process."""

import pytest
import torch
from ranks import ring
from test_losses import dense_extended
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from imix_aug import VirtualLabels, imix_clip_loss, imix_nce_loss, imix_ntxent_loss, imix_supcon_loss

ROWS, WIDTH, EMBEDDING = 4, 5, 3
DOUBLE = {"dtype": torch.float64}


def supcon_extended(q, k, labels, classes, *, temperature, negatives, hard, weight, reduction):
    """Each virtual class spread evenly over the keys of its class, from the docstring's words."""
    n = len(q)
    eye = torch.eye(n, **DOUBLE)
    same = (classes[:, None] == classes[None]).double()
    label = labels.lam[:, None] * eye + (1 - labels.lam)[:, None] * eye[labels.partner]
    label = label @ (same / same.sum(1, keepdim=True))
    q, k, negatives, hard = (F.normalize(each, dim=-1) for each in (q, k, negatives, hard))
    logits = torch.cat([q @ k.T, q @ negatives.T, torch.einsum("nd,nhd->nh", q, hard)], 1) / temperature
    rows = -(label * logits.log_softmax(1)[:, :n]).sum(1) * (1 if weight is None else weight)
    mass = n if weight is None else weight.sum()
    return {"none": rows, "sum": rows.sum(), "mean": rows.sum() / mass}[reduction]


class Step(nn.Module):
    """One encoder makes queries, keys, negatives and hard negatives; the weights are none, given, or learnt."""

    def __init__(self, loss, reduction, weights):
        super().__init__()
        self.loss, self.reduction, self.weights = loss, reduction, weights
        self.encoder = nn.Linear(WIDTH, EMBEDDING, **DOUBLE)
        self.log_temperature = nn.Parameter(torch.tensor(-1.0, **DOUBLE))
        if weights == "learnt":
            self.weigh = nn.Linear(WIDTH, 1, **DOUBLE)

    def arguments(self, batch):
        weight = {"none": None, "given": batch["weight"]}.get(self.weights)
        if self.weights == "learnt":
            weight = self.weigh(batch["view"])[:, 0].sigmoid()
        embeddings = {name: self.encoder(batch[name]) for name in ("mixed", "mixed_2", "view", "view_2")}
        more = {name: self.encoder(batch[name]) for name in ("bank", "hard")}
        how = {"temperature": self.log_temperature.exp(), "reduction": self.reduction, "weight": weight}
        return embeddings, more, how, VirtualLabels(batch["lam"], batch["partner"])

    def forward(self, batch):
        at, more, how, labels = self.arguments(batch)
        how["gather_distributed"] = True
        ids, extra = batch["ids"], {"negatives": more["bank"], "hard_negatives": more["hard"]}
        if self.loss == "clip":
            return imix_clip_loss(at["mixed"], at["view"], labels, ids=ids, **how)
        if self.loss == "supcon":
            return imix_supcon_loss(at["mixed"], at["view"], batch["classes"], labels, **how, **extra)
        extra |= {"ids": ids, "negative_ids": batch["bank_ids"]}
        if self.loss == "nce":
            return imix_nce_loss(at["mixed"], at["view"], labels, **how, **extra)
        return imix_ntxent_loss(at["mixed"], at["mixed_2"], at["view"], at["view_2"], labels, **how, **extra)

    def dense(self, batch, reduction):
        at, more, how, labels = self.arguments(batch)
        how |= {"reduction": reduction, "negatives": more["bank"], "hard": more["hard"]}
        if self.loss == "supcon":
            return supcon_extended(at["mixed"], at["view"], labels, batch["classes"], **how)
        if self.loss == "ntxent":
            return ntxent_extended(at, labels, batch, how)
        how |= {"ids": batch["ids"], "negative_ids": batch["bank_ids"]}
        if self.loss == "clip":
            how |= {"negatives": None, "hard": None, "negative_ids": None}
        return dense_extended(self.loss, at["mixed"], at["view"], labels, **how)


def ntxent_extended(at, labels, batch, how):
    """The mean of both views; an anchor leaves out its components in its own view, and all others with its id."""
    n, weight = len(batch["ids"]), how["weight"]
    eye = torch.eye(n, **DOUBLE)
    label = labels.lam[:, None] * eye + (1 - labels.lam)[:, None] * eye[labels.partner]
    component = (eye + eye[labels.partner]) > 0
    same = batch["ids"][:, None] == batch["ids"][None]

    def view(query, own, other):
        q, keys, bank, hard = (
            F.normalize(each, dim=-1) for each in (query, torch.cat([other, own]), how["negatives"], how["hard"])
        )
        out = torch.cat([same & (label == 0), same | component], 1)
        parts = [
            (q @ keys.T / how["temperature"]).masked_fill(out, -torch.inf),
            (q @ bank.T / how["temperature"]).masked_fill(batch["ids"][:, None] == batch["bank_ids"], -torch.inf),
            torch.einsum("nd,nhd->nh", q, hard) / how["temperature"],
        ]
        log_p = torch.cat(parts, 1).log_softmax(1)[:, :n]
        return -(label * torch.where(label > 0, log_p, 0)).sum(1)

    first = view(at["mixed"], at["view"], at["view_2"])
    rows = (first + view(at["mixed_2"], at["view_2"], at["view"])) / 2 * (1 if weight is None else weight)
    mass = n if weight is None else weight.sum()
    return {"none": rows, "sum": rows.sum(), "mean": rows.sum() / mass}[how["reduction"]]


def whole_batch(size):
    """The same on every rank. Ids meet across ranks; partners are of the row's own rank; all ranks share the bank."""
    generator = torch.Generator().manual_seed(size)
    n = size * ROWS
    draw = lambda *shape: torch.randn(*shape, generator=generator, **DOUBLE)  # noqa: E731
    batch = {name: draw(n, WIDTH) for name in ("view", "view_2", "mixed", "mixed_2")}
    batch |= {"hard": draw(n, 2, WIDTH), "bank": draw(6, WIDTH), "weight": draw(n).abs() + 0.1}
    batch["ids"], batch["bank_ids"] = (torch.randint(5, (length,), generator=generator) for length in (n, 6))
    batch["classes"] = torch.randint(3, (n,), generator=generator)
    batch["partner"] = torch.cat([rank * ROWS + torch.randperm(ROWS, generator=generator) for rank in range(size)])
    batch["lam"] = 0.5 + 0.5 * torch.rand(n, generator=generator, **DOUBLE)
    return batch


def share(batch, rank):
    of_all = ("bank", "bank_ids")
    own = {name: each if name in of_all else each[rank * ROWS : (rank + 1) * ROWS] for name, each in batch.items()}
    return {**own, "partner": own["partner"] - rank * ROWS}


def train(rank, size, loss, use_ring):
    for weights in ("none", "given", "learnt"):
        for reduction in ("mean", "sum", "none"):
            torch.manual_seed(0)
            alone = Step(loss, reduction, weights)
            rows = alone.dense(whole_batch(size), "none").detach()
            alone.dense(whole_batch(size), "mean" if reduction == "mean" else "sum").backward()
            torch.manual_seed(0)
            step = Step(loss, reduction, weights)
            with ring(use_ring):
                ddp = DistributedDataParallel(step)
                value = ddp(share(whole_batch(size), rank))
                value.sum().backward()
            own = rows[rank * ROWS : (rank + 1) * ROWS]
            mass = alone.arguments(whole_batch(size))[2]["weight"]
            per_rank = ROWS if mass is None else mass.sum().item() / size  # what the mean divides a rank's sum by
            expected = {"none": own, "sum": own.sum(), "mean": own.sum() / per_rank}[reduction]
            torch.testing.assert_close(value.detach(), expected, rtol=1e-12, atol=1e-12)
            for (name, one), other in zip(alone.named_parameters(), step.parameters(), strict=True):
                averaged = other.grad * (1 if reduction == "mean" else size)
                message = lambda text, at=(weights, reduction, name): f"{at}: {text}"  # noqa: E731
                torch.testing.assert_close(averaged, one.grad, rtol=1e-12, atol=1e-12, msg=message)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("use_ring", [False, True], ids=["gather", "ring"])
@pytest.mark.parametrize("loss", ["nce", "ntxent", "clip", "supcon"])
def test_every_argument_gives_the_gradients_of_one_process(worlds, loss, use_ring, size):
    worlds[size].run(train, loss, use_ring)


def give_on_one_rank(rank, size, use_ring):
    rows = torch.randn(4, 3)
    weight = torch.rand(4, requires_grad=rank == 0)
    only_first = (
        ("ids on all ranks or on none, got True, False", {"ids": torch.arange(4)} if rank == 0 else {}),
        ("a weighted mean on all ranks or on none, got True, False", {"weight": weight.detach()} if rank == 0 else {}),
        ("weights that need a gradient on all ranks or on none, got True, False", {"weight": weight}),
    )
    for message, more in only_first:
        with ring(use_ring), pytest.raises(ValueError, match=message):
            imix_nce_loss(rows, rows, gather_distributed=True, **more)


@pytest.mark.parametrize("use_ring", [False, True], ids=["gather", "ring"])
def test_ranks_that_disagree_about_arguments_are_refused(worlds, use_ring):
    worlds[2].run(give_on_one_rank, use_ring)
