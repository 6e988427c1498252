"""Every argument beside every other, in pairs: each loss against whole matrices in float64, on one rank and on two."""

import itertools
import random

import pytest
import torch
import torch.distributed as dist
from ranks import ring
from torch.nn import functional as F

from imix_aug import (
    VirtualLabels,
    imix_clip_loss,
    imix_nce_loss,
    imix_ntxent_loss,
    imix_sigmoid_loss,
    imix_supcon_loss,
)

DOUBLE = {"dtype": torch.float64}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}
ROWS, WIDTH = 5, 4

FACTORS = {
    "loss": ["nce", "ntxent", "clip", "supcon", "supcon of one view", "sigmoid"],
    "labels": ["none", "mixed"],
    "dtype": list(TOLERANCE),
    "reduction": ["mean", "sum", "none"],
    "ids": [False, True],
    "negatives": ["none", "constant", "learnt"],
    "hard_negatives": [False, True],
    "weight": ["none", "given", "learnt"],
    "normalize": [True, False],
    "temperature": ["float", "learnt"],
    "keys": ["constant", "learnt"],
    "ranks": ["one", "gathered", "ring"],
}


def allowed(case):
    """What the losses' signatures say."""
    loss = case.get("loss")
    if loss == "clip" and (case.get("negatives", "none") != "none" or case.get("hard_negatives", False)):
        return False
    return not (loss in ("supcon", "supcon of one view") and case.get("ids", False))


def pairs_of(case):
    return set(itertools.combinations(sorted(case.items(), key=lambda item: item[0]), 2))


def pairwise(copies):
    """Cases in which each allowed pair of values occurs, so many times over."""
    draw, cases = random.Random(0), []
    for _ in range(copies):
        left = set()
        for (one, values), (other, others) in itertools.combinations(sorted(FACTORS.items()), 2):
            pairs = ({one: value, other: another} for value in values for another in others)
            left |= {tuple(sorted(pair.items(), key=lambda item: item[0])) for pair in pairs if allowed(pair)}
        while left:
            case = dict(min(left, key=str))
            for name in draw.sample(sorted(FACTORS.keys() - case.keys()), len(FACTORS) - len(case)):
                options = [case | {name: value} for value in FACTORS[name]]
                options = [each for each in options if allowed(each)]
                case = max(options, key=lambda each: (len(pairs_of(each) & left), draw.random()))
            left -= pairs_of(case)
            cases.append(case)
    return cases


CASES = pairwise(copies=4)
ON_TWO = [case for case in CASES if case["ranks"] != "one"]
ALONE = [case | {"ranks": "one"} for case in CASES + pairwise(copies=8)]


