"""The documentation's diffs of public training codes: twenty steps of each against the formula by hand.

Each diff is applied to a stand-in with the code's interface and tensor layout.
"""

import re

import oracle
import pytest
import torch
from diffs import DOCS, changed, documented, load
from stepwise import ROWS, STEPS, check, draw, four_passes, mix, run
from torch.nn import functional as F

import imix_aug
from imix_aug import IMix, VirtualLabels

pytestmark = pytest.mark.usefixtures("double")

DIFFS = documented()
TABLE = re.compile(r"^\| \[([^\]]+)\]\([^)]+\) \| ([^|]+) \| (\d+) \| (\d+) \|", re.MULTILINE)
IN_TABLE = {
    code: cells for code, *cells in TABLE.findall((DOCS / "integrations" / "index.md").read_text(encoding="utf-8"))
}


def row(name):
    """The table's cells for a loop, whose first words are the code's name."""
    return IN_TABLE[load(name).__doc__.split(":")[0]]


def sthalles_simclr(model, views):
    return four_passes(model, views, 0.07)


def leftthomas_simclr(model, views):
    return four_passes(lambda x: model.g(model.f(x)), views, 0.5)


def official_moco(model, views):
    labels = draw(views[0])
    query = model.encoder_q(mix(views[:1], labels)[0])
    moved = [
        0.9 * old + 0.1 * new
        for old, new in zip(model.encoder_k.parameters(), model.encoder_q.parameters(), strict=True)
    ]
    named = dict(zip((name for name, _ in model.encoder_k.named_parameters()), moved, strict=True))
    key = torch.func.functional_call(model.encoder_k, named, views[1]).detach()
    return oracle.nce(query, key, labels, 0.07, model.queue.T).mean()


def byol(predict, target, views, labels):
    losses = [
        oracle.byol(predict(x), target(other), labels)
        for x, other in zip(mix(views, labels), reversed(views), strict=True)
    ]
    return (losses[0] + losses[1]).mean()


def byol_pytorch(model, views):
    one, two = model.augment1(views[0]), model.augment2(views[0])
    labels = draw(one)
    predictions = model.online_predictor(model.online_encoder(torch.cat(mix((one, two), labels)))[0]).chunk(2)
    targets = [model.target_encoder(x)[0] for x in (two, one)]
    return sum(oracle.byol(p, z, labels).mean() for p, z in zip(predictions, targets, strict=True))


def byol_a(model, views):
    learner = model.learner
    one, two = model.post_norm(torch.cat(views).view(-1, 1, 3, 4)).chunk(2)
    return byol(
        lambda x: learner.online_predictor(learner.online_encoder(x)), learner.target_encoder, (one, two), draw(one)
    )


def pytorch_scarf(model, views):
    x = views[0]
    corrupted = torch.rand_like(x) < 0.6
    second = torch.where(corrupted, -2 + 4 * torch.rand_like(x), x)
    return four_passes(lambda each: model.pretraining_head(model.encoder(each)), (x, second), 1.0)


def supcontrast(model, views):
    return four_passes(model, views, 0.07)


def supcontrast_with_classes(model, views):
    keys, labels, classes = [model(x) for x in views], draw(views[0]), torch.arange(ROWS) % 3
    queries = [model(x) for x in mix(views, labels)]
    pairs = zip(queries, reversed(keys), strict=True)
    return sum(oracle.supcon(query, key, classes, labels, 0.07).mean() for query, key in pairs) / 2


def simsiam(model, views):
    """One more than SimSiam's - cos, so its gradients."""
    targets, labels = [model.encoder(x).detach() for x in views], draw(views[0])
    lam, losses = labels.lam.double(), []
    for x, z in zip(mix(views, labels), reversed(targets), strict=True):
        prediction = model.predictor(model.encoder(x))
        own, other = (F.cosine_similarity(prediction, each) for each in (z, z[labels.partner]))
        losses.append((1 - lam * own - (1 - lam) * other).mean())
    return sum(losses) / 2


def ts_tcc(models, views):
    base, temporal = models
    views = [x[:, None] for x in views]

    def features(x):
        return F.normalize(base(x)[1], dim=1)

    (loss_1, key_1), (loss_2, key_2) = (temporal(*map(features, pair)) for pair in (views, views[::-1]))
    labels = draw(views[0])
    mixed = mix(views, labels)
    (_, query_1), (_, query_2) = (temporal(*map(features, pair)) for pair in (mixed, mixed[::-1]))
    return loss_1 + loss_2 + 0.7 * oracle.ntxent(query_1, query_2, key_1, key_2, labels, 0.2).mean()


def ts2vec_fit(net, views):
    """Both halves of the loss are linear in which series is meant: against one's own, and against the partner's."""
    module = load("ts2vec_fit")
    x = module.series(views)
    at = torch.randint(0, 3, (ROWS,))
    first = torch.stack([x[i, at[i] + 1 : at[i] + 6] for i in range(ROWS)])
    second = torch.stack([x[i, at[i] + 2 : at[i] + 7] for i in range(ROWS)])
    labels = draw(first, per_sample=False)
    out1, out2 = net(*mix([first.nan_to_num()], labels))[:, -4:], net(second)[:, :4]
    own, other = (module.hierarchical_contrastive_loss(out1, z) for z in (out2, out2[labels.partner]))
    lam = labels.lam[0].double()
    return lam * own + (1 - lam) * other


