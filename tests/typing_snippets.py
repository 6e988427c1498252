"""What users write, for mypy and pyright: each call keeps its types. Checked, and never run."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import assert_type

from imix_aug import (
    IMix,
    IMixLoss,
    InputMix,
    NegativeQueue,
    VirtualLabels,
    imix_byol_loss,
    imix_nce_loss,
    imix_ntxent_loss,
    imix_supcon_loss,
)


class Patient(NamedTuple):
    """A batch with named parts."""

    numbers: Tensor
    series: Tensor


def mixing_keeps_the_type_of_the_batch(images: Tensor, patients: Patient, batch: dict[str, Tensor]) -> None:
    imix = IMix(alpha=(1.0, 2.0), mode="cutmix", per_sample=False, generator=torch.Generator())
    assert_type(imix(images), tuple[Tensor, VirtualLabels])
    assert_type(imix(patients), tuple[Patient, VirtualLabels])
    assert_type(imix(batch), tuple[dict[str, Tensor], VirtualLabels])
    assert_type(imix((images, images)), tuple[tuple[Tensor, Tensor], VirtualLabels])
    assert_type(imix([images, images]), tuple[list[Tensor], VirtualLabels])
    assert_type(InputMix(num_aux=2)(patients), Patient)
    IMix(mode="cutmix", dims=(1,), skip=("age", 0))
    IMix(mode="cutmixx")  # type: ignore[arg-type]  # pyright: ignore


def labels_unpack(images: Tensor) -> None:
    mixed, labels = IMix()(images)
    assert_type(mixed, Tensor)
    lam, partner = labels
    assert_type(lam, Tensor)
    assert_type(partner, Tensor)
    assert_type(labels.dense(8), Tensor)
    assert_type(labels.to("cpu"), VirtualLabels)
    assert_type(VirtualLabels.identity(8), VirtualLabels)
    assert_type(VirtualLabels.cat([labels, labels]), VirtualLabels)
    assert_type(labels.mix(images), Tensor)
    assert_type(labels.mix({"mask": images}), dict[str, Tensor])


def losses_are_tensors(net: nn.Module, view_1: Tensor, view_2: Tensor, classes: Tensor) -> None:
    temperature = nn.Parameter(torch.tensor(0.2))
    x, labels = IMix()(view_1)
    queue = NegativeQueue(size=64, dim=16)
    assert_type(imix_nce_loss(net(x), net(view_2), labels, temperature=temperature, negatives=queue.negatives), Tensor)
    queue.enqueue(net(view_2))
    (mixed_1, mixed_2), labels = IMix()((view_1, view_2))
    assert_type(imix_ntxent_loss(net(mixed_1), net(mixed_2), net(view_1), net(view_2), labels), Tensor)
    assert_type(imix_supcon_loss(net(x), net(view_2), classes, labels, reduction="none"), Tensor)
    assert_type(imix_byol_loss(net(x), net(view_2), None, normalize=False), Tensor)


def numbers_are_those_of_python_and_numpy(q: Tensor, k: Tensor) -> None:
    imix_nce_loss(q, k, temperature=np.float32(0.2))
    imix_ntxent_loss(q, q, k, k, None, temperature=1)
    imix_supcon_loss(q, k, torch.arange(8), temperature=np.float64(0.2))
    IMix(alpha=(np.float32(1), 2))
    InputMix(alpha=np.float16(1), min_weight=np.linspace(0, 1, 3)[1])
    imix_nce_loss(q, k, temperature="0.2")  # type: ignore[arg-type]
    IMix(alpha=torch.ones(()))  # type: ignore[arg-type]


def square(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().mean()


def criteria_are_functions_or_modules(a: Tensor, b: Tensor, labels: VirtualLabels) -> None:
    assert_type(IMixLoss(square)(a, b, labels), Tensor)
    assert_type(IMixLoss(nn.CrossEntropyLoss(), on="logits")(a, labels), Tensor)
    assert_type(IMixLoss(square)(a, b), Tensor)
    assert_type(IMixLoss(square)(a, b, labels=labels), Tensor)
    IMixLoss(square)("a", "b")  # type: ignore[call-overload]
    IMixLoss(square, on="rows")  # type: ignore[arg-type]
    assert_type(IMixLoss(square, paired=("classes",))(a, b, labels, classes=a, margin=0.1), Tensor)
    assert_type(IMixLoss(nn.CrossEntropyLoss(), on="logits", extra_columns=True)(a, labels), Tensor)
