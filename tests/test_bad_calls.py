"""Wrong calls of the public functions: each ends in one ValueError or TypeError that names the argument."""

import inspect

import pytest
import torch
from torch import nn

from imix_aug import (
    IMix,
    IMixLoss,
    InputMix,
    NegativeQueue,
    VirtualLabels,
    imix_byol_loss,
    imix_clip_loss,
    imix_nce_loss,
    imix_ntxent_loss,
    imix_sigmoid_loss,
    imix_supcon_loss,
)

N, D = 6, 4
ROWS = torch.ones(N, D)
LABELS = VirtualLabels.identity(N)
CLASSES = torch.zeros(N, dtype=torch.int64)
META = torch.ones(N, D, device="meta")

# name of the argument in the message, and the value that is wrong
ROW_MISTAKES = [
    ("a list", ROWS.tolist()),
    ("None", None),
    ("integers", ROWS.long()),
    ("booleans", ROWS.bool()),
    ("complex numbers", ROWS.cfloat()),
    ("one dimension", ROWS[0]),
    ("three dimensions", ROWS[None]),
]
PAIR_MISTAKES = [
    *ROW_MISTAKES,
    ("another dtype", ROWS.double()),
    ("another device", META),
    ("more rows", torch.ones(N + 1, D)),
    ("a single row, which would broadcast", ROWS[:1]),
    ("more columns", torch.ones(N, D + 1)),
    ("a single column, which would broadcast", ROWS[:, :1]),
]
LABEL_MISTAKES = [
    ("a matrix", torch.eye(N)),
    ("a plain tuple", tuple(LABELS)),
    ("lambda alone", LABELS.lam),
    ("a number", 0.7),
    ("more rows", VirtualLabels.identity(N + 1)),
    ("one row, which would broadcast", VirtualLabels.identity(1)),
    ("lambda as a column", VirtualLabels._make((LABELS.lam[:, None], LABELS.partner))),
    ("lambda as a float", VirtualLabels._make((0.5, LABELS.partner))),
    ("integer lambda", VirtualLabels._make((LABELS.lam.long(), LABELS.partner))),
    ("a list of partners", VirtualLabels._make((LABELS.lam, LABELS.partner.tolist()))),
    ("float partners", VirtualLabels._make((LABELS.lam, LABELS.partner.float()))),
    ("int32 partners", VirtualLabels._make((LABELS.lam, LABELS.partner.int()))),
    ("fewer partners", VirtualLabels._make((LABELS.lam, LABELS.partner[1:]))),
    ("another device", VirtualLabels.identity(N, "meta")),
]
OPTION_MISTAKES = [
    ("temperature", "zero", 0.0),
    ("temperature", "zero, an int", 0),
    ("temperature", "negative", -0.2),
    ("temperature", "nan", float("nan")),
    ("temperature", "infinite", float("inf")),
    ("temperature", "a string", "0.2"),
    ("temperature", "None", None),
    ("temperature", "a bool", True),
    ("temperature", "a vector", torch.full((1,), 0.2)),
    ("temperature", "a value a row", torch.full((N,), 0.2)),
    ("temperature", "an integer tensor", torch.tensor(1)),
    ("temperature", "a negative tensor", torch.tensor(-0.2)),
    ("temperature", "a tensor of nan", torch.tensor(float("nan"))),
    ("temperature", "another device", torch.tensor(0.2, device="meta")),
    ("negatives", "a list", [[1.0] * D]),
    ("negatives", "one row as a vector", ROWS[0]),
    ("negatives", "a module", NegativeQueue(4, D)),
    ("negatives", "more columns", torch.ones(9, D + 1)),
    ("negatives", "another dtype", ROWS.double()),
    ("negatives", "integers", ROWS.long()),
    ("negatives", "another device", META),
    ("hard_negatives", "a matrix", ROWS),
    ("hard_negatives", "other rows", torch.ones(N + 1, 2, D)),
    ("hard_negatives", "none per row", torch.ones(N, 0, D)),
    ("hard_negatives", "more columns", torch.ones(N, 2, D + 1)),
    ("hard_negatives", "another dtype", torch.ones(N, 2, D, dtype=torch.float64)),
    ("hard_negatives", "another device", torch.ones(N, 2, D, device="meta")),
    ("normalize", "None", None),
    ("normalize", "an int", 1),
    ("normalize", "a string", "l2"),
    ("reduction", "unknown", "average"),
    ("reduction", "None", None),
    ("reduction", "upper case", "MEAN"),
    ("gather_distributed", "an int", 1),
    ("gather_distributed", "None", None),
    ("process_group", "a group that is not used", object()),
]
INTEGER_MISTAKES = [
    ("a list", CLASSES.tolist()),
    ("floats", CLASSES.float()),
    ("booleans", CLASSES.bool()),
    ("more rows", torch.zeros(N + 1, dtype=torch.int64)),
    ("one, which would broadcast", CLASSES[:1]),
    ("one-hot", torch.zeros(N, 3, dtype=torch.int64)),
    ("another device", CLASSES.to("meta")),
]
WEIGHT_MISTAKES = [
    ("a list", [1.0] * N),
    ("a number", 1.0),
    ("integers", CLASSES),
    ("more rows", torch.ones(N + 1)),
    ("one, which would broadcast", torch.ones(1)),
    ("a column", torch.ones(N, 1)),
    ("another device", torch.ones(N, device="meta")),
]

