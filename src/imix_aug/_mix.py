"""Mixing a batch with itself: IMix, which keeps virtual labels, and InputMix, which does not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from imix_aug import _check
from imix_aug._labels import VirtualLabels, unchecked
from imix_aug._mixing import draw, generators, leaves
from imix_aug._mixing.operators import blend, paste
from imix_aug._types import Number

Batch = TypeVar("Batch")
Keys = str | int | tuple[str | int, ...]


class _Mix(nn.Module):
    """What both mixes share: the generator, and which leaves of a batch are mixed."""

    def __init__(self, generator: torch.Generator | None, only: Keys | None, skip: Keys | None) -> None:
        super().__init__()
        self.generator = _check.generator(generator)
        self.only, self.skip = _check.keys("only", only), _check.keys("skip", skip)
        if self.only is not None and self.skip is not None:
            raise ValueError(f"skip must be None beside only={self.only!r}, got {self.skip!r}")
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self.generator is not None:
            state["generator"] = generators.packed(self.generator)
        return state

    def _chosen(self, x: Any, flat: list[Any]) -> list[bool]:
        """Tell for each leaf whether to mix it."""
        if self.only is None and self.skip is None:
            return [True] * len(flat)
        return leaves.chosen(x, self.only, self.skip)

    def _ready_generator(self) -> torch.Generator | None:
        if self.generator is None:
            return None
        if self._process != os.getpid():  # A copy in another process: the parent and its other copies draw alike.
            self._process = os.getpid()
            generators.reseed_in_worker(self.generator)
        return generators.ready(self.generator)


class IMix(_Mix):
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
            exact share that is left. The authors' code gives a box an even side, twice the rounded half; here a side
            may be odd.
        per_sample: draw a lambda (and a box) for each row, or one for the batch. By default mixup draws one per row,
            cutmix one per batch.
        dims: the dimensions that cutmix cuts; default those after the second. ``(1,)`` for series ``(N, T, C)``,
            ``(1, 2)`` for pictures ``(N, H, W, C)``, ``(2, 3, 4)`` for volumes. Negative ones count from the end.
        generator: where to draw from, on the input's device; default PyTorch's own. The same generator state gives
            the same draw. Inside a checkpointed part (``torch.utils.checkpoint``) the recomputation draws again what
            was drawn; one number of PyTorch's own generator tells it what that was. A loader's worker, which gets a
            copy of the generator, draws from that state and its own seed: each worker differently, and differently
            in each epoch.
        only: mix what these keys of the batch hold (of a dict, fields of a named tuple, places of a list), and leave
            the rest as it is, whatever it may be.
        skip: leave what these keys hold as it is, and mix the rest.

    The input is a floating-point tensor ``(N, ...)`` of finite values (for cutmix of any dtype), or a dict, list, tuple
    or named tuple of tensors that share N: all leaves get the same partners and lambdas. The result is
    ``(mixed, labels)``, ``mixed`` with the shapes, dtypes and memory formats of the input, ``labels`` a
    ``VirtualLabels``. Gradients flow into the input. With ``alpha=0``, and after ``eval()``, it is the input itself
    and identity labels.

    A NaN that stands for a missing value makes the partner's value missing too. Fill it first
    (``torch.nan_to_num``), and where the network wants to know what was missing, blend the mask alike:
    ``labels.mix(mask.float())``.

    ``torch.func`` (``grad``, ``jvp``, and ``vmap`` with ``randomness="same"`` or ``"different"``), forward-mode
    differentiation, ``make_fx`` and ``torch.export`` go through it.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape, device or value; the message names the argument, and the
            leaf of a batch.
        RuntimeError: a recomputation does not find the draw that it should repeat.

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
        >>> batch["name"] = ["a", "b", "c", "d"]
        >>> mixed, labels = IMix(skip="name")(batch)
        >>> mixed["name"]
        ['a', 'b', 'c', 'd']
        >>> series = torch.rand(4, 100, 6)  # (N, T, C)
        >>> mixed, labels = IMix(mode="cutmix", dims=(1,))(series)
    """

    def __init__(
        self,
        alpha: Number | tuple[Number, Number] = 1.0,
        mode: Literal["mixup", "cutmix"] = "mixup",
        *,
        per_sample: bool | None = None,
        dims: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        only: Keys | None = None,
        skip: Keys | None = None,
    ) -> None:
        super().__init__(generator, only, skip)
        self.alpha = _check.alpha(alpha)
        self.mode = _check.choice("mode", mode, ("mixup", "cutmix"))
        self.per_sample = mode == "mixup" if per_sample is None else _check.flag("per_sample", per_sample)
        self.dims = _check.dims(dims)
        if self.dims is not None and self.mode == "mixup":
            raise ValueError(f'dims must be None unless mode="cutmix", got {dims!r}')

    if TYPE_CHECKING:  # nn.Module's __call__ returns Any

        def __call__(self, x: Batch) -> tuple[Batch, VirtualLabels]: ...

    def forward(self, x: Batch) -> tuple[Batch, VirtualLabels]:
        """Return the mixed input and its virtual labels."""
        flat, spec = leaves.flatten(x)
        chosen = self._chosen(x, flat)
        parts = leaves.tensors(x, flat, chosen)
        n, device = parts[0].shape[0], parts[0].device
        if self.mode == "cutmix":
            sizes, axes = leaves.grid(x, flat, self.dims, chosen)
        else:
            sizes, axes = (), []
            leaves.continuous(x, flat, chosen)
        if not self.training or self.alpha == (0.0, 0.0):
            return x, VirtualLabels.identity(n, device)
        generator = self._ready_generator()
        partner = draw.partners(n, device, generator)
        lam = draw.shares(self.alpha, n if self.per_sample else 1, device, generator)
        if self.mode == "cutmix":
            bounds, lam = draw.boxes(lam, sizes, generator)
            mixed = [paste(part, partner, bounds, dims) for part, dims in zip(parts, axes, strict=True)]
        else:
            mixed = [blend(part, partner, lam) for part in parts]
        return _rebuild(flat, chosen, mixed, spec), unchecked(lam.expand(n), partner)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        a, b = self.alpha
        given = {"dims": self.dims, "only": self.only, "skip": self.skip}
        settings = [f"alpha={a if a == b else (a, b)}, mode={self.mode!r}, per_sample={self.per_sample}"]
        return ", ".join(settings + [f"{name}={value!r}" for name, value in given.items() if value is not None])


