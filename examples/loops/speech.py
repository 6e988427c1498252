"""N-pair contrastive learning of speech with i-Mix, from the clips to the linear probe.

    python examples/loops/speech.py                 # ten digits, spoken by espeak-ng's voices
    python examples/loops/speech.py --data my.npz   # x (N, samples) at 22.05 kHz, from -1 to 1, and y (N,), classes

The last quarter of the clips tests; of the digits, these are other voices. The classes are for the probes alone. The
settings were chosen on the last quarter of the training clips. So few clips teach little: the spectrogram does better.
"""

import argparse
import ctypes
from itertools import chain, pairwise, product

import espeakng_loader
import librosa
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from imix_aug import IMix, imix_nce_loss

BATCH, RATE, TEMPERATURE, LABELS = 128, 2e-3, 0.5, 100
VOICES = "Alex Andy Gene Lee Mario adam aunty boris caleb edward f1 f2 f3 f4 ian m1 m2 m3 m4 max"
WORDS = "zero one two three four five six seven eight nine"


def say_digits(takes: int = 6, samples: int = 16_384) -> tuple[np.ndarray, np.ndarray]:
    """Let every voice say zero to nine, faster and slower, higher and lower: clips (N, samples), digits (N,)."""
    espeak, draw, pieces, clips = ctypes.CDLL(espeakng_loader.get_library_path()), np.random.default_rng(0), [], []
    espeak.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0)  # 2: speak into a callback

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def collect(wave, count, events):
        return pieces.extend([np.ctypeslib.as_array(wave, (count,)).copy()] if wave and count else []) or 0

    espeak.espeak_SetSynthCallback(collect)
    espeak.espeak_ng_SetRandSeed(ctypes.c_long(1))  # breath is noise, which the clock would seed
    for voice, word in product(VOICES.split(), WORDS.split() * takes):
        espeak.espeak_SetVoiceByName(f"en+{voice}".encode())
        for parameter, low, high in ((1, 110, 231), (3, 20, 81)):  # words per minute, pitch
            espeak.espeak_SetParameter(parameter, int(draw.integers(low, high)), 0)
        pieces.clear()
        espeak.espeak_Synth(word.encode(), ctypes.c_size_t(len(word) + 1), 0, 1, 0, 1, None, None)
        clips.append(librosa.util.fix_length(np.concatenate(pieces) / 32768, size=samples))
    return np.stack(clips), np.arange(len(clips)) % 10


def load(path: str | None = None) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """Return log-mel spectrograms (N, 1, 32, frames) around zero for training and for the test, and their classes."""
    clips, classes = map(np.load(path).get, "xy") if path else say_digits()
    power = librosa.feature.melspectrogram(y=clips, sr=22_050, n_fft=1024, hop_length=512, n_mels=32)
    decibels = 10 * np.log10(np.maximum(power / power.max((1, 2), keepdims=True), 1e-8))  # -80 to 0, by the clip's peak
    x = torch.tensor((decibels + 40) / 20, dtype=torch.float32)[:, None]
    order, first = np.random.default_rng(0).permutation(len(x) * 3 // 4), len(x) * 3 // 4
    return x[order], x[first:], classes[order], classes[first:]


def build_networks(width: int = 16, dim: int = 64) -> tuple[nn.Module, nn.Module]:
    """Return an encoder (N, 1, 32, frames) -> (N, 8 width), which is kept, and a head -> (N, dim), which is not."""
    sizes = pairwise([1, width, 2 * width, 4 * width, 8 * width])
    convs = [(nn.Conv2d(n, m, 3, 2, 1, bias=False), nn.BatchNorm2d(m), nn.ReLU()) for n, m in sizes]
    encoder = nn.Sequential(*chain(*convs), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return encoder, nn.Sequential(nn.Linear(8 * width, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, dim))


def train(x: Tensor, epochs: int, alpha: float = 1.0, seed: int = 0) -> nn.Module:
    """Pretrain an encoder on spectrograms (N, 1, 32, frames). An alpha of 0 trains without i-Mix."""
    torch.manual_seed(seed)
    encoder, head = build_networks()
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(epochs * (len(x) // BATCH), 1))
    imix = IMix(alpha=alpha)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            mixed, labels = imix(x[rows])  # i-Mix; (B, 1, 32, frames), nothing is augmented
            query, key = head(encoder(mixed)), head(encoder(x[rows]))  # (B, dim) each
            loss = imix_nce_loss(query, key, labels, temperature=TEMPERATURE)  # i-Mix
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return encoder.eval()


@torch.no_grad()
def judge(encoder: nn.Module, train_x: Tensor, test_x: Tensor, train_y: np.ndarray, test_y: np.ndarray) -> list[float]:
    """Return two test accuracies of frozen features: a linear probe that saw few labels, neighbours that saw all."""
    train, test = encoder(train_x).flatten(1), encoder(test_x).flatten(1)  # (N, features)
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    neighbours = make_pipeline(StandardScaler(), KNeighborsClassifier(20, metric="cosine"))
    linear.fit(train[:LABELS], train_y[:LABELS])
    neighbours.fit(train, train_y)
    return [linear.score(test, test_y), neighbours.score(test, test_y)]


def main(path: str | None = None, epochs: int = 30) -> dict[str, list[float]]:
    """Print and return the accuracies of four kinds of features."""
    data = load(path)
    scores = {
        "raw spectrogram": judge(nn.Identity(), *data),
        "untrained network": judge(train(data[0], epochs=0), *data),
        "without i-Mix": judge(train(data[0], epochs, alpha=0.0), *data),
        "with i-Mix": judge(train(data[0], epochs), *data),
    }
    print(f"test accuracy      linear on {LABELS} labels   nearest neighbours")
    for name, (linear, neighbours) in scores.items():
        print(f"{name:17}  {linear:16.1%}  {neighbours:19.1%}")
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FILE.npz")
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    main(options.data, options.epochs)