CALLS = {
    "nce": (imix_nce_loss, {"query": ROWS, "key": ROWS}),
    "ntxent": (
        imix_ntxent_loss,
        {"query_1": ROWS, "query_2": ROWS, "key_1": ROWS, "key_2": ROWS, "labels": LABELS},
    ),
    "clip": (imix_clip_loss, {"query": ROWS, "key": ROWS}),
    "supcon": (imix_supcon_loss, {"query": ROWS, "key": ROWS, "classes": CLASSES}),
    "sigmoid": (imix_sigmoid_loss, {"query": ROWS, "key": ROWS}),
    "byol": (imix_byol_loss, {"prediction": ROWS, "target": ROWS}),
}


def loss_cases():
    for name, (function, good) in CALLS.items():
        first, *others = [argument for argument in good if argument not in ("labels", "classes")]
        mistakes = [
            (first, *mistake) for mistake in [*ROW_MISTAKES, ("no rows", ROWS[:0]), ("no columns", ROWS[:, :0])]
        ]
        mistakes += [(argument, *mistake) for argument in others for mistake in PAIR_MISTAKES]
        mistakes += [("labels", *mistake) for mistake in LABEL_MISTAKES]
        known = inspect.signature(function).parameters
        per_row = {
            "classes": [*INTEGER_MISTAKES, ("None", None)],
            "ids": INTEGER_MISTAKES,
            "weight": WEIGHT_MISTAKES,
        }
        mistakes += [(argument, *mistake) for argument in per_row if argument in known for mistake in per_row[argument]]
        mistakes += [mistake for mistake in OPTION_MISTAKES if mistake[0] in known]
        for argument, what, wrong in mistakes:
            if (name, argument, what) == ("supcon", "key", "None"):
                continue  # the queries are their own keys then
            yield pytest.param(function, {**good, argument: wrong}, argument, id=f"{name}: {argument}: {what}")


@pytest.mark.parametrize(("function", "arguments", "argument"), list(loss_cases()))
def test_loss(function, arguments, argument):
    with pytest.raises((TypeError, ValueError), match=rf"^{argument}\b"):
        function(**arguments)


def queue_of(*keys):
    queue = NegativeQueue(4, D)
    queue.enqueue(*keys)


