"""The device that ``--device`` names."""

from __future__ import annotations

import torch

from runner.errors import Refused


def pick_device(name: str) -> torch.device:
    """Turn ``auto`` into the accelerator that is there, and refuse one that is not."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise Refused(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device
