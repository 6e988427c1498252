"""MoCo's queue of negatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from imix_aug import _check

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


class NegativeQueue(nn.Module):
    """The keys of the last batches, first in, first out (He et al., CVPR 2020, arXiv 1911.05722, section 3.2).

    Enqueue after the loss: the step's own keys are its positives, and they are negatives from the next step on.
    Before or after the backward pass is all the same to the losses of this package. An operation of your own that keeps
    the negatives for its backward pass raises PyTorch's "modified by an inplace operation" if you enqueue before it.

    Args:
        size: how many keys it holds at most.
        dim: their width D.

    Attributes:
        negatives: ``(filled, D)``, the keys that it holds, in no particular order; ``filled`` grows from 0 to ``size``.
            A view, valid until the next ``enqueue``.

    Its state is in ``state_dict``: ``keys`` ``(size, D)`` and ``seen``, how many keys came in. ``.to(...)`` moves it
    and sets its dtype. It is in no buffer, so that DDP does not overwrite it with rank 0's: each rank keeps its own
    keys, unless all are gathered (a checkpoint of rank 0 holds those of rank 0). A wrapper that moves buffers by
    itself, such as ``fully_shard``, leaves it where it is: call ``.to(device)``. A compiled step that reads and fills
    the queue takes two graphs, one while it is empty and one from then on. Capture a CUDA graph once it is full.

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
    seen: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.keys = torch.zeros(_check.count("size", size), _check.count("dim", dim))
        self._count(0)

    def _count(self, seen: int) -> None:
        self.seen = torch.tensor(seen, device=self.keys.device)  # Not an int: a captured step counts on.
        self._mark_filled(min(seen, self.keys.shape[0]))

    def _mark_filled(self, filled: int) -> None:
        # A length and not an int: torch.compile makes a graph of its own for each value of a module's int.
        self._filled = self.keys.new_empty(filled, 0)

    @property
    def negatives(self) -> Tensor:
        """The keys that the queue holds, ``(filled, D)``."""
        return self.keys[: self._filled.shape[0]]

    @torch.no_grad()
    def enqueue(
        self, keys: Tensor, *, gather_distributed: bool = False, process_group: ProcessGroup | DeviceMesh | None = None
    ) -> None:
        """Put keys in and push the oldest out.

        Args:
            keys: ``(N, D)`` for any N; of more than ``size`` keys the last ``size`` stay. No gradient is kept. Half
                precision (under autocast, say) is widened to the queue's dtype.
            gather_distributed: put in the keys of all ranks of ``process_group``, so that all ranks hold the same.
            process_group: a group or a mesh of one dimension; default the default group.
        """
        _check.queue_rows(keys, self.keys)
        keys = keys.to(self.keys.dtype)
        group = _check.process_group(gather_distributed, process_group)
        if gather_distributed:
            from imix_aug._keys.ranks import gather_rows

            keys = gather_rows(keys, group)
        n, size = keys.shape[0], self.keys.shape[0]
        stay = min(n, size)
        places = (self.seen + torch.arange(n - stay, n, device=self.seen.device)) % size
        self.keys[places] = keys[n - stay :]
        self.seen += n
        self._mark_filled(min(size, self._filled.shape[0] + n))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NegativeQueue:
        """Let ``.to(...)`` and its like reach the state, as they reach buffers."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        size, filled = self.keys.shape[0], self._filled.shape[0]
        self.keys = fn(self.keys)
        if filled < size:  # The count is known without a look, and right again after ``to_empty``.
            self._count(filled)
        else:
            self.seen = fn(self.seen).long()
            self._mark_filled(filled)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + "keys": self.keys, prefix + "seen": self.seen})

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = {name: state_dict.get(prefix + name) for name in ("keys", "seen")}
        rest = {name: value for name, value in state_dict.items() if name.removeprefix(prefix) not in own}
        if f"{prefix}_extra_state" in rest:
            error_msgs.append(
                f'"{prefix}_extra_state" is of an older NegativeQueue: leave its entries out to start empty'
            )
            return
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        keys, seen = own.values()
        if keys is None or seen is None:
            missing_keys.extend(prefix + name for name, value in own.items() if value is None)
        elif keys.shape != self.keys.shape:
            error_msgs.append(
                f'size mismatch: "{prefix}keys" must be {tuple(self.keys.shape)}, (size, dim), got {tuple(keys.shape)}'
            )
        else:
            with torch.no_grad():
                self.keys = keys if local_metadata.get("assign_to_params_buffers") else self.keys.copy_(keys)
            self._count(int(seen))

    def extra_repr(self) -> str:
        """Return size, width and fill, for ``repr``."""
        size, dim = self.keys.shape
        return f"size={size}, dim={dim}, filled={self._filled.shape[0]}"
