"""Virtual labels: which two classes a mixed row belongs to, and in what shares."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class VirtualLabels(NamedTuple):
    """The soft labels of a mixed batch in which every sample is a class of its own.

    The label of row i is ``lam_i * e_i + (1 - lam_i) * e_partner(i)``, e_j being the j-th unit vector (Lee et al.,
    ICLR 2021, arXiv 2010.08887, equation 4). Two vectors stand for the N x N matrix. A named tuple, and so a pytree: it
    passes through ``torch.compile``, DDP and collate functions, and unpacks as ``lam, partner``.

    Attributes:
        lam: ``(N,)`` float32, each row's own share, 1/2 to 1.
        partner: ``(N,)`` int64, the row that each row was mixed with.

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
        n = self.lam.shape[0]
        if num_classes is None:
            num_classes = n
        elif num_classes < n:
            raise ValueError(f"num_classes must be at least the number of rows, {n}, got {num_classes}")
        rows = self.lam.new_zeros(n, num_classes)
        own = torch.arange(n, device=self.partner.device)
        columns = torch.stack([own, self.partner], dim=1)
        return rows.scatter_add(1, columns, torch.stack([self.lam, 1 - self.lam], dim=1))

    @classmethod
    def identity(cls, n: int, device: torch.device | str | None = None) -> VirtualLabels:
        """Return the labels of ``n`` unmixed rows: ``lam`` is 1 and every row its own partner.

        Example:
            >>> VirtualLabels.identity(2).dense()
            tensor([[1., 0.],
                    [0., 1.]])
        """
        return cls(torch.ones(n, device=device), torch.arange(n, device=device))

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> VirtualLabels:
        """Return the labels on ``device``; dtypes stay as they are.

        Raises:
            TypeError: ``device`` is no device (a dtype, say).
        """
        if not isinstance(device, torch.device | str | int):
            raise TypeError(f"device must be a torch.device, str or int, got {device!r}")
        moved = (leaf.to(device=device, non_blocking=non_blocking) for leaf in self)
        return VirtualLabels(*moved)
