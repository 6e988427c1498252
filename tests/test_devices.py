"""All stays on the input's device: traced on a card that need not be there, where two devices never mix."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

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

N, D = 8, 4


def can_index_a_card_that_is_not_there():
    """A build for the CPU alone cannot, and up to torch 2.8 CUDA is started for it."""
    try:
        with FakeTensorMode():
            torch.empty(1, device="cuda")[:, None]
    except RuntimeError:
        return False
    return True


pytestmark = pytest.mark.skipif(
    not can_index_a_card_that_is_not_there(), reason="this torch indexes no card that is not there"
)


def on_card(*shape, **options):
    return torch.empty(*shape, device="cuda", **options)


class OnCardAlone(TorchFunctionMode):
    """Refuse a tensor on the host: what is drawn or made there must be copied to the card, which waits for it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        assert not isinstance(result, torch.Tensor) or result.device.type == "cuda", func
        return result


@pytest.fixture(autouse=True)
def _fake():
    with FakeTensorMode(), OnCardAlone():
        yield


def rows(count=2):
    return [on_card(N, D) for _ in range(count)]


def mixed_labels():
    return VirtualLabels(on_card(N), on_card(N, dtype=torch.int64))


def classes():
    return on_card(N, dtype=torch.int64)


LOSSES = {
    "nce": lambda labels, **options: imix_nce_loss(*rows(), labels, **options),
    "ntxent": lambda labels, **options: imix_ntxent_loss(*rows(4), labels, **options),
    "supcon": lambda labels, **options: imix_supcon_loss(*rows(), classes(), labels, **options),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("labels", [mixed_labels, lambda: None], ids=["mixed", "unmixed"])
@pytest.mark.parametrize("temperature", [lambda: 0.2, lambda: on_card(())], ids=["float", "learnt"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_contrastive_losses(loss, labels, temperature, reduction):
    value = LOSSES[loss](labels(), temperature=temperature(), negatives=on_card(5, D), reduction=reduction)
    assert value.device.type == "cuda"
    assert value.shape == (() if reduction == "mean" else (N,))


@pytest.mark.parametrize("labels", [mixed_labels, lambda: None], ids=["mixed", "unmixed"])
def test_other_losses(labels):
    assert imix_byol_loss(*rows(), labels()).device.type == "cuda"
    assert IMixLoss(nn.CrossEntropyLoss(), on="logits")(on_card(N, N), labels()).device.type == "cuda"
    assert IMixLoss(nn.functional.pairwise_distance)(*rows(), labels()).device.type == "cuda"


def test_one_lambda_a_batch_is_known_without_a_look():
    _, labels = IMix(per_sample=False)(on_card(N, D))
    assert IMixLoss(nn.MSELoss())(*rows(), labels).shape == ()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("alpha", [1.0, (0.5, 2.0)])
@pytest.mark.parametrize("mode", ["mixup", "cutmix"])
def test_mixing(mode, alpha, training):
    mixed, labels = IMix(alpha, mode).train(training)(on_card(N, 3, 6, 6))
    assert {each.device.type for each in (mixed, *labels)} == {"cuda"}
    assert labels.dense().device.type == "cuda"


def test_inputmix_and_queue():
    assert InputMix(2)(on_card(N, D)).device.type == "cuda"
    with torch.device("cuda"):
        queue = NegativeQueue(6, D)
    queue.enqueue(on_card(N, D))
    assert queue.negatives.device.type == "cuda"
    assert queue.negatives.shape == (6, D)