class InputMix(_Mix):
    """Mix each sample with a few others and leave its label alone.

    For inputs that have few augmentations of their own; a row keeps at least ``min_weight`` and so its identity (Lee et
    al., ICLR 2021, arXiv 2010.08887, "InputMix").

    - With one other row, the row's own weight is ``max(b, 1 - b)`` with ``b ~ Beta(alpha, alpha)``, as in the authors'
      code. That runs from 1/2 to 1; another ``min_weight`` stretches it to ``min_weight`` to 1.
    - With more, the weights come from a Dirichlet distribution, and are then scaled to leave the row ``min_weight``.

    Args:
        num_aux: how many other rows are mixed in; distinct ones, as far as the batch has them.
        alpha: Beta's or Dirichlet's parameter; 1 draws the weights uniformly.
        min_weight: the least weight of the row itself, 0 to 1.
        generator: where to draw from, as for ``IMix``.
        only, skip: keys of the batch to mix alone, or to leave as they are, as for ``IMix``.

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
        only: Keys | None = None,
        skip: Keys | None = None,
    ) -> None:
        super().__init__(generator, only, skip)
        self.num_aux = _check.count("num_aux", num_aux)
        self.alpha = _check.positive("alpha", alpha)
        self.min_weight = _check.fraction("min_weight", min_weight)

    if TYPE_CHECKING:  # nn.Module's __call__ returns Any

        def __call__(self, x: Batch) -> Batch: ...

    def forward(self, x: Batch) -> Batch:
        """Return the mixed input."""
        flat, spec = leaves.flatten(x)
        chosen = self._chosen(x, flat)
        parts = leaves.tensors(x, flat, chosen)
        leaves.continuous(x, flat, chosen)
        if not self.training:
            return x
        n, device = parts[0].shape[0], parts[0].device
        generator = self._ready_generator()
        weights = draw.input_weights(self.alpha, n, self.num_aux, self.min_weight, device, generator)
        # The rows stand on a random circle, and each takes those that follow it: all different, none itself.
        circle = draw.partners(n, device, generator)
        others = [
            torch.empty_like(circle).scatter(0, circle, circle.roll(-step)) for step in range(1, self.num_aux + 1)
        ]
        return _rebuild(flat, chosen, [_combine(part, others, weights) for part in parts], spec)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        given = {"only": self.only, "skip": self.skip}
        settings = [f"num_aux={self.num_aux}, alpha={self.alpha}, min_weight={self.min_weight}"]
        return ", ".join(settings + [f"{name}={value!r}" for name, value in given.items() if value is not None])


def _combine(x: Tensor, others: list[Tensor], weights: Tensor) -> Tensor:
    """Return the weighted sum of each row, whose weight comes first, and its other rows."""
    rows = x.to(torch.promote_types(x.dtype, torch.float32))
    own, *rest = (_column(weight, x) for weight in weights.unbind(1))
    mixed = rows * own
    for other, weight in zip(others, rest, strict=True):
        mixed = torch.addcmul(mixed, rows[other], weight)
    return mixed.to(x.dtype)


def _column(values: Tensor, x: Tensor) -> Tensor:
    """Shape one value per row so that it multiplies x."""
    return values.view(-1, *(1 for _ in x.shape[1:]))


def _rebuild(flat: list[Any], chosen: list[bool], mixed: list[Tensor], spec: pytree.TreeSpec) -> Any:
    """Put the batch together again, with the leaves that were not chosen as they were."""
    rest = iter(mixed)
    parts = [next(rest) if is_mixed else leaf for leaf, is_mixed in zip(flat, chosen, strict=True)]
    return pytree.tree_unflatten(parts, spec)
