"""How much memory there is to put data in."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def free_memory() -> float:
    """Bytes that this process could still take, by the machine and by its container."""
    free = float("inf")
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text(encoding="utf-8") for name in ("memory.max", "memory.current"))
        free = min(free, int(limit) - int(used))
    except (OSError, ValueError):  # no container, or one without a limit
        pass
    return free


def fits(size: int, device: torch.device) -> bool:
    """Whether data of so many bytes leave half of what is free on the device."""
    if device.type == "cuda":
        return size <= torch.cuda.mem_get_info(device)[0] / 2
    return device.type != "cpu" or size <= free_memory() / 2
