"""Random calls across ranks, all settings drawn together: values and gradients are those of one process.

Ranks draw a case from its number alone, so that they agree, and go from case to case without being started anew.
"""

import contextlib
import random
import traceback
from dataclasses import asdict, dataclass

import pytest
import torch
import torch.distributed as dist
from ranks import on_hosts, ring
from torch.nn import functional as F

from imix_aug import VirtualLabels, imix_clip_loss, imix_nce_loss, imix_ntxent_loss, imix_supcon_loss

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}
GROUPS = {2: [], 3: [(0, 2), (1, 2)], 4: [(0, 2), (1, 2, 3)], 8: [(0, 1, 4, 5), (0, 2, 4, 6), (2, 3, 7)]}


@dataclass
class Case:
    number: int
    members: tuple[int, ...]
    loss: str
    keys: str
    hosts: list[int]
    dtype: torch.dtype
    rows: int
    width: int
    micro_batches: int
    reduction: str
    normalize: bool
    temperature: float
    temperature_is: str
    labels: str
    weight: str
    negatives: int
    hard: int
    ids: bool
    learns: dict[str, bool]


def draw(number, size):
    rng = random.Random(number)
    loss = rng.choice(["nce", "ntxent", "clip", "supcon"])
    rows, width = rng.randint(1, 6), rng.randint(1, 6)
    halves = [rank * 2 // size for rank in range(size)]
    return Case(
        number=number,
        members=rng.choice([tuple(range(size)), tuple(range(size)), *GROUPS[size]]),
        loss=loss,
        keys=rng.choice(["local", "gathered", "ring", "ring"]),
        hosts=rng.choice([[0] * size, halves, [rank % 2 for rank in range(size)], list(range(size))]),
        dtype=rng.choice([torch.float64, torch.float64, torch.float32, torch.bfloat16]),
        rows=rows,
        width=width,
        micro_batches=rng.choice([1, 1, 2, 3]),
        reduction=rng.choice(["mean", "sum", "none"]),
        normalize=rng.random() < 0.7,
        temperature=rng.uniform(0.2, 2),
        temperature_is=rng.choice(["number", "constant", "learnt"]),
        labels=rng.choice(["none", "identity", "mixed", "mixed", "one lambda"]),
        weight=rng.choice(["none", "none", "given", "learnt"]),
        negatives=0 if loss == "clip" else rng.choice([0, 0, 1, 7]),
        hard=0 if loss == "clip" else rng.choice([0, 0, 1, 3]),
        ids=loss != "supcon" and rng.random() < 0.5,
        learns={name: rng.random() < 0.7 for name in ("query", "key", "negatives", "hard")},
    )


def batch(case, generator):
    """One micro-batch of all ranks, in float64 but rounded to the case's dtype; partners are of the row's own rank."""
    ranks, n = len(case.members), case.rows

    def embeddings(*shape):
        """No row so short that normalising it blows up what was rounded."""
        unit = F.normalize(torch.randn(*shape, case.width, generator=generator, dtype=torch.float64), dim=-1)
        length = 0.5 + 1.5 * torch.rand(*shape, 1, generator=generator, dtype=torch.float64)
        return (unit * length).to(case.dtype).double()

    total = ranks * n
    made = {f"{kind}_{view}": embeddings(total) for kind in ("query", "key") for view in (1, 2)}
    made["hard"] = embeddings(total, case.hard)
    made["weight"] = torch.rand(total, generator=generator).double() + 0.1
    made["classes"] = torch.randint(3, (total,), generator=generator)
    made["ids"] = torch.randint(2 * n, (total,), generator=generator)
    lam = 0.5 + 0.5 * torch.rand(total, generator=generator)
    if case.labels == "one lambda":
        lam = lam[:1].expand(total).clone()
    partner = torch.cat([rank * n + torch.randperm(n, generator=generator) for rank in range(ranks)])
    if case.labels in ("none", "identity"):
        lam, partner = torch.ones(total), torch.arange(total)
    return {**made, "lam": lam, "partner": partner}


def of_all(case, generator):
    bank = torch.randn(case.negatives, case.width, generator=generator, dtype=torch.float64).to(case.dtype).double()
    return {
        "negatives": 0.5 * F.normalize(bank, dim=1).to(case.dtype).double() if case.negatives else bank,
        "negative_ids": torch.randint(2 * case.rows, (case.negatives,), generator=generator),
        "temperature": torch.tensor(case.temperature, dtype=torch.float64),
    }


def needing_gradients(case, tensors):
    """Leaves, as the case wants them."""
    learns = {
        "temperature": case.temperature_is == "learnt",
        "weight": case.weight == "learnt",
        **{name: case.learns[name.split("_")[0]] for name in tensors if name.split("_")[0] in case.learns},
        "negative_ids": False,
    }
    return {
        name: each.clone().requires_grad_(learns.get(name, False) and each.numel() > 0)
        for name, each in tensors.items()
    }


def one_process(case, at, own):
    """Return the rows' losses by the dense formula, of the rows ``own`` alone."""
    n = own.stop - own.start
    unit = (lambda rows: F.normalize(rows, dim=-1)) if case.normalize else (lambda rows: rows)
    temperature = at["temperature"]
    eye, same_id = torch.eye(n, dtype=torch.float64), at["ids"][own, None] == at["ids"][None, own]
    lam, partner = at["lam"][own, None].double(), at["partner"][own] - own.start
    label, never = lam * eye + (1 - lam) * eye[partner], torch.zeros(n, n, dtype=torch.bool)

    def contrast(query, others, label, left_out):
        """``others``: blocks of keys, of which the first holds the positives; ``left_out``: columns of the second."""
        query = unit(query)
        columns = [query @ unit(each).T for each in others]
        out = [same_id & (label == 0) if case.ids else never, left_out | same_id if case.ids else left_out]
        out = out[: len(others)]
        if case.negatives:
            columns.append(query @ unit(at["negatives"]).T)
            out.append((at["ids"][own, None] == at["negative_ids"]) & case.ids)
        if case.hard:
            columns.append(torch.einsum("nd,nhd->nh", query, unit(at["hard"][own])))
            out.append(torch.zeros(n, case.hard, dtype=torch.bool))
        logits = (torch.cat(columns, 1) / temperature).masked_fill(torch.cat(out, 1), -torch.inf)
        log_p = logits.log_softmax(1)[:, :n]
        return -(label * torch.where(label > 0, log_p, 0)).sum(1)

    query, key, query_2, key_2 = (at[name][own] for name in ("query_1", "key_1", "query_2", "key_2"))
    if case.loss == "ntxent":
        component = label > 0
        first = contrast(query, [key_2, key], label, component)
        return (first + contrast(query_2, [key, key_2], label, component)) / 2
    if case.loss == "supcon":
        same = (at["classes"][own, None] == at["classes"][None, own]).double()
        return contrast(query, [key], label @ (same / same.sum(1, keepdim=True)), never)
    forth = contrast(query, [key], label, never)
    if case.loss == "nce":
        return forth
    same_id = same_id.T
    return (forth + contrast(key, [query], label.T / label.sum(0)[:, None], never)) / 2


def reduced(case, rows, weight, mass):
    if case.weight != "none":
        rows = rows * weight
    return rows if case.reduction == "none" else rows.sum() / (mass if case.reduction == "mean" else 1)


def expected(case, at):
    """Return each rank's loss of one micro-batch, as one process that sees all of it computes them."""
    ranks = range(len(case.members))
    shares = [slice(rank * case.rows, (rank + 1) * case.rows) for rank in ranks]
    if case.keys == "local":
        rows = torch.cat([one_process(case, at, own) for own in shares])
    else:
        rows = one_process(case, at, slice(0, len(ranks) * case.rows))
    weight = at["weight"] if case.weight != "none" else torch.ones_like(at["weight"])
    masses = [weight[own].sum() for own in shares]
    if case.keys != "local":
        masses = [sum(masses) / len(ranks)] * len(ranks)
    return [reduced(case, rows[own], weight[own], mass) for own, mass in zip(shares, masses, strict=True)]


def ours(case, at, shared, group):
    """Return this rank's loss of one micro-batch."""
    rows = {name: at[name].to(case.dtype) for name in ("query_1", "query_2", "key_1", "key_2", "hard")}
    labels = None if case.labels == "none" else VirtualLabels(at["lam"], at["partner"])
    temperature = shared["temperature"]
    options = {
        "temperature": case.temperature if case.temperature_is == "number" else temperature,
        "normalize": case.normalize,
        "reduction": case.reduction,
        "gather_distributed": case.keys != "local",
        "process_group": group if case.keys != "local" else None,
        "weight": None if case.weight == "none" else at["weight"].to(torch.promote_types(case.dtype, torch.float32)),
    }
    if case.ids:
        options["ids"] = at["ids"]
    if case.negatives:
        options["negatives"] = shared["negatives"].to(case.dtype)
        if case.ids:
            options["negative_ids"] = shared["negative_ids"]
    if case.hard:
        options["hard_negatives"] = rows["hard"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(ring(case.keys == "ring"))
        if case.loss == "nce":
            return imix_nce_loss(rows["query_1"], rows["key_1"], labels, **options)
        if case.loss == "clip":
            return imix_clip_loss(rows["query_1"], rows["key_1"], labels, **options)
        if case.loss == "supcon":
            return imix_supcon_loss(rows["query_1"], rows["key_1"], at["classes"], labels, **options)
        views = (rows[name] for name in ("query_1", "query_2", "key_1", "key_2"))
        return imix_ntxent_loss(*views, labels, **options)


def check(case, rank, group):
    """Compare all micro-batches' values, and the gradients that they add up to."""
    generator = torch.Generator().manual_seed(case.number)
    whole = needing_gradients(case, of_all(case, generator))
    shared = {name: each.detach().clone().requires_grad_(each.requires_grad) for name, each in whole.items()}
    place = case.members.index(rank)
    own = slice(place * case.rows, (place + 1) * case.rows)
    compared = []
    for _ in range(case.micro_batches):
        made = batch(case, generator)
        at = needing_gradients(case, made)
        mine = needing_gradients(case, {name: each[own] for name, each in made.items()})
        mine["partner"] = mine["partner"] - own.start
        upstream = torch.rand(len(case.members), case.rows, generator=generator, dtype=torch.float64) + 0.5
        if case.reduction != "none":
            upstream = upstream.mean(1)
        wanted = expected(case, {**at, **whole})
        loss = ours(case, mine, shared, group)
        compared.append(("loss", loss, wanted[place]))
        if loss.requires_grad:
            (loss * upstream[place]).sum().backward()
            sum((each * up).sum() for each, up in zip(wanted, upstream, strict=True)).backward()
        for name in mine:
            if mine[name].requires_grad:
                grad, of_whole = mine[name].grad, at[name].grad
                compared.append((name, grad, None if of_whole is None else of_whole[own]))
    for name, each in shared.items():
        if each.requires_grad:
            grad = torch.zeros_like(each) if each.grad is None else each.grad
            dist.all_reduce(grad, group=group)
            compared.append((name, grad, whole[name].grad))
    bound = TOLERANCE[case.dtype] * (1 + 1 / case.temperature) ** 2 * case.rows * case.micro_batches
    for name, actual, wanted in compared:
        actual, wanted = (torch.zeros(()) if each is None else each.detach().double() for each in (actual, wanted))
        error = (actual - wanted).abs().max().item() if wanted.numel() else 0.0
        assert error <= bound * (1 + wanted.abs().max().item()), f"{name}: off by {error}, allowed {bound}"


def run_cases(rank, size, numbers):
    """Return what went wrong, and go on: a rank that stopped would leave the others waiting."""
    groups, wrong = {}, []
    for number in numbers:
        case = draw(number, size)
        if case.members not in groups:
            groups[case.members] = dist.new_group(list(case.members))
        if rank not in case.members:
            continue
        try:
            with on_hosts(case.hosts):
                check(case, rank, groups[case.members])
        except Exception:
            wrong.append(f"{asdict(case)}\n{traceback.format_exc(limit=-3)}")
    return wrong


def assert_good(world, numbers):
    wrong = [each for of_rank in world.run(run_cases, numbers, timeout=3600) for each in of_rank]
    assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong[:3])


@pytest.mark.parametrize("size", [2, 3, 4])
def test_settings_drawn_together(worlds, size):
    assert_good(worlds[size], range(size * 100, size * 100 + 100))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "cases"), [(2, 4000), (3, 3000), (4, 2000), (8, 1000)])
def test_settings_drawn_together_at_length(worlds, size, cases):
    first = size * 1_000_000
    for start in range(first, first + cases, 500):
        assert_good(worlds[size], range(start, start + 500))
