"""The formulas of the losses, dense and in float64: what the fused ones are held against."""

import torch
from torch.nn import functional as F


def soft_labels(lam, partner, columns):
    """lam_i * e_i + (1 - lam_i) * e_partner(i), one row at a time."""
    labels = torch.zeros(len(lam), columns, dtype=torch.float64)
    for i, (share, j) in enumerate(zip(lam.double().tolist(), partner.tolist(), strict=True)):
        labels[i, i] += share
        labels[i, j] += 1 - share
    return labels


def unit(rows, normalize=True):
    return F.normalize(rows.double(), dim=1, eps=1e-12) if normalize else rows.double()


def cross_entropy(logits, labels):
    """Rows' cross-entropies; a column that is left out (-inf) has no weight."""
    log_p = logits.log_softmax(dim=1)
    return -(labels * torch.where(labels > 0, log_p, torch.zeros_like(log_p))).sum(dim=1)


def reduce(losses, reduction):
    return {"none": lambda x: x, "mean": torch.mean, "sum": torch.sum}[reduction](losses)


def nce(query, key, labels, temperature, negatives=None, normalize=True):
    keys = unit(key, normalize)
    if negatives is not None:
        keys = torch.cat([keys, unit(negatives, normalize)])
    lam, partner = labels
    logits = unit(query, normalize) @ keys.T / temperature
    return cross_entropy(logits, soft_labels(lam, partner, len(keys)))


def ntxent(query_1, query_2, key_1, key_2, labels, temperature, negatives=None, normalize=True):
    lam, partner = labels
    n = len(lam)
    soft = soft_labels(lam, partner, n)
    own = torch.zeros(n, n, dtype=torch.bool)
    own[torch.arange(n), torch.arange(n)] = True
    own[torch.arange(n), partner] = True
    losses = []
    for query, same_view, other_view in ((query_1, key_1, key_2), (query_2, key_2, key_1)):
        rows = unit(query, normalize)
        against_same = (rows @ unit(same_view, normalize).T / temperature).masked_fill(own, float("-inf"))
        against_other = rows @ unit(other_view, normalize).T / temperature
        logits, label = [against_other, against_same], [soft, torch.zeros_like(soft)]
        if negatives is not None:
            logits.append(rows @ unit(negatives, normalize).T / temperature)
            label.append(torch.zeros(n, len(negatives), dtype=torch.float64))
        losses.append(cross_entropy(torch.cat(logits, 1), torch.cat(label, 1)))
    return (losses[0] + losses[1]) / 2


def supcon(query, key, classes, labels, temperature, negatives=None, normalize=True):
    lam, partner = labels
    keys = unit(key, normalize)
    same = (classes[:, None] == classes[None, :]).double()
    spread = same / same.sum(dim=1, keepdim=True)
    label = lam.double()[:, None] * spread + (1 - lam.double())[:, None] * spread[partner]
    if negatives is not None:
        keys = torch.cat([keys, unit(negatives, normalize)])
        label = F.pad(label, (0, len(negatives)))
    return cross_entropy(unit(query, normalize) @ keys.T / temperature, label)


def byol(prediction, target, labels, normalize=True):
    lam, partner = labels
    z = unit(target, normalize).detach()
    expected = lam.double()[:, None] * z + (1 - lam.double())[:, None] * z[partner]
    return 2 - 2 * (unit(prediction, normalize) * expected).sum(dim=1)
