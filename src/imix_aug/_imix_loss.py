"""IMixLoss: a loss that somebody else wrote, against virtual labels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imix_aug import _check
from imix_aug._labels import VirtualLabels
from imix_aug._losses import reduce


class IMixLoss(nn.Module):
    """Take a loss that somebody else wrote against virtual labels.

    The loss of a mixed row is the criterion's against the row itself, times lambda, plus the criterion's against its
    partner, times one minus lambda (Lee et al., ICLR 2021, arXiv 2010.08887, equation 4).

    Args:
        criterion: ``on="pairs"``: takes two batches ``(N, D)`` whose rows pair up, as the losses of lightly,
            solo-learn, info-nce-pytorch and pytorch-metric-learning's ``SelfSupervisedLoss`` do.
            ``on="logits"``: takes logits ``(N, M)`` and target columns ``(N,)``, as ``nn.CrossEntropyLoss`` does;
            column j belongs to row j. It may return ``(N,)``, or a scalar.
        on: "pairs" or "logits".

    Call it with ``(a, b, labels)``, or ``(logits, labels)`` for logits; without labels it is the criterion itself.
    A criterion that returns a scalar has mixed its rows up already, so it needs one lambda for the batch
    (``IMix(per_sample=False)``). PyTorch's cross-entropy, unless classes are weighted or ignored, is asked for its rows
    instead, so any lambdas do, whatever its reduction.

    Raises:
        TypeError: ``criterion`` is not callable, or a wrong type is passed.
        ValueError: a wrong value, shape or device is passed; a scalar criterion meets several lambdas; or the
            criterion changes its own buffers (a memory bank), which the second call would do again. Such a loss is
            ``imix_nce_loss`` with ``negatives=``.

    Example:
        >>> import torch
        >>> from imix_aug import IMix, IMixLoss
        >>> criterion = IMixLoss(lambda a, b: (a - b).square().sum(dim=1))
        >>> x, labels = IMix()(torch.randn(8, 4))
        >>> criterion(x, torch.randn(8, 4), labels).shape
        torch.Size([8])
    """

    def __init__(self, criterion: Callable[[Tensor, Tensor], Tensor], *, on: str = "pairs") -> None:
        super().__init__()
        if not callable(criterion):
            raise TypeError(f"criterion must be callable, got {criterion!r}")
        self.on = _check.choice("on", on, ("pairs", "logits"))
        self.criterion = criterion

    if TYPE_CHECKING:  # nn.Module's __call__ returns Any

        @overload
        def __call__(self, a: Tensor, b: Tensor, /, labels: VirtualLabels | None = None) -> Tensor: ...

        @overload
        def __call__(self, logits: Tensor, /, labels: VirtualLabels | None = None) -> Tensor: ...

        def __call__(self, *inputs: Any, **named: Any) -> Tensor: ...

    def forward(self, *inputs: Any, labels: VirtualLabels | None = None) -> Tensor:
        """Return the criterion's loss against the virtual labels: ``(N,)`` or a scalar, as the criterion does."""
        wanted = ("a", "b") if self.on == "pairs" else ("logits",)
        if len(inputs) == len(wanted) + 1 and labels is None:
            inputs, labels = inputs[:-1], inputs[-1]
        if len(inputs) != len(wanted):
            raise TypeError(f"expected ({', '.join(wanted)}, labels), got {len(inputs)} inputs and labels={labels!r}")
        first = _check.rows(wanted[0], inputs[0])
        n = first.shape[0]
        if self.on == "pairs":
            second = _check.paired_rows("b", inputs[1], first, "a")
        elif first.shape[1] < n:
            raise ValueError(f"logits must have a column for each of its {n} rows, got shape {tuple(first.shape)}")
        else:
            second = torch.arange(n, device=first.device)
        labels = _check.labels(labels, n, first.device)
        if labels is None:
            return self.criterion(first, second)
        criterion, reduction = _by_rows(self.criterion)
        before = _kept_tensors(self.criterion)
        own = criterion(first, second)
        if not _unchanged(before, _kept_tensors(self.criterion)):
            raise ValueError(
                "criterion must not change its own buffers (a memory bank), for it is called twice a step: "
                "use imix_nce_loss(..., negatives=...) instead"
            )
        other = criterion(first, second[labels.partner])
        lam = labels.lam.to(own.dtype)
        if own.dim() == 0:
            lam = _batch_lambda(lam)
        elif own.shape != lam.shape:
            raise ValueError(f"criterion must return a scalar or shape ({n},), got {tuple(own.shape)}")
        return reduce(lam * own + (1 - lam) * other, reduction)


def _by_rows(criterion: Any) -> tuple[Any, str]:
    """Ask a plain cross-entropy for its rows; return it with the reduction that is left to do."""
    is_plain = (
        type(criterion) in (nn.CrossEntropyLoss, nn.NLLLoss) and criterion.weight is None and criterion.ignore_index < 0
    )
    if not is_plain:
        return criterion, "none"
    if isinstance(criterion, nn.NLLLoss):
        return functools.partial(F.nll_loss, reduction="none"), criterion.reduction
    by_rows = functools.partial(F.cross_entropy, reduction="none", label_smoothing=criterion.label_smoothing)
    return by_rows, criterion.reduction


def _kept_tensors(criterion: Any) -> list[tuple[Tensor, int]]:
    """Return every buffer, and every tensor that a module keeps without registering it, with its version."""
    owner = criterion if isinstance(criterion, nn.Module) else getattr(criterion, "__self__", None)
    modules = owner.modules() if isinstance(owner, nn.Module) else ()
    kept = (value for module in modules for value in (*module._buffers.values(), *vars(module).values()))
    return [(value, value._version) for value in kept if isinstance(value, Tensor)]


def _unchanged(before: list[tuple[Tensor, int]], after: list[tuple[Tensor, int]]) -> bool:
    return len(before) == len(after) and all(
        old is new and version == new_version for (old, version), (new, new_version) in zip(before, after, strict=True)
    )


def _batch_lambda(lam: Tensor) -> Tensor:
    """Return the one lambda of the batch; an expanded one, as IMix makes it, is known to be one without a look."""
    if lam.stride(0) != 0 and not bool((lam == lam[0]).all()):
        raise ValueError(
            "labels must hold one lambda for the batch where criterion returns a scalar: "
            "use IMix(per_sample=False), or a criterion that returns a loss a row (N,)"
        )
    return lam[0]
