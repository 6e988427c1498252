"""The paper's augmentation of speech on whole batches, wherever they live: every clip is changed its own way.

Loudness, speed and pitch together, shift, speed alone, and background noise; each with probability one half.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.audio import SAMPLE_RATE


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
        self.stretch = Stretch()

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        n, samples = x.shape

        def draw(low: float, high: float, otherwise: float) -> Tensor:
            value = low + (high - low) * torch.rand(n, 1, device=x.device, generator=generator)
            coin = torch.rand(n, 1, device=x.device, generator=generator)
            return torch.where(coin < 0.5, value, torch.full_like(value, otherwise))

        level = x.square().mean(1, keepdim=True).sqrt()
        loudness, length, shift = draw(0.7, 1.1, 1.0), draw(0.8, 1.2, 1.0), draw(-0.256, 0.256, 0.0)
        changed = loudness * resample_and_shift(x, length, shift * SAMPLE_RATE)

        # Half of the batch, drawn anew each time, is stretched: this costs more than all the rest.
        half = torch.randperm(n, device=x.device, generator=generator)[: (n + 1) // 2]
        rate = 0.8 + 0.4 * torch.rand(len(half), 1, device=x.device, generator=generator)
        changed = changed.index_copy(0, half, self.stretch(changed[half], rate))

        share = draw(0.0, self.most_noise, 0.0)
        return (1 - share) * changed + share * level * cut_noise(self.noise, n, samples, generator)


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
    """A phase vocoder: clips become ``rate`` times as fast about their middle, and keep their pitch."""

    def __init__(self, n_fft: int = 1024, hop: int = 256) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, x: Tensor, rate: Tensor) -> Tensor:
        spectrum = torch.stft(
            x, self.n_fft, self.hop, window=self.window, center=True, pad_mode="constant", return_complex=True
        )
        frames = spectrum.shape[2]
        middle = (frames - 1) / 2
        position = middle + (torch.arange(frames, device=x.device) - middle) * rate
        before = position.floor().long().clamp(0, frames - 2)
        share = (position - before)[:, None].clamp(0, 1)
        outside = ((position < 0) | (position > frames - 1))[:, None]

        size = spectrum.abs()
        turn = torch.where(size > 1e-8, spectrum / size.clamp(min=1e-8), 1.0)  # the phase, as a number of length one
        index = before[:, None].expand(-1, spectrum.shape[1], -1)
        left, right = turn.gather(2, index), turn.gather(2, index + 1)
        loudness = size.gather(2, index).lerp(size.gather(2, index + 1), share).masked_fill(outside, 0)
        # From one frame to the next the phase turns by as much as it did between the two frames of the source.
        steps = torch.cat([left[..., :1], (right * left.conj())[..., :-1]], dim=-1)
        stretched = loudness * steps.cumprod(-1)
        return torch.istft(stretched, self.n_fft, self.hop, window=self.window, center=True, length=x.shape[1])


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
    start = torch.randint(len(track), (n, 1), device=track.device, generator=generator)
    return track[(start + torch.arange(samples, device=track.device)) % len(track)]