def batch(case, size, seed):
    """The same on every rank: tensors of all rows, of which a rank owns a slice; partners are on the row's own rank."""
    generator = torch.Generator().manual_seed(seed)
    n = size * ROWS
    draw = lambda *shape: (0.7 * torch.randn(*shape, generator=generator, **DOUBLE)).to(case["dtype"])  # noqa: E731
    exact = torch.promote_types(case["dtype"], torch.float32)
    rows = {name: draw(n, WIDTH) for name in ("query_1", "query_2", "key_1", "key_2")}
    of_all = {"negatives": draw(6, WIDTH)} if case["negatives"] != "none" else {}
    if case["hard_negatives"]:
        rows["hard_negatives"] = draw(n, 2, WIDTH)
    if case["weight"] != "none":
        rows["weight"] = torch.rand(n, generator=generator, **DOUBLE).to(exact) + 0.25
    of_all["temperature"] = torch.tensor(0.5, dtype=exact)
    integers = {"classes": torch.randint(4, (n,), generator=generator)}
    if case["ids"]:
        integers["ids"] = torch.randint(n // 2 + 1, (n,), generator=generator)
        if of_all.keys() & {"negatives"}:
            integers["negative_ids"] = torch.randint(n // 2 + 1, (6,), generator=generator)
    partner = torch.cat([rank * ROWS + torch.randperm(ROWS, generator=generator) for rank in range(size)])
    lam = (0.5 + 0.5 * torch.rand(n, generator=generator, **DOUBLE)).to(exact)
    return rows, of_all, integers, lam, partner


def learnt(case):
    """The names of what needs a gradient."""
    names = ["query_1"] + (["query_2"] if case["loss"] == "ntxent" else [])
    if case["keys"] == "learnt":
        names += ["key_1"] + (["key_2"] if case["loss"] == "ntxent" else [])
    names += [name for name in ("negatives", "weight", "temperature") if case[name] == "learnt"]
    return names + (["hard_negatives"] if case["hard_negatives"] else [])


def ours(case, given, labels):
    how = {name: given[name] for name in ("temperature", "weight", "ids") if name in given}
    if case["loss"] != "clip":
        how |= {name: given[name] for name in ("negatives", "negative_ids", "hard_negatives") if name in given}
    how |= {"normalize": case["normalize"], "reduction": case["reduction"]}
    how["gather_distributed"] = case["ranks"] != "one"
    query, key = given["query_1"], given["key_1"]
    if case["loss"] == "nce":
        return imix_nce_loss(query, key, labels, **how)
    if case["loss"] == "clip":
        return imix_clip_loss(query, key, labels, **how)
    if case["loss"] == "sigmoid":
        return imix_sigmoid_loss(query, key, labels, bias=-1.5, **how)
    if case["loss"] == "ntxent":
        return imix_ntxent_loss(query, given["query_2"], key, given["key_2"], labels, **how)
    return imix_supcon_loss(query, key, given["classes"], labels, same_view=case["loss"] != "supcon", **how)


def formula(case, given, lam, partner):
    """Rows' losses over whole matrices, not weighed."""
    unit = lambda rows: F.normalize(rows, dim=-1) if case["normalize"] else rows  # noqa: E731
    n, nothing = len(lam), torch.zeros(len(lam), len(lam), dtype=torch.bool)
    eye = torch.eye(n, **DOUBLE)
    label = eye if case["labels"] == "none" else lam[:, None] * eye + (1 - lam)[:, None] * eye[partner]
    component = label > 0 if case["loss"] != "ntxent" or case["labels"] == "none" else (eye + eye[partner]) > 0
    mates = (given["classes"][:, None] == given["classes"]).double()

    def row_losses(query, keys, label, left_out):
        if "ids" in given:
            same = (given["ids"][:, None] == given["ids"]).repeat(1, len(keys) // n)
            left_out = left_out | (same & (label == 0))
        parts, outs = [unit(query) @ unit(keys).T], [left_out]
        if "negatives" in given and case["loss"] != "clip":
            parts.append(unit(query) @ unit(given["negatives"]).T)
            known = "negative_ids" in given
            outs.append(given["ids"][:, None] == given["negative_ids"] if known else torch.zeros(n, 6).bool())
        if "hard_negatives" in given:
            parts.append((unit(query)[:, None] * unit(given["hard_negatives"])).sum(2))
            outs.append(torch.zeros(n, 2).bool())
        logits, out = torch.cat(parts, 1) / given["temperature"], torch.cat(outs, 1)
        label = F.pad(label, (0, logits.shape[1] - label.shape[1]))
        if case["loss"] == "sigmoid":
            logits = logits - 1.5
            costs = label * F.softplus(-logits, threshold=100) + (1 - label) * F.softplus(logits, threshold=100)
            return costs.masked_fill(out, 0).sum(1)
        log_p = logits.masked_fill(out, -torch.inf).log_softmax(1)
        return -(label * torch.where(label > 0, log_p, 0)).sum(1)

    query, key = given["query_1"], given["key_1"]
    if case["loss"] in ("nce", "sigmoid"):
        return row_losses(query, key, label, nothing)
    if case["loss"] == "clip":
        held = label.T / label.sum(0)[:, None]
        return (row_losses(query, key, label, nothing) + row_losses(key, query, held, nothing)) / 2
    if case["loss"] == "supcon":
        return row_losses(query, key, label @ (mates / mates.sum(1, keepdim=True)), nothing)
    if case["loss"] == "ntxent":
        keys, label, left_out = (
            [given["key_2"], key],
            torch.cat([label, 0 * label], 1),
            torch.cat([nothing, component], 1),
        )
        first = row_losses(query, torch.cat(keys), label, left_out)
        return (first + row_losses(given["query_2"], torch.cat(keys[::-1]), label, left_out)) / 2
    others = mates[None] * (~component[:, None])  # (row, its component, key)
    spread = others / others.sum(2, keepdim=True).clamp_min(1)
    return row_losses(query, key, (label[:, :, None] * spread).sum(1), component)


def check(case, rank=0, size=1, seed=0):
    """Compare the value and all gradients of this rank, or summed over the ranks, with those of one process."""
    rows, of_all, integers, lam, partner = batch(case, size, seed)
    own, names = slice(rank * ROWS, (rank + 1) * ROWS), learnt(case)
    exact = {name: each.double().requires_grad_(name in names) for name, each in (rows | of_all).items()}
    losses = formula(case, exact | integers, lam.double(), partner)
    weight = exact.get("weight", torch.ones(len(lam), **DOUBLE))
    total = (losses * weight).sum()
    divisor = {"mean": weight.sum() / size}.get(case["reduction"], 1)
    # The sum over the ranks of what each returns.
    expected = torch.autograd.grad(total / divisor, [exact[name] for name in names])

    mine = {name: each[own] for name, each in rows.items()} | of_all
    mine |= {name: each if name == "negative_ids" else each[own] for name, each in integers.items()}
    mine = {name: each.clone().requires_grad_(name in names) for name, each in mine.items()}
    given = mine if case["temperature"] == "learnt" else mine | {"temperature": mine["temperature"].item()}
    labels = None if case["labels"] == "none" else VirtualLabels(lam[own], partner[own] - rank * ROWS)
    with ring(case["ranks"] == "ring"):
        value = ours(case, given, labels)
        grads = torch.autograd.grad(value.sum(), [mine[name] for name in names])
    wanted = (losses * weight)[own] if case["reduction"] == "none" else (losses * weight)[own].sum() / divisor
    _compare(case, "value", value, wanted)
    for name, grad, of_sum in zip(names, grads, expected, strict=True):
        if name in of_all and size > 1:
            grad = grad.double()
            dist.all_reduce(grad)
        _compare(case, name, grad, of_sum if name in of_all else of_sum[own])


def _compare(case, name, actual, expected):
    scale = expected.abs().max().clamp_min(1)
    error = ((actual.double() - expected) / scale).abs().max().item()
    assert error <= TOLERANCE[case["dtype"]], (name, error, case)


def check_all(rank, size):
    for seed, case in enumerate(ON_TWO):
        check(case, rank, size, seed)
    return len(ON_TWO)


def test_the_grid_holds_every_pair():
    found = set().union(*(pairs_of(case) for case in CASES))
    pairs = [
        {one: value, other: another}
        for one, other in itertools.combinations(sorted(FACTORS), 2)
        for value in FACTORS[one]
        for another in FACTORS[other]
    ]
    wanted = [pair for pair in pairs if allowed(pair)]
    assert all(tuple(pair.items()) in found for pair in wanted)
    # What docs/guarantees.md says.
    assert (len(wanted), len(ALONE), len(ON_TWO)) == (487, 277, 62)


@pytest.mark.parametrize("loss", FACTORS["loss"])
def test_one_process(loss):
    for seed, case in enumerate(ALONE):
        if case["loss"] == loss:
            check(case, seed=seed)


def test_two_ranks(worlds):
    assert worlds[2].run(check_all, timeout=600) == [len(ON_TWO)] * 2
