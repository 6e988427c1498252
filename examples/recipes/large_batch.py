"""A large batch through a small card: the loss of the whole batch, the activations of one chunk at a time.

    python examples/recipes/large_batch.py              # peak memory of a step, whole and in chunks

A contrastive loss needs all embeddings of a batch at once, but not all activations behind them. So each chunk is
encoded and its activations are dropped; they are computed again, chunk by chunk, on the way back. Loss and gradients
are those of the whole batch (as by the cache of gradients of Gao et al., 2021, arXiv 2101.06983), for one more forward
pass.

Dropout draws the same masks again (`preserve_rng_state`). Batch normalisation takes the statistics of a chunk and moves
its running averages twice per step: use another normalisation, or large chunks.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from imix_aug import IMix, NegativeQueue, imix_nce_loss


def encode_in_chunks(net: nn.Module, x: Tensor, rows: int) -> Tensor:
    """Return ``net(x)`` (N, D) for x (N, ...), holding the activations of so many rows at a time."""
    parts = [checkpoint(net, chunk, use_reentrant=False, preserve_rng_state=True) for chunk in x.split(rows)]
    return torch.cat(parts)


def step(net: nn.Module, view_1: Tensor, view_2: Tensor, rows: int, queue: NegativeQueue | None = None) -> Tensor:
    """Take the gradients of a whole batch (N, ...), encoded in chunks, and return its loss."""
    mixed, labels = IMix(alpha=1.0)(view_1)  # i-Mix: the whole batch at once, so that partners may be in other chunks
    query, key = encode_in_chunks(net, mixed, rows), encode_in_chunks(net, view_2, rows)  # (N, D) each
    negatives = None if queue is None else queue.negatives
    loss = imix_nce_loss(query, key, labels, negatives=negatives, temperature=0.2)  # i-Mix
    loss.backward()
    if queue is not None:
        queue.enqueue(nn.functional.normalize(key.detach()))
    return loss.detach()


def peak_megabytes(rows: int, batch: int = 2048) -> float:
    """Return the peak memory of a process that takes one step of a small CNN, less what it began with."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.GELU(), nn.Conv2d(32, 32, 3, padding=1), nn.GELU(), nn.Dropout2d(0.1)]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 64))
    views = torch.rand(2, batch, 3, 32, 32)
    before = _resident()
    step(net, *views, rows)
    return (_resident() - before) / 1024


def _resident() -> int:
    """Return the most memory, in kB, that this process has held: Linux's count."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1])


def main() -> dict[int, float]:
    """Print and return the peaks, each taken in a process of its own."""
    peaks, settings = {}, os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # so that glibc gives back what is freed
    for rows in (2048, 256, 64):
        command = [sys.executable, __file__, str(rows)]
        peaks[rows] = float(subprocess.run(command, env=settings, check=True, capture_output=True, text=True).stdout)
        print(f"2,048 images, {rows:5,} rows at a time: {peaks[rows]:6,.0f} MB", flush=True)
    return peaks


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(peak_megabytes(int(sys.argv[1])))
    else:
        main()