IMAGES = torch.rand(N, 3, 8, 8)
OTHER_CASES = {
    "IMix: alpha: negative": ("alpha", lambda: IMix(-1.0)),
    "IMix: alpha: nan": ("alpha", lambda: IMix(float("nan"))),
    "IMix: alpha: infinite": ("alpha", lambda: IMix(float("inf"))),
    "IMix: alpha: a string": ("alpha", lambda: IMix("1")),
    "IMix: alpha: None": ("alpha", lambda: IMix(None)),
    "IMix: alpha: a bool": ("alpha", lambda: IMix(True)),
    "IMix: alpha: one of a pair": ("alpha", lambda: IMix((1.0,))),
    "IMix: alpha: three": ("alpha", lambda: IMix((1.0, 1.0, 1.0))),
    "IMix: alpha: zero in a pair": ("alpha", lambda: IMix((0.0, 1.0))),
    "IMix: alpha: negative in a pair": ("alpha", lambda: IMix((1.0, -1.0))),
    "IMix: alpha: a tensor": ("alpha", lambda: IMix(torch.ones(2))),
    "IMix: mode: unknown": ("mode", lambda: IMix(1.0, "cutout")),
    "IMix: mode: None": ("mode", lambda: IMix(1.0, None)),
    "IMix: per_sample: an int": ("per_sample", lambda: IMix(per_sample=1)),
    "IMix: per_sample: a string": ("per_sample", lambda: IMix(per_sample="yes")),
    "IMix: generator: a seed": ("generator", lambda: IMix(generator=0)),
    "IMix: x: a number": ("x", lambda: IMix()(1.0)),
    "IMix: x: None": ("x", lambda: IMix()(None)),
    "IMix: x: a list of numbers": ("x", lambda: IMix()([1.0, 2.0])),
    "IMix: x: an empty list": ("x", lambda: IMix()([])),
    "IMix: x: an empty dict": ("x", lambda: IMix()({})),
    "IMix: x: 0-d": ("x", lambda: IMix()(torch.tensor(1.0))),
    "IMix: x: no rows": ("x", lambda: IMix()(ROWS[:0])),
    "IMix: x: integers": ("x", lambda: IMix()(CLASSES)),
    "IMix: x: a string in a dict": ("x", lambda: IMix()({"a": ROWS, "b": "text"})),
    "IMix: x: leaves of other lengths": ("x", lambda: IMix()((ROWS, torch.ones(N + 1)))),
    "IMix: x: leaves on two devices": ("x", lambda: IMix()((ROWS, META))),
    "IMix: x: cutmix of rows": ("x", lambda: IMix(mode="cutmix")(ROWS)),
    "IMix: x: cutmix of a volume": ("x", lambda: IMix(mode="cutmix")(IMAGES[..., None])),
    "IMix: x: cutmix of two sizes": ("x", lambda: IMix(mode="cutmix")((IMAGES, IMAGES[..., :4]))),
    "IMix: x: cutmix without pixels": ("x", lambda: IMix(mode="cutmix")(IMAGES[..., :0])),
    "InputMix: num_aux: zero": ("num_aux", lambda: InputMix(0)),
    "InputMix: num_aux: a float": ("num_aux", lambda: InputMix(1.0)),
    "InputMix: num_aux: a bool": ("num_aux", lambda: InputMix(True)),
    "InputMix: alpha: zero": ("alpha", lambda: InputMix(1, 0.0)),
    "InputMix: alpha: a pair": ("alpha", lambda: InputMix(1, (1.0, 1.0))),
    "InputMix: min_weight: above one": ("min_weight", lambda: InputMix(min_weight=1.1)),
    "InputMix: min_weight: negative": ("min_weight", lambda: InputMix(min_weight=-0.1)),
    "InputMix: min_weight: nan": ("min_weight", lambda: InputMix(min_weight=float("nan"))),
    "InputMix: generator: a seed": ("generator", lambda: InputMix(generator=3)),
    "InputMix: x: integers": ("x", lambda: InputMix()(CLASSES)),
    "InputMix: x: None": ("x", lambda: InputMix()(None)),
    "VirtualLabels: num_classes: too few": ("num_classes", lambda: LABELS.dense(N - 1)),
    "VirtualLabels: num_classes: negative": ("num_classes", lambda: LABELS.dense(-1)),
    "VirtualLabels: device: a dtype": ("device", lambda: LABELS.to(torch.float64)),
    "VirtualLabels: device: None": ("device", lambda: LABELS.to(None)),
    "NegativeQueue: size: zero": ("size", lambda: NegativeQueue(0, D)),
    "NegativeQueue: size: a float": ("size", lambda: NegativeQueue(4.0, D)),
    "NegativeQueue: dim: negative": ("dim", lambda: NegativeQueue(4, -1)),
    "NegativeQueue: dim: None": ("dim", lambda: NegativeQueue(4, None)),
    "NegativeQueue: keys: more columns": ("keys", lambda: queue_of(torch.ones(2, D + 1))),
    "NegativeQueue: keys: a vector": ("keys", lambda: queue_of(torch.ones(D))),
    "NegativeQueue: keys: integers": ("keys", lambda: queue_of(ROWS.long())),
    "NegativeQueue: keys: another device": ("keys", lambda: queue_of(META)),
    "NegativeQueue: keys: a list": ("keys", lambda: queue_of(ROWS.tolist())),
    "NegativeQueue: gather_distributed: an int": (
        "gather_distributed",
        lambda: NegativeQueue(4, D).enqueue(ROWS, gather_distributed=1),
    ),
    "NegativeQueue: process_group: not used": (
        "process_group",
        lambda: NegativeQueue(4, D).enqueue(ROWS, process_group=object()),
    ),
    "IMixLoss: criterion: a name": ("criterion", lambda: IMixLoss("ce")),
    "IMixLoss: on: unknown": ("on", lambda: IMixLoss(nn.MSELoss(), on="rows")),
    "IMixLoss: a: integers": ("a", lambda: IMixLoss(nn.MSELoss())(ROWS.long(), ROWS, LABELS)),
    "IMixLoss: b: more columns": ("b", lambda: IMixLoss(nn.MSELoss())(ROWS, torch.ones(N, D + 1), LABELS)),
    "IMixLoss: b: a single row": ("b", lambda: IMixLoss(nn.MSELoss())(ROWS, ROWS[:1], LABELS)),
    "IMixLoss: a: no rows": ("a", lambda: IMixLoss(nn.MSELoss())(ROWS[:0], ROWS[:0], LABELS)),
    "IMixLoss: a: a number": ("a", lambda: IMixLoss(nn.MSELoss())(ROWS[0, 0], ROWS[0, 0], LABELS)),
    "IMixLoss: b: another device": ("b", lambda: IMixLoss(nn.MSELoss())(ROWS, META, LABELS)),
    "IMixLoss: paired: another device": (
        "classes",
        lambda: IMixLoss(lambda a, b, classes: a, paired=("classes",))(ROWS, ROWS, LABELS, classes=CLASSES.to("meta")),
    ),
    "clip: labels: a partner twice": (
        "labels",
        lambda: imix_clip_loss(ROWS, ROWS.clone(), VirtualLabels(LABELS.lam, torch.zeros_like(LABELS.partner))),
    ),
    "IMixLoss: logits: too few columns": (
        "logits",
        lambda: IMixLoss(nn.CrossEntropyLoss(), on="logits")(torch.ones(N, N - 1), LABELS),
    ),
    "IMixLoss: labels: a matrix": ("labels", lambda: IMixLoss(nn.MSELoss())(ROWS, ROWS, torch.eye(N))),
    "IMixLoss: labels: other rows": (
        "labels",
        lambda: IMixLoss(nn.MSELoss())(ROWS, ROWS, VirtualLabels.identity(N + 1)),
    ),
    "IMixLoss: labels: many lambdas for a scalar": (
        "labels",
        lambda: IMixLoss(lambda a, b: (a - b).mean())(
            ROWS, ROWS, VirtualLabels(torch.linspace(0.5, 1, N), LABELS.partner)
        ),
    ),
    "IMixLoss: criterion: a matrix of losses": (
        "criterion",
        lambda: IMixLoss(lambda a, b: (a - b).square())(ROWS, ROWS, LABELS),
    ),
}


