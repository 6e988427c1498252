"""The paper's augmentation of Speech Commands on whole batches: from clips to spectrograms in decibels.

Each change comes to a clip with probability one half: amplitude; speed, and pitch with it; speed alone, by a phase
vocoder; a shift by whole frames; background noise, which has been changed in the same ways before.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.inputs import SAMPLE_RATE, Decibels

SLOWEST, FASTEST = 0.8, 1.2
MOST_FRAMES = 8  # of a shift


class CommandsAugment(nn.Module):
    """Clips (N, samples) of one second to what ``decibels`` makes of them once they are changed, (N, 1, bins, frames).

    ``noise`` (L,) is a track of background noise; whole seconds of it are mixed in, at the level that they have.
    """

    def __init__(self, decibels: Decibels, noise: Tensor) -> None:
        super().__init__()
        self.decibels = decibels
        self.register_buffer("noise", noise.unfold(0, SAMPLE_RATE, SAMPLE_RATE), persistent=False)

    def forward(self, clips: Tensor, generator: torch.Generator | None = None) -> Tensor:
        n, kind = len(clips), {"dtype": clips.dtype, "device": clips.device}

        def draw(low: float, high: float, otherwise: float) -> Tensor:
            value = low + (high - low) * torch.rand(n, 1, generator=generator, **kind)
            coin = torch.rand(n, 1, generator=generator, **kind)
            return torch.where(coin < 0.5, value, torch.full_like(value, otherwise))

        def changes() -> list[Tensor]:
            frames = draw(-MOST_FRAMES, MOST_FRAMES + 1, 0.0).floor().long()  # each of the seventeen alike
            return [draw(0.7, 1.1, 1.0), draw(SLOWEST, FASTEST, 1.0), draw(SLOWEST, FASTEST, 1.0), frames]

        second = torch.randint(len(self.noise), (n,), device=clips.device, generator=generator)
        rows = [clips, *changes(), self.noise[second], *changes(), draw(0.0, 0.45, 0.0)]
        size = 16 if clips.device.type == "cpu" else n  # what stays in the cache takes a third of the time
        return torch.cat([self._augment(*some) for some in zip(*(row.split(size) for row in rows), strict=True)])

    def _augment(self, *row: Tensor) -> Tensor:
        clip, noise, share = self._change(*row[:5]), self._change(*row[5:10]), row[10][..., None]
        return self.decibels.of_spectrum((1 - share) * clip + share * noise)

    def _change(self, clip: Tensor, amplitude: Tensor, length: Tensor, rate: Tensor, shift: Tensor) -> Tensor:
        spectrum = self.decibels.spectrum(change_length(amplitude * clip, length))
        return shift_frames(*vocode(spectrum, rate), shift, frames=spectrum.shape[2])


def change_length(x: Tensor, length: Tensor) -> Tensor:
    """Make clips (N, samples) ``length`` (N, 1) times as long from their start, pitch and all; cut or pad their end."""
    samples = x.shape[1]
    position = torch.arange(samples, device=x.device) / length
    before = position.long().clamp(max=samples - 1)
    after = (before + 1).clamp(max=samples - 1)
    read = x.gather(1, before).lerp(x.gather(1, after), position - before)
    return read.where(position < samples, 0)


def vocode(spectrum: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Read spectra (N, bins, frames) ``rate`` (N, 1) times as fast; return them, padded, and their lengths (N, 1).

    A phase vocoder: sizes are read between two frames, and the phase moves on as it does from the one to the other.
    """
    frames = spectrum.shape[2]
    position = torch.arange(math.ceil(frames / SLOWEST), device=spectrum.device) * rate
    before = position.long().clamp(max=frames)
    padded = F.pad(spectrum, (0, 2))
    index = before[:, None].expand(-1, spectrum.shape[1], -1)
    first, second = padded.gather(2, index), padded.gather(2, index + 1)
    turn = second.angle() - first.angle()
    phase = spectrum[..., :1].angle() + turn.cumsum(2) - turn  # the turns before a frame, not its own
    size = first.abs().lerp(second.abs(), (position - before)[:, None])
    return torch.polar(size, phase), (position < frames).sum(1, keepdim=True)


def shift_frames(spectrum: Tensor, length: Tensor, shift: Tensor, *, frames: int) -> Tensor:
    """Begin ``shift`` frames later, or sooner with silence before them, within ``length``; then cut or pad the end."""
    place = torch.arange(frames, device=spectrum.device)
    source = place + shift
    inside = (source >= 0) & (source < length) & (place < length)
    index = source.clamp(0, spectrum.shape[2] - 1)[:, None].expand(-1, spectrum.shape[1], -1)
    return spectrum.gather(2, index).where(inside[:, None], 0)
