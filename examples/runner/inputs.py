"""What the network sees: a clip as a picture of its pitch and loudness over time, an image in units of its spread."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runner.data.files import ImageFiles

SAMPLE_RATE = 16_000


class LogMel(nn.Module):
    """Clips (N, samples) to log-mel spectrograms (N, 1, 32, frames): one second at 16 kHz gives 32 frames.

    Decibels below the loudest point of the clip, cut off at 80, as in the paper: the gain of the microphone drops out.
    The scale is the same for all clips (silence is -2, the loudest point 2): were each clip brought to zero mean
    and unit variance by itself, silence would have another value in each, and mixing would not add like to like.
    """

    def __init__(self, sample_rate: int = SAMPLE_RATE, n_fft: int = 2048, hop: int = 512, bins: int = 32) -> None:
        super().__init__()
        import librosa

        self.n_fft, self.hop = n_fft, hop
        filters = librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=bins)
        self.register_buffer("filters", torch.from_numpy(filters), persistent=False)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    pad_mode = "constant"

    def spectrum(self, x: Tensor) -> Tensor:
        """The short-time spectrum, (N, frequencies, frames)."""
        return torch.stft(
            x, self.n_fft, self.hop, window=self.window, center=True, pad_mode=self.pad_mode, return_complex=True
        )

    def power(self, spectrum: Tensor) -> Tensor:
        """Power in each mel band and frame, (N, bins, frames)."""
        return self.filters @ (spectrum.real.square() + spectrum.imag.square())

    def of_spectrum(self, spectrum: Tensor) -> Tensor:
        """What the network sees of a spectrum."""
        power = self.power(spectrum)
        loudest = power.amax((1, 2), keepdim=True).clamp(min=1e-2)  # what lies 80 dB below full scale is silence
        decibels = 10 * (power / loudest).clamp(min=1e-8).log10()
        return (decibels[:, None] + 40) / 20

    def forward(self, x: Tensor) -> Tensor:
        # Blocks whose spectra stay in the cache take a third of the time on a CPU.
        blocks = x.split(16) if x.device.type == "cpu" else (x,)
        return torch.cat([self.of_spectrum(self.spectrum(clips)) for clips in blocks])


class Decibels(LogMel):
    """The paper's own: decibels as they are, from -80 to 0 at the loudest point of a clip; of silence, 0 everywhere."""

    pad_mode = "reflect"  # as librosa did by itself before 0.9, when the paper was written

    def of_spectrum(self, spectrum: Tensor) -> Tensor:
        """What the network sees of a spectrum."""
        power = self.power(spectrum).clamp(min=1e-10)
        return 10 * (power / power.amax((1, 2), keepdim=True)).clamp(min=1e-8).log10()[:, None]


# The mean and deviation by channel that the authors' code divides by.
PUBLISHED_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2009, 0.1984, 0.2023)),
}
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Normalize(nn.Module):
    """From uint8 or [0, 1] to zero mean and unit variance of the training images, channel by channel.

    CIFAR takes the published statistics, whose deviations are less than those of all pixels, and images that stay in
    their files take ImageNet's.
    """

    def __init__(self, name: str, images: Tensor | ImageFiles) -> None:
        super().__init__()
        published = IMAGENET_STATISTICS if isinstance(images, ImageFiles) else PUBLISHED_STATISTICS.get(name)
        if published and images.shape[1] == 3:
            mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in published)
        else:
            sample = images[:: max(1, len(images) // 5000)].float() / 255
            std, mean = torch.std_mean(sample, dim=(0, 2, 3), keepdim=True)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std.clamp(min=1e-3))

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.is_floating_point() else x.float() / 255
        return (x - self.mean) / self.std
