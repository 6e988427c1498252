"""What the operators say of tensors without values, against what they compute: shapes, dtypes and strides."""

import pytest
import torch

from imix_aug import VirtualLabels, imix_clip_loss, imix_nce_loss, imix_sigmoid_loss
from imix_aug._cross_entropy import blocked, both, node, operator, plain, softplus

LOSSES = {"nce": imix_nce_loss, "clip": imix_clip_loss, "sigmoid": imix_sigmoid_loss}
OPERATORS = {
    "nce": (operator._node, operator._key_gradient),
    "clip": (both._node, both._gradients_of_both),
    "sigmoid": (softplus._node, softplus._gradients_of_sums),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wants", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_said_without_values_is_what_is_computed(loss, reduction, wants, dtype, monkeypatch):
    checked = []

    def check(function):
        def call(*args):
            torch.library.opcheck(function, args, test_utils="test_faketensor")
            checked.append(function)
            return function(*args)

        return call

    monkeypatch.setattr(blocked, "_HAS_BFLOAT16_UNITS", True)
    for each in (node, plain):
        monkeypatch.setattr(each, "readable", lambda *tensors: False)
    operators = [each._operator for each in OPERATORS[loss]]
    for each in OPERATORS[loss]:
        monkeypatch.setattr(each, "_operator", check(each._operator))
    query, key = (torch.randn(6, 4, dtype=torch.float64).to(dtype).requires_grad_(needs) for needs in wants)
    labels = VirtualLabels(torch.rand(6), torch.randperm(6))
    value = LOSSES[loss](query, key, labels, temperature=0.2, reduction=reduction)
    assert checked == operators[:1]
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    if any(wants):
        value.sum().backward()
        apart = loss == "sigmoid" or (reduction == "none" and (loss == "clip" or wants[1]))
        assert checked[1:] == operators[1:] * apart