@pytest.mark.parametrize("case", OTHER_CASES)
def test_other_call(case):
    argument, call = OTHER_CASES[case]
    with pytest.raises((TypeError, ValueError), match=rf"\b{argument}\b"):
        call()


def test_there_are_at_least_a_hundred():
    assert len(list(loss_cases())) + len(OTHER_CASES) >= 100


RIGHT_CALLS = {
    "a queue of (dim, size)": (
        lambda: NegativeQueue(D, 9).enqueue(torch.ones(2, D)),
        r"NegativeQueue\(size=9, dim=4\) would fit",
    ),
    "negatives of a queue of (dim, size)": (
        lambda: imix_nce_loss(ROWS, ROWS, negatives=NegativeQueue(D, 9).negatives),
        r"as many columns as query, 4, got shape \(0, 9\): a queue is NegativeQueue\(size, dim\)",
    ),
    "three arguments for SimCLR": (
        lambda: imix_ntxent_loss(ROWS, ROWS, LABELS),
        r"key_1 must be a tensor, got VirtualLabels: .*\(query_1, query_2, key_1, key_2, labels\)",
    ),
    "labels by name and no keys": (
        lambda: imix_ntxent_loss(ROWS, ROWS, labels=LABELS),
        r"labels must be None without keys, .*\(query_1, query_2, key_1, key_2, labels\)",
    ),
    "labels in the place of classes": (
        lambda: imix_supcon_loss(ROWS, ROWS, LABELS),
        r"classes must be a tensor, got VirtualLabels: .*\(query, key, classes, labels\)",
    ),
    "labels and no key": (
        lambda: imix_supcon_loss(ROWS, None, CLASSES, LABELS),
        r"labels must be None without key, .*\(query, key, classes, labels, same_view=True\)",
    ),
}


