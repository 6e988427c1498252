"""One loss with its gradients in a process of its own; prints its peak memory in megabytes."""

import resource
import sys
from pathlib import Path

import torch

from benchmarks import contestants
from benchmarks.arguments import ARGUMENTS


def main(name: str, n: str, d: str, device: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    batch = contestants.Batch.draw(int(n), 0, int(d), torch.float32, torch.device(device))
    loss = {"imix-aug": contestants.imix_aug, "formula": contestants.formula, **ARGUMENTS}[name]
    loss(batch).backward()
    print(torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else _peak_resident())


def _peak_resident() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # The resource module would report the parent's peak where that was higher.
        (line,) = (line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / 1e6 if sys.platform == "darwin" else kilobytes * 1024 / 1e6


if __name__ == "__main__":
    main(*sys.argv[1:])
