"""An augmentation after the paper's for speech of any kind, on whole batches: every clip is changed its own way.

Loudness, speed and pitch together, shift, background noise, and speed alone; each with probability one half. The
paper's own, for Speech Commands, is in ``commands.py``: here the level of the noise follows the clip's, noise is
generated where none was recorded, and a clip is stretched about its middle.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runner.inputs import SAMPLE_RATE


class AudioAugment(nn.Module):
    """Clips (N, samples) to clips of the same length.

    ``noise`` (L,) is a track to cut background noise from, such as the recordings in ``_background_noise_``; without
    it one is generated. Its level follows the clip's, so that the share of noise means the same in every data set.
    """

    def __init__(self, noise: Tensor | None = None, most_noise: float = 0.45) -> None:
        super().__init__()
        track = coloured_noise() if noise is None else noise
        self.register_buffer("noise", track / track.square().mean().sqrt().clamp(min=1e-6), persistent=False)
        self.most_noise = most_noise

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        n, samples = x.shape

        def draw(low: float, high: float, otherwise: float) -> Tensor:
            value = low + (high - low) * torch.rand(n, 1, device=x.device, generator=generator)
            coin = torch.rand(n, 1, device=x.device, generator=generator)
            return torch.where(coin < 0.5, value, torch.full_like(value, otherwise))

        level = x.square().mean(1, keepdim=True).sqrt()
        loudness, length, shift = draw(0.7, 1.1, 1.0), draw(0.8, 1.2, 1.0), draw(-0.256, 0.256, 0.0)
        share = draw(0.0, self.most_noise, 0.0)
        noise = cut_noise(self.noise, n, samples, generator)
        blocks = (x, length, shift * SAMPLE_RATE, (1 - share) * loudness, share * level, noise)
        # Blocks that stay in the cache take a fifth of the time on a CPU.
        size = 8 if x.device.type == "cpu" else n
        return torch.cat(
            [
                loud * resample_and_shift(clips, longer, later) + noisy * hiss
                for clips, longer, later, loud, noisy, hiss in zip(*(one.split(size) for one in blocks), strict=True)
            ]
        )


def resample_and_shift(x: Tensor, length: Tensor, shift: Tensor) -> Tensor:
    """Make a clip ``length`` times as long about its middle (pitch changes too), then move it by ``shift`` samples."""
    samples = x.shape[1]
    middle = (samples - 1) / 2
    position = middle + (torch.arange(samples, device=x.device) - shift - middle) / length
    before = position.floor()
    share = position - before
    # One zero on either side, where all that lies outside the clip is read from.
    padded = torch.nn.functional.pad(x, (1, 1))
    left = padded.gather(1, (before.long() + 1).clamp(0, samples + 1))
    right = padded.gather(1, (before.long() + 2).clamp(0, samples + 1))
    return left.lerp(right, share)


class Stretch(nn.Module):
    """Spectrograms (N, 1, bins, frames) up to a fifth faster or slower about their middle; the pitch stays.

    The paper stretches the short-time spectrum before it becomes a mel spectrogram. That drops the phases, so all that
    is left of a phase vocoder is to read the frames at another pace.
    """

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        rate = 0.8 + 0.4 * torch.rand(len(x), 1, device=x.device, generator=generator)
        coin = torch.rand(len(x), 1, device=x.device, generator=generator)
        return read_frames(x, torch.where(coin < 0.5, rate, 1.0))


def read_frames(x: Tensor, rate: Tensor) -> Tensor:
    """Read each spectrogram ``rate`` times as fast about its middle; its first and last frame go on beyond its ends."""
    frames = x.shape[3]
    middle = (frames - 1) / 2
    position = (middle + (torch.arange(frames, device=x.device) - middle) * rate).clamp(0, frames - 1)
    before = position.floor().clamp(max=frames - 2)
    index = before.long()[:, None, None].expand(-1, *x.shape[1:])
    return x.gather(3, index).lerp(x.gather(3, index + 1), (position - before)[:, None, None])


def coloured_noise(pieces: int = 32, seconds: int = 4, seed: int = 0) -> Tensor:
    """A track of noise from white (the same power at all frequencies) to brown (power falls with their square)."""
    draw = torch.Generator().manual_seed(seed)
    samples = seconds * SAMPLE_RATE
    exponent = torch.linspace(0, 1, pieces)[:, None]
    frequency = torch.fft.rfftfreq(samples, 1 / SAMPLE_RATE).clamp(min=20.0)
    spectrum = torch.fft.rfft(torch.randn(pieces, samples, generator=draw)) * frequency**-exponent
    noise = torch.fft.irfft(spectrum, n=samples)
    return (noise / noise.square().mean(1, keepdim=True).sqrt()).flatten()


def cut_noise(track: Tensor, n: int, samples: int, generator: torch.Generator | None) -> Tensor:
    """Pieces (n, samples) from random places of the track, which starts over at its end."""
    start = torch.randint(len(track), (n,), device=track.device, generator=generator)
    endless = track.repeat(1 + -(-(samples - 1) // len(track)))[: len(track) + samples - 1]
    return endless.unfold(0, samples, 1)[start]