def open_clip_train(model, views):
    module = load("open_clip_train")
    labels = draw(views[0])
    out = model(*mix(views[:1], labels), module.words(views[1]))
    logits = out["logit_scale"] * out["image_features"] @ out["text_features"].T
    shares = oracle.soft_labels(*labels, ROWS)
    down = shares.T / shares.sum(dim=0)[:, None]  # a text's images, by the shares that hold it
    return (F.cross_entropy(logits, shares) + F.cross_entropy(logits.T, down)) / 2


def pygcl_graphcl(model, views):
    _, _, _, _, *pooled = model(load("pygcl_graphcl").graphs(views[0]))
    labels, project = draw(pooled[0]), model.encoder.project
    pairs = zip(mix(pooled, labels), reversed(pooled), strict=True)
    return sum(oracle.nce(project(query), project(key), labels, 0.2).mean() for query, key in pairs) / 2


def clmr(model, views):
    def encode(x):
        return model.model.projector(model.model.encoder(x))

    return four_passes(encode, [x[:, None] for x in views], 0.5)


def simcse(model, views):
    ids, mask = load("simcse").sentences(views)
    words = model.bert.words(ids) * mask[..., None]
    labels = draw(words)
    first = torch.maximum(mask[:, 0], mask[labels.partner, 0])
    sentences = [(mix([words[:, 0]], labels)[0], first), *((words[:, i], mask[:, i]) for i in (1, 2))]
    query, key, negative = (
        model.mlp((model.bert.layer(x).relu() * m[..., None]).sum(dim=1) / m.sum(dim=1, keepdim=True))
        for x, m in sentences
    )
    return oracle.nce(query, key, labels, 0.05, negative).mean()


def class_loss(model, views):
    losses = [F.cross_entropy(model.classifier(model.backbone(x).detach()), torch.arange(ROWS) % 3) for x in views]
    return sum(losses) / 2


def solo_learn_byol(model, views):
    def target(x):
        return model.momentum_projector(model.momentum_backbone(x))

    return byol(lambda x: model(x)["p"], target, views, draw(views[0])) + class_loss(model, views)


def solo_learn_simclr(model, views):
    return four_passes(lambda x: model(x)["z"], views, 0.2) + class_loss(model, views)


CODES = {
    each.__name__: each
    for each in (
        sthalles_simclr,
        leftthomas_simclr,
        official_moco,
        byol_pytorch,
        byol_a,
        pytorch_scarf,
        supcontrast,
        simsiam,
        ts_tcc,
        ts2vec_fit,
        open_clip_train,
        pygcl_graphcl,
        clmr,
        simcse,
        solo_learn_byol,
        solo_learn_simclr,
    )
}


@pytest.mark.parametrize("name", CODES)
def test_twenty_steps_are_the_formula(name):
    check(CODES[name], *run(load(name, DIFFS[name])))


def test_twenty_steps_of_supcontrast_with_classes():
    check(supcontrast_with_classes, *run(load("supcontrast", DIFFS["supcontrast"]), method="SupCon"))


@pytest.mark.parametrize("name", CODES)
def test_the_table_counts_the_lines(name):
    assert tuple(map(int, row(name)[1:])) == changed(DIFFS[name])


def test_the_table_of_libraries_counts_the_lines_that_the_scripts_mark():
    """Those of the first training loop, and the import."""
    integrations = DOCS / "integrations"
    rows = re.findall(
        r"^\| \[[^\]]+\]\(([\w-]+\.md)\) \| (\d+) \| ",
        (integrations / "index.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert len(rows) == 10
    for page, count in rows:
        for script in re.findall(r"\{literalinclude\} (\S+)", (integrations / page).read_text(encoding="utf-8")):
            marked = [
                text.count("# i-Mix") for text in (integrations / script).read_text(encoding="utf-8").split("\n\n\n")
            ]
            if page == "moco.md":  # two files there: a class and a loop
                lines = sum(marked) + 1
            elif page == "sentence-transformers.md":  # the loss is a class of its own
                lines = marked[-2]
            else:
                lines = next(filter(None, marked)) + 1
            assert lines == int(count), script


@pytest.mark.parametrize("name", CODES)
def test_the_table_says_what_the_unmixed_loss_is(name, monkeypatch):
    class Unmixed(IMix):
        def forward(self, x):
            leaf = x[0] if isinstance(x, tuple) else x
            return x, VirtualLabels.identity(len(leaf))

    before = run(load(name))[0]
    monkeypatch.setattr(imix_aug, "IMix", Unmixed)
    after = run(load(name, DIFFS[name]))[0]
    said = row(name)[0]
    if said == "equal":
        assert after == pytest.approx(before, rel=1e-8)
    elif said == "one more, same gradient":
        assert after == pytest.approx([loss + 1 for loss in before], rel=1e-8)
    else:
        assert said == "other columns"
        assert abs(after[0] - before[0]) > 1e-3


def test_mocos_accuracy_line_reads_what_it_did():
    """With its own interface intact: the meter gets logits (N, 1 + K) and zeros, before and after."""
    for diff in "", DIFFS["official_moco"]:
        module = load("official_moco", diff)
        run(module)
        assert len(module.train.top1) == STEPS
        assert max(module.train.top1) > 0
