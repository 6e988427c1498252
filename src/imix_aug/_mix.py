"""Mixing a batch with itself: IMix, which keeps virtual labels, and InputMix, which does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from imix_aug import _check
from imix_aug._labels import VirtualLabels
from imix_aug._mixing import draw
from imix_aug._mixing.operators import blend, paste
from imix_aug._types import Number

Batch = TypeVar("Batch")


class IMix(nn.Module):
    """Mix each sample of a batch with a partner from the batch, and label it with both.

    Every sample is a class of its own; row i becomes ``lam_i * x_i + (1 - lam_i) * x_partner(i)`` and its virtual label
    is mixed alike (Lee et al., ICLR 2021, arXiv 2010.08887, equation 4). ``partner`` is a random
    permutation and ``lam = max(b, 1 - b)`` with ``b ~ Beta(alpha, alpha)``, so that a row's own share is never the
    smaller one. All is drawn on the input's device, with no wait between host and device.

    Args:
        alpha: Beta's parameter, or a pair ``(a, b)`` of them. 1 draws lambda uniformly, more mixes more; 0 does not
            mix.
        mode: "mixup" (Zhang et al., ICLR 2018) for inputs of any kind; "cutmix" (Yun et al., ICCV 2019) pastes a box
            of the partner into images ``(N, C, H, W)``, or a span into series ``(N, C, T)``, and makes ``lam`` the
            exact share that is left.
        per_sample: draw a lambda (and a box) for each row, or one for the batch. By default mixup draws one a row,
            cutmix one a batch.
        generator: where to draw from, on the input's device; default PyTorch's own. The same generator state gives
            the same draw.

    The input is a floating-point tensor ``(N, ...)`` of finite values (for cutmix of any dtype), or a dict, list, tuple
    or named tuple of tensors that share N: all leaves get the same partners and lambdas. The result is
    ``(mixed, labels)``, ``mixed`` with the shapes, dtypes and memory formats of the input, ``labels`` a
    ``VirtualLabels``. Gradients flow into the input. With ``alpha=0``, and after ``eval()``, it is the input itself
    and identity labels.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape, device or value; the message names the argument.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> imix = IMix(alpha=1.0, generator=generator)
        >>> images = torch.rand(4, 3, 8, 8)
        >>> mixed, labels = imix(images)
        >>> mixed.shape, labels.lam.shape, labels.partner.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4]), torch.Size([4]))
        >>> batch = {"audio": torch.rand(4, 1, 100), "age": torch.rand(4)}
        >>> mixed, labels = imix(batch)
        >>> sorted(mixed)
        ['age', 'audio']
    """

    def __init__(
        self,
        alpha: Number | tuple[Number, Number] = 1.0,
        mode: str = "mixup",
        *,
        per_sample: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.alpha = _check.alpha(alpha)
        self.mode = _check.choice("mode", mode, ("mixup", "cutmix"))
        self.per_sample = mode == "mixup" if per_sample is None else _check.flag("per_sample", per_sample)
        self.generator = _check.generator(generator)

    if TYPE_CHECKING:  # nn.Module's __call__ returns Any

        def __call__(self, x: Batch) -> tuple[Batch, VirtualLabels]: ...

    def forward(self, x: Batch) -> tuple[Batch, VirtualLabels]:
        """Return the mixed input and its virtual labels."""
        leaves = _leaves(x)
        n, device = leaves[0].shape[0], leaves[0].device
        sizes = _grid(leaves) if self.mode == "cutmix" else _continuous(leaves)
        if not self.training or self.alpha == (0.0, 0.0):
            return x, VirtualLabels.identity(n, device)
        partner = draw.partners(n, device, self.generator)
        lam = draw.shares(self.alpha, n if self.per_sample else 1, device, self.generator)
        if self.mode == "cutmix":
            bounds, lam = draw.boxes(lam, sizes, self.generator)
            mixed = _map(lambda leaf: paste(leaf, partner, bounds), x)
        else:
            mixed = _map(lambda leaf: blend(leaf, partner, lam), x)
        return mixed, VirtualLabels(lam.expand(n), partner)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        a, b = self.alpha
        return f"alpha={a if a == b else (a, b)}, mode={self.mode!r}, per_sample={self.per_sample}"


class InputMix(nn.Module):
    """Mix each sample with a few others and leave its label alone.

    For inputs that have few augmentations of their own: the weights of a row and of ``num_aux`` other rows come from a
    Dirichlet distribution, scaled so that the row itself keeps at least ``min_weight`` and so its identity (Lee et al.,
    ICLR 2021, arXiv 2010.08887, "InputMix").

    Args:
        num_aux: how many other rows are mixed in; distinct ones, as far as the batch has them.
        alpha: Dirichlet's parameter; 1 draws the weights uniformly.
        min_weight: the least weight of the row itself, 0 to 1.
        generator: where to draw from, on the input's device; default PyTorch's own.

    The input is a floating-point tensor ``(N, ...)``, or a dict, list, tuple or named tuple of them that share N; the
    result is alike. After ``eval()`` it is the input itself.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape, device or value; the message names the argument.

    Example:
        >>> import torch
        >>> mixed = InputMix(num_aux=2)(torch.rand(8, 3, 4, 4))
        >>> mixed.shape
        torch.Size([8, 3, 4, 4])
    """

    def __init__(
        self,
        num_aux: int = 1,
        alpha: Number = 1.0,
        *,
        min_weight: Number = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.num_aux = _check.count("num_aux", num_aux)
        self.alpha = _check.positive("alpha", alpha)
        self.min_weight = _check.fraction("min_weight", min_weight)
        self.generator = _check.generator(generator)

    if TYPE_CHECKING:  # nn.Module's __call__ returns Any

        def __call__(self, x: Batch) -> Batch: ...

    def forward(self, x: Batch) -> Batch:
        """Return the mixed input."""
        leaves = _leaves(x)
        _continuous(leaves)
        if not self.training:
            return x
        n, device = leaves[0].shape[0], leaves[0].device
        own = torch.zeros(self.num_aux + 1, device=device)
        own[0] = 1
        weights = draw.dirichlet(self.alpha, n, self.num_aux + 1, device, self.generator)
        weights = torch.lerp(weights, own, self.min_weight)
        # The rows stand on a random circle, and each takes those that follow it: all different, none itself.
        circle = draw.partners(n, device, self.generator)
        others = [
            torch.empty_like(circle).scatter(0, circle, circle.roll(-step)) for step in range(1, self.num_aux + 1)
        ]
        return _map(lambda leaf: _combine(leaf, others, weights), x)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return f"num_aux={self.num_aux}, alpha={self.alpha}, min_weight={self.min_weight}"


def _combine(x: Tensor, others: list[Tensor], weights: Tensor) -> Tensor:
    """Return the weighted sum of each row, whose weight comes first, and its other rows."""
    rows = x.to(torch.promote_types(x.dtype, torch.float32))
    own, *rest = (_column(weight, x) for weight in weights.unbind(1))
    mixed = rows * own
    for other, weight in zip(others, rest, strict=True):
        mixed = torch.addcmul(mixed, rows[other], weight)
    return mixed.to(x.dtype)


def _column(values: Tensor, x: Tensor) -> Tensor:
    """Shape one value a row so that it multiplies x."""
    return values.view(-1, *(1 for _ in x.shape[1:]))


def _map(function: Callable[[Tensor], Tensor], x: Batch) -> Batch:
    mapped: Batch = pytree.tree_map(function, x)
    return mapped


def _leaves(x: Any) -> list[Tensor]:
    """Return the batch's tensors, which must share N and the device."""
    leaves = pytree.tree_leaves(x)
    if not leaves:
        raise ValueError(f"x must hold at least one tensor, got an empty {type(x).__name__}")
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"x must be a tensor (N, ...), or a dict, list, tuple or named tuple of them, got {type(leaf).__name__}"
                + ("" if leaf is x else f" inside a {type(x).__name__}")
            )
        if leaf.dim() == 0:
            raise ValueError("x must have shape (N, ...), got a 0-d tensor")
        if leaf.shape[0] == 0:
            raise ValueError(f"x must have at least one row, got shape {tuple(leaf.shape)}")
        if leaf.shape[0] != leaves[0].shape[0]:
            raise ValueError(
                f"x must hold tensors with the same number of rows, got shapes "
                f"{', '.join(str(tuple(each.shape)) for each in leaves)}"
            )
        if leaf.device != leaves[0].device:
            raise ValueError(f"x must be on one device, got {leaves[0].device} and {leaf.device}")
    return leaves


def _continuous(leaves: list[Tensor]) -> tuple[int, ...]:
    for leaf in leaves:
        if not (leaf.is_floating_point() or leaf.is_complex()):
            raise TypeError(f"x must be floating-point to be blended, got {leaf.dtype}")
    return ()


def _grid(leaves: list[Tensor]) -> tuple[int, ...]:
    """Return the extents that a box is cut from, the same for all leaves."""
    for leaf in leaves:
        if leaf.dim() not in (3, 4) or math.prod(leaf.shape[2:]) == 0:
            raise ValueError(f'x must have shape (N, C, H, W) or (N, C, T) for mode="cutmix", got {tuple(leaf.shape)}')
        if leaf.shape[2:] != leaves[0].shape[2:]:
            raise ValueError(
                'x must hold tensors of one size for mode="cutmix", '
                f"got {tuple(leaves[0].shape[2:])} and {tuple(leaf.shape[2:])}"
            )
    return tuple(leaves[0].shape[2:])
