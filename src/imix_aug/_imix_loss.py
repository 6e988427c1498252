"""IMixLoss: a loss that somebody else wrote, applied to virtual labels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imix_aug import _check
from imix_aug._labels import VirtualLabels
from imix_aug._losses import reduce
from imix_aug._memory import Look


class IMixLoss(nn.Module):
    """Apply a loss that somebody else wrote to virtual labels.

    The loss of a mixed row is the criterion's against the row itself, times lambda, plus the criterion's against its
    partner, times one minus lambda (Lee et al., ICLR 2021, arXiv 2010.08887, equation 4).

    Args:
        criterion: ``on="pairs"``: takes two batches of one shape ``(N, ...)`` whose rows pair up, as the losses of
            lightly, solo-learn, info-nce-pytorch and pytorch-metric-learning's ``SelfSupervisedLoss`` do.
            ``on="logits"``: takes logits ``(N, N)`` and target columns ``(N,)``, as ``nn.CrossEntropyLoss`` does;
            column j belongs to row j. It may return ``(N,)``, or a scalar.
        on: "pairs" or "logits".
        extra_columns: with ``on="logits"``, the logits are ``(N, N + K)``: K more negatives after the columns of the
            rows. MoCo's own ``(N, 1 + K)``, positive first, has no column for a mixed row's partner.
        paired: names of further arguments ``(N, ...)`` that belong to the rows of b, such as classes, and are permuted
            as they are. What a criterion closes over is not: pass it as an argument and name it here.

    Call it with ``(a, b, labels)``, or ``(logits, labels)`` for logits; without labels it is the criterion itself.
    Further arguments go on to the criterion: by position after the labels, or by name.
    A criterion that returns a scalar has averaged its rows already, so it needs one lambda per batch
    (``IMix(per_sample=False)``). PyTorch's cross-entropy, unless classes are weighted or ignored, is asked for its rows
    instead, so any lambdas do, whatever its reduction.

    The criterion is called twice per step, so it must not be a memory bank: the second call would fill it again, and
    with this batch's positives among its negatives. What the second call changes is looked for in the criterion's
    modules, objects, closures, globals, partial arguments and containers: any buffer, and any tensor or NumPy array of
    more than one number; writes through ``.data`` in the first call only. Not seen: what is kept in numbers (a
    criterion that counts its calls counts two per step), in a class, further than two plain objects away, or outside
    Python; and nothing at all while ``torch.compile`` traces.

    Raises:
        TypeError: ``criterion`` is not callable or returns no tensor, or a wrong type is passed.
        ValueError: a wrong value, shape or device is passed; a scalar criterion meets several lambdas; or the
            criterion changes what it keeps (a memory bank). Such a loss is ``imix_nce_loss`` with ``negatives=``.

    Example:
        >>> import torch
        >>> from imix_aug import IMix, IMixLoss
        >>> criterion = IMixLoss(lambda a, b: (a - b).square().sum(dim=1))
        >>> x, labels = IMix()(torch.randn(8, 4))
        >>> criterion(x, torch.randn(8, 4), labels).shape
        torch.Size([8])

        Classes go with the rows of b, so that a mixed row is asked for its partner's class as well:

        >>> def same_class(a, b, classes):
        ...     return -((a @ b.T).log_softmax(dim=1) * (classes[:, None] == classes)).sum(dim=1)
        >>> criterion = IMixLoss(same_class, paired=("classes",))
        >>> criterion(x, torch.randn(8, 4), labels, classes=torch.randint(3, (8,))).shape
        torch.Size([8])
    """

    def __init__(
        self,
        criterion: Callable[..., Tensor],
        *,
        on: Literal["pairs", "logits"] = "pairs",
        extra_columns: bool = False,
        paired: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if not callable(criterion):
            raise TypeError(f"criterion must be callable, got {criterion!r}")
        self.on = _check.choice("on", on, ("pairs", "logits"))
        self.extra_columns = _check.flag("extra_columns", extra_columns)
        if self.extra_columns and self.on == "pairs":
            raise ValueError('extra_columns must be False unless on="logits"')
        self.paired = _check.names("paired", paired)
        self.criterion = criterion
        self._values_compared = False

    if TYPE_CHECKING:  # nn.Module's __call__ returns Any

        @overload
        def __call__(
            self, a: Tensor, b: Tensor, /, labels: VirtualLabels | None = None, *more: Any, **further: Any
        ) -> Tensor: ...

        @overload
        def __call__(
            self, logits: Tensor, /, labels: VirtualLabels | None = None, *more: Any, **further: Any
        ) -> Tensor: ...

        def __call__(self, *inputs: Any, **named: Any) -> Tensor: ...

    def forward(self, *inputs: Any, labels: VirtualLabels | None = None, **further: Any) -> Tensor:
        """Return the criterion's loss against the virtual labels: ``(N,)`` or a scalar, as the criterion does."""
        wanted = ("a", "b") if self.on == "pairs" else ("logits",)
        given = inputs
        more: tuple[Any, ...] = ()
        if len(inputs) > len(wanted) and labels is None:
            inputs, labels, more = inputs[: len(wanted)], inputs[len(wanted)], inputs[len(wanted) + 1 :]
        if len(inputs) != len(wanted) or any(isinstance(each, VirtualLabels) for each in more):
            kinds = ", ".join(type(each).__name__ for each in given)
            hint = ": virtual labels stand in place of targets" if self.on == "logits" and more else ""
            raise TypeError(f"expected ({', '.join(wanted)}, labels), got ({kinds}){hint}")
        if self.on == "pairs":
            first, second = _check.paired_batches(*inputs)
        else:
            first = self._logits(inputs[0])
            second = torch.arange(first.shape[0], device=first.device)
        n = first.shape[0]
        labels = _check.labels(labels, n, first.device)
        _check.paired(self.paired, further, n, first.device)
        if labels is None:
            return self.criterion(first, second, *more, **further)
        criterion: Any = self.criterion
        lam, partner = labels
        permuted = {name: further[name][partner] for name in self.paired if further[name] is not None}
        by_rows = None if more or further else _by_rows(criterion)
        if by_rows is not None:
            own, other = by_rows(first, second), by_rows(first, second[partner])
        else:
            own = criterion(first, second, *more, **further)
            before = self._look()
            other = criterion(first, second[partner], *more, **{**further, **permuted})
            self._refuse_memory(before)
        if not isinstance(own, Tensor):
            raise TypeError(f"criterion must return a tensor, got {type(own).__name__}")
        if own.dim() == 0:
            lam = _batch_lambda(lam)
        elif own.shape != lam.shape:
            raise ValueError(f"criterion must return a scalar or shape ({n},), got {tuple(own.shape)}")
        lam = lam.to(torch.promote_types(own.dtype, lam.dtype))
        losses = (lam * own + (1 - lam) * other).to(own.dtype)
        return losses if by_rows is None else reduce(losses, criterion.reduction)

    def _logits(self, value: object) -> Tensor:
        logits = _check.matrix("logits", value)
        n, columns = logits.shape
        if columns < n:
            raise ValueError(f"logits must have a column for each of its {n} rows, got shape ({n}, {columns})")
        if columns > n and not self.extra_columns:
            raise ValueError(
                f"logits must have shape ({n}, {n}), column j belonging to row j, got ({n}, {columns}). More negatives "
                "after these columns, (N, N + K), want IMixLoss(..., extra_columns=True). MoCo's own (N, 1 + K), "
                "positive first, has no column for a mixed row's partner: use imix_nce_loss(..., negatives=...), or "
                "line up the keys of the batch and then the queue"
            )
        return logits

    def _look(self) -> Look | None:
        if torch.compiler.is_compiling():  # which cannot trace it
            return None
        return Look(self.criterion, values=not self._values_compared)

    def _refuse_memory(self, before: Look | None) -> None:
        if before is None:
            return
        changed = before.first_difference(Look(self.criterion, values=not self._values_compared))
        if changed is not None:
            raise ValueError(
                "criterion must not change its own buffers (a memory bank), for it is called twice per step, and each "
                f"call changed {changed}: use imix_nce_loss(..., negatives=...) instead; what is only a record can "
                "be kept as plain numbers"
            )
        self._values_compared = self._values_compared or torch.is_grad_enabled()


def _by_rows(criterion: Any) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return a plain cross-entropy that gives its rows, or None for any other criterion."""
    is_plain = (
        type(criterion) in (nn.CrossEntropyLoss, nn.NLLLoss) and criterion.weight is None and criterion.ignore_index < 0
    )
    if not is_plain:
        return None
    if isinstance(criterion, nn.NLLLoss):
        return functools.partial(F.nll_loss, reduction="none")
    return functools.partial(F.cross_entropy, reduction="none", label_smoothing=criterion.label_smoothing)


def _batch_lambda(lam: Tensor) -> Tensor:
    """Return the one lambda of the batch; an expanded one, as IMix makes it, is known to be one without a look."""
    if lam.shape[0] == 1 or lam.stride(0) == 0:
        return lam[0]
    message = (
        "labels must hold one lambda for the batch where criterion returns a scalar: "
        "use IMix(per_sample=False), or a criterion that returns a loss per row (N,)"
    )
    alike = (lam == lam[0]).all()
    if torch.compiler.is_compiling():  # where nobody may look
        torch._assert_async(alike, message)  # pyright: ignore[reportPrivateImportUsage]
    elif not bool(alike):
        raise ValueError(message)
    return lam[0]
