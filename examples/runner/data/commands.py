"""The paper's twelve classes of Speech Commands: ten commands, every other word, and silence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from runner.errors import Refused

COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
TWELVE = ["unknown", "silence", *COMMANDS]
UNKNOWN, SILENCE = 0, 1


def to_twelve(folder: str, words: Sequence[str]) -> Tensor:
    """The class of each word, (words,)."""
    if missing := [word for word in COMMANDS if word not in words]:
        raise Refused(f"{folder}: --words twelve wants Speech Commands, and there is no word {missing[0]!r} in it")
    return torch.tensor([TWELVE.index(word) if word in COMMANDS else UNKNOWN for word in words])


def with_silence(clips: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Append clips of nothing but zeros, a tenth as many as there are clips."""
    silent = len(clips) // 10
    return torch.cat([clips, clips.new_zeros(silent, clips.shape[1])]), torch.cat(
        [classes, classes.new_full((silent,), SILENCE)]
    )
