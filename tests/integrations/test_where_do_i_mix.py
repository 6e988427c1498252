"""The shapes of loops in `where-do-i-mix`: each diff is applied to a stand-in, twenty steps against the formula."""

from itertools import permutations

import oracle
import pytest
import torch
from diffs import LOOPS, documented, load
from stepwise import ROWS, check, draw, four_passes, mix, run
from test_public_codes import CODES
from torch.nn import functional as F

from imix_aug import VirtualLabels

pytestmark = pytest.mark.usefixtures("double")

DIFFS = documented()


def views_from_the_loader(net, views):
    labels = draw(views[0])
    return oracle.nce(net(mix(views, labels)[0]), net(views[1]), labels, 0.2).mean()


def all_pairs(net, views):
    labels = draw(views[0])
    keys, queries = [net(x) for x in views], [net(x) for x in mix(views, labels)]
    losses = [oracle.nce(queries[i], keys[j], labels, 0.2).mean() for i, j in permutations(range(len(views)), 2)]
    return sum(losses) / len(losses)


def many_views(net, views):
    return all_pairs(net, [*views, views[0] - views[1]])


def stacked_views(net, views):
    return four_passes(net, views, 0.5)


def views_inside_the_model(model, views):
    return views_from_the_loader(model.net, [F.dropout(views[0], p=0.3) for _ in range(2)])


def online_and_target(model, views):
    labels = draw(views[0])
    predictions = [model.predictor(model.online(x)) for x in mix(views, labels)]
    targets = [model.target(x) for x in reversed(views)]
    return sum(oracle.byol(p, z, labels).mean() for p, z in zip(predictions, targets, strict=True))


def another_loss_beside(parts, views):
    encoder, head, classifier = parts
    contrast = views_from_the_loader(lambda x: head(encoder(x)), views)
    return contrast + F.cross_entropy(classifier(encoder(views[1])), torch.arange(ROWS) % 3)


def soft_labels_beside(parts, views):
    """The classifier's cross-entropy of a mixed row is that against its class and its partner's, by their shares."""
    encoder, head, classifier = parts
    labels, classes = draw(views[0]), torch.arange(ROWS) % 3
    features, lam = encoder(mix(views, labels)[0]), labels.lam.double()
    contrast = oracle.nce(head(features), head(encoder(views[1])), labels, 0.2).mean()
    own, other = (
        F.cross_entropy(classifier(features), each, reduction="none") for each in (classes, classes[labels.partner])
    )
    return contrast + (lam * own + (1 - lam) * other).mean()


def gradient_accumulation(net, views):
    """Each half of the rows has partners within itself; all are contrasted with all."""
    parts = [draw(half) for half in views[0].chunk(2)]
    partner = torch.cat([parts[0].partner, parts[1].partner + ROWS // 2])
    labels = VirtualLabels(torch.cat([part.lam for part in parts]), partner)
    return oracle.nce(net(mix(views, labels)[0]), net(views[1]), labels, 0.2).mean()


SHAPES = {
    "views_from_the_loader": views_from_the_loader,
    "both_directions": all_pairs,
    "views_one_after_the_other": stacked_views,
    "views_side_by_side": stacked_views,
    "views_inside_the_model": views_inside_the_model,
    "online_and_target": online_and_target,
    "another_loss_beside": another_loss_beside,
    "soft_labels_beside": soft_labels_beside,
    "gradient_accumulation": gradient_accumulation,
    "half_precision": views_from_the_loader,
    "data_parallel": views_from_the_loader,
    "many_views": many_views,
}


@pytest.mark.parametrize("name", SHAPES)
def test_twenty_steps_are_the_formula(name):
    check(SHAPES[name], *run(load(name, DIFFS[name])))


def test_every_loop_is_documented_and_tested():
    assert set(DIFFS) == {path.stem for path in LOOPS.glob("*.py")} == set(SHAPES) | set(CODES)