@pytest.mark.parametrize("name", RIGHT_CALLS)
def test_a_message_leads_to_the_right_call(name):
    call, message = RIGHT_CALLS[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


UNUSUAL = {
    "nested": lambda rows: torch.nested.nested_tensor(list(rows)),
    "jagged": lambda rows: torch.nested.nested_tensor([each.view(-1) for each in rows], layout=torch.jagged),
    "sparse": lambda rows: rows.to_sparse(),
    "quantized": lambda rows: torch.quantize_per_tensor(rows, 0.1, 0, torch.qint8),
    "eight bits": lambda rows: rows.to(torch.float8_e4m3fn),
    "complex": lambda rows: rows.to(torch.complex64),
}
UNUSUAL_CALLS = {
    "query": lambda make: imix_nce_loss(make(ROWS), ROWS),
    "key": lambda make: imix_nce_loss(ROWS, make(ROWS)),
    "negatives": lambda make: imix_nce_loss(ROWS, ROWS.clone(), negatives=make(ROWS)),
    "hard_negatives": lambda make: imix_nce_loss(ROWS, ROWS.clone(), hard_negatives=make(ROWS[:, None])),
    "weight": lambda make: imix_nce_loss(ROWS, ROWS.clone(), weight=make(ROWS[:, 0])),
    "ids": lambda make: imix_nce_loss(ROWS, ROWS.clone(), ids=make(ROWS[:, 0])),
    "temperature": lambda make: imix_nce_loss(ROWS, ROWS.clone(), temperature=make(ROWS[0, 0].clone())),
    "classes": lambda make: imix_supcon_loss(ROWS, ROWS.clone(), make(ROWS[:, 0])),
    "prediction": lambda make: imix_byol_loss(make(ROWS), ROWS),
    "target": lambda make: imix_byol_loss(ROWS, make(ROWS)),
    "keys": lambda make: NegativeQueue(8, D).enqueue(make(ROWS)),
    "logits": lambda make: IMixLoss(nn.CrossEntropyLoss(), on="logits")(make(ROWS), LABELS),
    "a": lambda make: IMixLoss(nn.PairwiseDistance())(make(ROWS), ROWS, LABELS),
    "b": lambda make: IMixLoss(nn.PairwiseDistance())(ROWS, make(ROWS), LABELS),
    "lam": lambda make: VirtualLabels(make(LABELS.lam), LABELS.partner),
}


@pytest.mark.parametrize("argument", UNUSUAL_CALLS)
@pytest.mark.parametrize("kind", UNUSUAL)
def test_tensors_of_unusual_kinds_are_refused(kind, argument):
    if argument == "temperature" and kind in ("nested", "jagged"):
        pytest.skip("a number is not nested")
    with pytest.raises((TypeError, ValueError), match=f"^{argument} must ") as caught:
        UNUSUAL_CALLS[argument](UNUSUAL[kind])
    assert "\n" not in str(caught.value)
