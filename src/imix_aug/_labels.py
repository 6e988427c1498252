"""Virtual labels: which two classes a mixed row belongs to, and in what shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from imix_aug._mixing import leaves
from imix_aug._mixing.operators import blend_rows
from imix_aug._values import FLOATS, readable, unusual

Batch = TypeVar("Batch")


class VirtualLabels(NamedTuple):
    """The soft labels of a mixed batch in which every sample is a class of its own.

    The label of row i is ``lam_i * e_i + (1 - lam_i) * e_partner(i)``, e_j being the j-th unit vector (Lee et al.,
    ICLR 2021, arXiv 2010.08887, equation 4). Two vectors stand for the N x N matrix. A named tuple, and so a pytree: it
    passes through ``torch.compile``, DDP and collate functions, and unpacks as ``lam, partner``.

    Attributes:
        lam: ``(N,)`` float32, each row's own share, 1/2 to 1 as ``IMix`` draws it, 0 to 1 in general.
        partner: ``(N,)`` int64, the row that each row was mixed with, 0 to N - 1.

    Shapes, dtypes and devices are checked when labels are made, and values too where they are on the CPU. Collate
    functions may stack labels, and ``tree_map`` may put anything in place of the tensors: such labels are refused where
    they are used.

    A file that holds labels is loaded with ``weights_only=True`` after
    ``torch.serialization.add_safe_globals([VirtualLabels])``.

    Raises:
        TypeError: ``lam`` is not floating-point or ``partner`` not int64.
        ValueError: the two differ in shape or device, a lambda is outside of 0 to 1, or a partner is no row.

    Example:
        >>> import torch
        >>> labels = VirtualLabels(torch.tensor([1.0, 0.75]), torch.tensor([1, 0]))
        >>> labels.dense()
        tensor([[1.0000, 0.0000],
                [0.2500, 0.7500]])
        >>> lam, partner = labels
    """

    lam: Tensor
    partner: Tensor

    def dense(self, num_classes: int | None = None) -> Tensor:
        """Return the labels as a matrix.

        Args:
            num_classes: number of columns, default N; columns from N on (MoCo's negatives, say) are zero.

        Returns:
            ``(N, num_classes)``, in the dtype of ``lam``; every row sums to one.

        Raises:
            ValueError: ``num_classes`` is less than N.
        """
        n = _check_use(self)
        if num_classes is None:
            num_classes = n
        elif num_classes < n:
            raise ValueError(f"num_classes must be at least the number of rows, {n}, got {num_classes}")
        zeros = self.lam.new_zeros(n, num_classes)
        own = torch.arange(n, device=self.partner.device)
        columns = torch.stack([own, self.partner], dim=1)
        return zeros.scatter_add(1, columns, torch.stack([self.lam, 1 - self.lam], dim=1))

    def mix(self, x: Batch) -> Batch:
        """Blend what comes along with the mixed input by the same lambdas and partners.

        For soft targets, masks, a second modality or whatever else shares the rows: row i becomes
        ``lam_i * x_i + (1 - lam_i) * x_partner(i)``, computed in float32 at least. Gradients flow into ``x``, and into
        ``lam`` where it needs one. After cutmix this is right for targets; put a mask or a second picture, which
        should be cut along the same box, into the batch that ``IMix`` is given.

        Args:
            x: a floating-point tensor ``(N, ...)`` on the labels' device, or a dict, list, tuple or named tuple
                of them.

        Returns:
            The mixture, with the structure, shapes and dtypes of ``x``.

        Raises:
            TypeError, ValueError: a tensor is missing, of another dtype, length or device; the message names it.

        Example:
            >>> labels = VirtualLabels(torch.tensor([1.0, 0.75]), torch.tensor([1, 0]))
            >>> labels.mix(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
            tensor([[1.0000, 0.0000],
                    [0.2500, 0.7500]])
        """
        n = _check_use(self)
        flat, spec = leaves.flatten(x)
        parts = leaves.tensors(x, flat)
        leaves.continuous(x, flat)
        if parts[0].shape[0] != n:
            raise ValueError(f"x must have a row for each of the {n} labels, got shape {tuple(parts[0].shape)}")
        if parts[0].device != self.lam.device:
            raise ValueError(f"x must be on the labels' device, {self.lam.device}, got {parts[0].device}")
        mixed = [blend_rows(part, self.partner, self.lam, 1 - self.lam) for part in parts]
        return pytree.tree_unflatten(mixed, spec)

    @classmethod
    def cat(cls, parts: Sequence[VirtualLabels]) -> VirtualLabels:
        """Join the labels of micro-batches whose rows are joined in the same order.

        Each part's partners are moved by the number of rows before it, so that they are the rows of the joined batch.

        Raises:
            TypeError, ValueError: no parts, a part that is no ``VirtualLabels``, or parts on several devices.

        Example:
            >>> halves = [VirtualLabels.identity(2), VirtualLabels(torch.tensor([0.5, 0.75]), torch.tensor([1, 0]))]
            >>> VirtualLabels.cat(halves).partner
            tensor([0, 1, 3, 2])
        """
        if not isinstance(parts, list | tuple) or isinstance(parts, VirtualLabels):
            raise TypeError(f"parts must be a list or tuple of VirtualLabels, got {type(parts).__name__}")
        if not parts:
            raise ValueError("parts must hold at least one VirtualLabels, got none")
        before, moved = 0, []
        for index, part in enumerate(parts):
            if not isinstance(part, VirtualLabels):
                raise TypeError(f"parts[{index}] must be VirtualLabels, got {type(part).__name__}")
            n = _check_use(part)
            if part.lam.device != parts[0].lam.device:
                raise ValueError(
                    f"parts must be on one device, got {parts[0].lam.device} and, in parts[{index}], {part.lam.device}"
                )
            moved.append(part.partner + before)
            before += n
        return unchecked(torch.cat([part.lam for part in parts]), torch.cat(moved))

    @classmethod
    def identity(cls, n: int, device: torch.device | str | None = None) -> VirtualLabels:
        """Return the labels of ``n`` unmixed rows: ``lam`` is 1 and every row its own partner.

        Example:
            >>> VirtualLabels.identity(2).dense()
            tensor([[1., 0.],
                    [0., 1.]])
        """
        return unchecked(torch.ones(n, dtype=torch.float32, device=device), torch.arange(n, device=device))

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> VirtualLabels:
        """Return the labels on ``device``; dtypes stay as they are.

        Raises:
            TypeError: ``device`` is no device (a dtype, say).
        """
        if not isinstance(device, torch.device | str | int):
            raise TypeError(f"device must be a torch.device, str or int, got {device!r}")
        return unchecked(*(leaf.to(device=device, non_blocking=non_blocking) for leaf in self))


def unchecked(lam: Tensor, partner: Tensor) -> VirtualLabels:
    """Make labels of tensors that are known to be right."""
    if torch.compiler.is_compiling():  # Dynamo inlines no _make up to torch 2.4.
        return VirtualLabels(lam, partner)
    return VirtualLabels._make((lam, partner))


_new = VirtualLabels.__new__


def _checked_new(cls: type[VirtualLabels], lam: Tensor, partner: Tensor) -> VirtualLabels:
    # A named tuple is rebuilt by its constructor: by tree_map, which may bring anything, and by collate functions,
    # which stack. So what is no tensor, or has another number of dimensions, is left to the use of the labels.
    if isinstance(lam, Tensor) and isinstance(partner, Tensor):
        _check_tensors(lam, partner)
    return _new(cls, lam, partner)


# Python lets no NamedTuple define __new__, and torch.compile takes no subclass of one that does.
VirtualLabels.__new__ = _checked_new  # type: ignore[assignment, method-assign]


def _check_tensors(lam: Tensor, partner: Tensor) -> None:
    for name, leaf in (("lam", lam), ("partner", partner)):
        if (kind := unusual(leaf)) is not None:
            raise TypeError(f"{name} must be a dense tensor (N,), got a {kind} one")
    if lam.dtype not in FLOATS:
        raise TypeError(f"lam must be floating-point, of 16 bits at least, got {lam.dtype}")
    if partner.dtype != torch.int64:
        raise TypeError(f"partner must be int64, got {partner.dtype}")
    if lam.shape != partner.shape:
        raise ValueError(f"lam and partner must have one shape (N,), got {tuple(lam.shape)} and {tuple(partner.shape)}")
    if lam.device != partner.device:
        raise ValueError(f"lam and partner must be on one device, got {lam.device} and {partner.device}")
    if lam.numel() == 0 or not readable(lam, partner):
        return
    if not bool(((lam >= 0) & (lam <= 1)).all()):
        raise ValueError(f"lam must be between 0 and 1, got {_first(lam, ~((lam >= 0) & (lam <= 1)))}")
    rows = partner.shape[-1] if partner.dim() else None
    wrong = (partner < 0) if rows is None else (partner < 0) | (partner >= rows)
    if bool(wrong.any()):
        raise ValueError(
            f"partner must be a row, 0 to {'N - 1' if rows is None else rows - 1}, got {_first(partner, wrong)}"
        )


def _first(values: Tensor, wrong: Tensor) -> Any:
    return values.detach()[wrong].flatten()[0].item()


def _check_use(labels: VirtualLabels) -> int:
    """Refuse labels that were rebuilt into something else, and return the number of rows."""
    for name, leaf in zip(("lam", "partner"), labels, strict=True):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"{name} must be a tensor (N,), got {type(leaf).__name__}")
        if leaf.dim() != 1:
            raise ValueError(f"{name} must have shape (N,), got {tuple(leaf.shape)}")
    _check_tensors(labels.lam, labels.partner)
    return labels.lam.shape[0]


# What torch.export.save writes in place of the class.
pytree._register_namedtuple(VirtualLabels, serialized_type_name="imix_aug.VirtualLabels")
