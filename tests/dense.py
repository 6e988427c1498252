"""The contract's losses as matrices in float64, from its words alone: L_i are labels, S_i logits."""

import torch


def label_matrix(labels, n):
    """L_i = lam_i e_i + (1 - lam_i) e_partner(i)."""
    eye = torch.eye(n, dtype=torch.float64)
    if labels is None:
        return eye
    lam = labels.lam.double()[:, None]
    return lam * eye + (1 - lam) * eye[labels.partner]


def unit(rows, normalize):
    rows = rows.double()
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12) if normalize else rows


def join(key, negatives, normalize):
    keys = unit(key, normalize)
    return keys if negatives is None else torch.cat([keys, unit(negatives.detach(), normalize)])


def soft_cross_entropy(logits, label):
    """-sum_j L_ij log softmax(S_i)_j; L may have fewer columns, those to the right count as zero."""
    return logits.logsumexp(1) - (label * logits[:, : label.shape[1]]).sum(1)


def nce(query, key, labels=None, *, temperature=0.2, negatives=None, normalize=True):
    logits = unit(query, normalize) @ join(key, negatives, normalize).T / temperature
    return soft_cross_entropy(logits, label_matrix(labels, len(key)))


def ntxent(query_1, query_2, key_1, key_2, labels, *, temperature=0.5, negatives=None, normalize=True):
    label = label_matrix(labels, len(key_1))

    def view(query, own_view, other_view):
        rows = unit(query, normalize)
        logits = rows @ join(torch.cat([other_view, own_view]), negatives, normalize).T / temperature
        n = len(query)
        is_component = torch.eye(n, dtype=torch.bool)
        if labels is not None:
            is_component = is_component | is_component[labels.partner]
        left_out = torch.zeros(logits.shape, dtype=torch.bool)
        left_out[:, n : 2 * n] = is_component
        return logits.masked_fill(left_out, -torch.inf).logsumexp(1) - (label * logits[:, :n]).sum(1)

    return (view(query_1, key_1, key_2) + view(query_2, key_2, key_1)) / 2


def supcon(query, key, classes, labels=None, *, temperature=0.1, negatives=None, normalize=True):
    same = (classes[:, None] == classes[None]).double()
    label = label_matrix(labels, len(key)) @ (same / same.sum(1, keepdim=True))
    logits = unit(query, normalize) @ join(key, negatives, normalize).T / temperature
    return soft_cross_entropy(logits, label)


def byol(prediction, target, labels=None, *, normalize=True):
    expected = label_matrix(labels, len(target)) @ unit(target.detach(), normalize)
    return 2 - 2 * (unit(prediction, normalize) * expected).sum(1)


def reduce(losses, reduction):
    return losses if reduction == "none" else getattr(losses, reduction)()
