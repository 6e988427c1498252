"""The keys that queries are contrasted with: this process's own, or those of all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from imix_aug._keys.keys import Keys, OwnKeys

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def choose_keys(
    key: Tensor, gather_distributed: bool, process_group: ProcessGroup | None, travelling: tuple[bool, ...] = ()
) -> Keys:
    """Return what queries are to be contrasted with: this process's keys, or those of all ranks.

    ``travelling`` says what else ranks exchange (``ranks.TRAVELLING``), which all of them must do alike.
    """
    if not gather_distributed:
        return OwnKeys(key)
    from imix_aug._keys import ranks

    return ranks.keys_of_all(key, process_group, travelling)
