"""MoCo's queue of negatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from imix_aug import _check
from imix_aug._keys.keys import gather_rows


class NegativeQueue(nn.Module):
    """The keys of the last batches, first in, first out (He et al., CVPR 2020, arXiv 1911.05722, section 3.2).

    Enqueue after the backward pass, or at least after the loss: the step's own keys are its positives, and a loss that
    keeps the negatives for its backward pass must find them as they were.

    Args:
        size: how many keys it holds at most.
        dim: their width D.

    Attributes:
        negatives: ``(filled, D)``, the keys that it holds, in no particular order; ``filled`` grows from 0 to ``size``.
            A view, valid until the next ``enqueue``.

    Its state is in ``state_dict``; ``.to(...)`` moves it and sets its dtype.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape, device or value; the message names the argument.

    Example:
        >>> import torch
        >>> queue = NegativeQueue(size=6, dim=2)
        >>> queue.enqueue(torch.randn(4, 2))
        >>> queue.negatives.shape
        torch.Size([4, 2])
        >>> queue.enqueue(torch.randn(4, 2))
        >>> queue.negatives.shape
        torch.Size([6, 2])
    """

    keys: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(_check.count("size", size), _check.count("dim", dim)))
        self._filled = 0
        self._position = 0

    @property
    def negatives(self) -> Tensor:
        """The keys that the queue holds, ``(filled, D)``."""
        return self.keys[: self._filled]

    @torch.no_grad()
    def enqueue(
        self, keys: Tensor, *, gather_distributed: bool = False, process_group: ProcessGroup | None = None
    ) -> None:
        """Put keys in and push the oldest out.

        Args:
            keys: ``(N, D)`` for any N; of more than ``size`` keys the last ``size`` stay. No gradient is kept. Half
                precision (under autocast, say) is widened to the queue's dtype.
            gather_distributed: put in the keys of all ranks of ``process_group``, so that all ranks hold the same.
            process_group: default the default group.
        """
        if isinstance(keys, Tensor) and keys.is_floating_point() and keys.element_size() < self.keys.element_size():
            keys = keys.to(self.keys.dtype)
        _check.rows("keys", keys, self.keys, "the queue")
        if _check.process_group(gather_distributed, process_group):
            keys = gather_rows(keys, process_group)
        size = self.keys.shape[0]
        skipped = max(0, keys.shape[0] - size)
        start = (self._position + skipped) % size
        newest = keys[skipped:]
        until_wrap = size - start
        self.keys[start : start + newest.shape[0]] = newest[:until_wrap]
        self.keys[: max(0, newest.shape[0] - until_wrap)] = newest[until_wrap:]
        self._position = (start + newest.shape[0]) % size
        self._filled = min(size, self._filled + keys.shape[0])

    def get_extra_state(self) -> dict[str, int]:
        """Return what ``state_dict`` holds beside the keys."""
        return {"filled": self._filled, "position": self._position}

    def set_extra_state(self, state: Any) -> None:
        """Take over what ``get_extra_state`` returned."""
        self._filled, self._position = state["filled"], state["position"]

    def extra_repr(self) -> str:
        """Return size, width and fill, for ``repr``."""
        size, dim = self.keys.shape
        return f"size={size}, dim={dim}, filled={self._filled}"
