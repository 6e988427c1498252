"""The shapes that functions and their gradients are brought into, with small functions of this file's own."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from imix_aug._cross_entropy import node

number = itertools.count()


def shifted(rows: Tensor, by: float) -> Tensor:
    return rows + by


def cubes(rows: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    return factor * (rows**3).sum(), 3 * rows**2


def keep(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])
    ctx.factor = inputs[1]


def gradients(ctx, grad, *_none):
    (squares,) = ctx.saved_tensors
    return grad * ctx.factor * squares, None


def opaque():
    return node.Opaque(f"imix_aug_tests::shifted_{next(number)}", shifted, shapes=lambda rows, by: rows.new_empty(7, 7))


def with_gradients():
    shapes = lambda rows, factor: (rows.new_empty(()), torch.empty_like(rows))  # noqa: E731
    name = f"imix_aug_tests::cubes_{next(number)}"
    return node.Node(name, cubes, shapes=shapes, keep=keep, gradients=gradients)


@pytest.mark.parametrize("by_operator", [False, True])
def test_an_opaque_function_is_the_function_and_without_values_the_shape_that_was_given(by_operator, monkeypatch):
    function, rows = opaque(), torch.randn(4, 3)
    if by_operator:
        monkeypatch.setattr(node, "readable", lambda rows: False)
    assert torch.equal(function(rows, 2.0), rows + 2)
    assert function(rows.to("meta"), 2.0).shape == (7, 7)  # as no computation would have it


def test_an_opaque_function_is_one_operator_in_a_graph_and_none_without():
    function, rows = opaque(), torch.randn(7, 7)
    names = [str(each.target) for each in make_fx(lambda rows: function(rows, 2.0))(rows).graph.nodes]
    assert sum(name.startswith("imix_aug_tests.shifted") for name in names) == 1
    assert not any(name.startswith("aten.add") for name in names)
    function._operator = lambda *args: pytest.fail("plain tensors do without")
    assert torch.equal(function(rows, 2.0), rows + 2)
    assert torch.equal(torch.func.grad(lambda rows: function(rows, 2.0).square().sum())(rows), 2 * (rows + 2))


@pytest.mark.parametrize("by_operator", [False, True])
def test_a_node_has_the_gradient_that_was_given(by_operator, monkeypatch):
    function, rows = with_gradients(), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    if by_operator:
        monkeypatch.setattr(node, "readable", lambda rows: False)
    loss = function(rows, 2.0)
    torch.testing.assert_close(loss, 2 * (rows**3).sum())
    torch.testing.assert_close(torch.autograd.grad(3 * loss, rows)[0], 18 * rows**2)


def test_a_node_under_transforms_and_without_values():
    function, rows = with_gradients(), torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(torch.func.grad(lambda rows: function(rows, 2.0))(rows), 6 * rows**2)
    without = rows.to("meta").requires_grad_()
    loss = function(without, 2.0)
    assert loss.shape == ()
    assert torch.autograd.grad(loss, without)[0].shape == (4, 3)
    names = [str(each.target) for each in make_fx(lambda rows: function(rows, 2.0))(rows).graph.nodes]
    assert sum(name.startswith("imix_aug_tests.cubes") for name in names) == 1


def test_a_node_whose_function_returns_its_loss_alone():
    def halves(rows: Tensor) -> Tensor:
        return rows.sum(1) / 2

    function = node.Node(
        f"imix_aug_tests::halves_{next(number)}",
        halves,
        shapes=lambda rows: rows.new_empty(len(rows)),
        keep=lambda ctx, inputs, output: None,
        gradients=lambda ctx, grad: (grad[:, None].expand(-1, 3) / 2,),
    )
    rows = torch.randn(4, 3, requires_grad=True)
    for each in (function(rows), make_fx(function)(rows)(rows)):
        torch.testing.assert_close(each, rows.sum(1) / 2)
    assert torch.autograd.grad(function(rows).sum(), rows)[0].tolist() == [[0.5] * 3] * 4
