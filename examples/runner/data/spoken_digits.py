"""The embedded speech: the digits zero to nine, spoken by espeak-ng's voices (the ``espeakng-loader`` wheel has them).

Synthetic and clean, so easier than recordings; it lets the speech example run with no download and no system package.
The synthesiser carries some state from clip to clip, so this module is run in a process of its own
(``python -m runner.data.spoken_digits TARGET``), where the clips come out the same every time.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en", "en-us", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc")
# A voice is a speaker, so none is in both lists, nor are two that differ in little more than their names.
# Robots and voices that overdrive are left out.
TRAIN_VOICES = [
    *("Alex", "Alicia", "Andy", "Denis", "Diogo", "Gene", "Hugo", "Lee", "Mario", "Michael", "Mike", "Nguyen", "Reed"),
    *(
        "adam",
        "aunty",
        "boris",
        "caleb",
        "croak",
        "edward",
        "f1",
        "f2",
        "f3",
        "f4",
        "grandma",
        "gustave",
        "ian",
        "iven4",
    ),
    *("kaukovalta", "klatt", "klatt3", "m1", "m2", "m4", "m6", "m7", "marcelo", "max", "miguel", "quincy", "robert"),
    *("shelby", "travis", "whisperf", "zac"),
]
TEST_VOICES = [
    *("Annie", "Henrique", "belinda", "david", "f5", "grandpa", "klatt2", "m3", "m8", "pablo", "steph", "victor"),
]
TRAIN_TAKES, TEST_TAKES = 7, 5
SAMPLE_RATE = 16_000

# Numbers from espeak-ng's speak_lib.h.
_SYNCHRONOUS, _DO_NOT_EXIT, _UTF8 = 2, 0x8000, 1
_RATE, _PITCH, _RANGE = 1, 3, 4


def synthesise(voices: list[str], takes: int, seed: int) -> dict[str, np.ndarray]:
    """Let every voice say every digit ``takes`` times, each time in another accent, speed, pitch and liveliness.

    Returns 16-bit ``audio`` of all clips end to end, and for each clip ``length``, ``label`` and ``voice``.
    """
    import librosa

    say, rate = _open_synthesiser()
    draw = np.random.default_rng(seed)
    clips, labels, speakers = [], [], []
    for speaker, voice in enumerate(voices):
        for label, word in enumerate(WORDS):
            for _ in range(takes):
                accent = ACCENTS[draw.integers(len(ACCENTS))]
                sound = say(
                    word, f"{accent}+{voice}", draw.integers(110, 231), draw.integers(20, 81), draw.integers(20, 91)
                )
                clip = librosa.resample(sound / 32768, orig_sr=rate, target_sr=SAMPLE_RATE)
                clips.append(np.round(clip * 32767).clip(-32768, 32767).astype(np.int16))
                labels.append(label)
                speakers.append(speaker)
    return {
        "audio": np.concatenate(clips),
        "length": np.array([len(clip) for clip in clips], dtype=np.int64),
        "label": np.array(labels, dtype=np.int64),
        "voice": np.array(voices)[speakers],
    }


def _open_synthesiser() -> tuple[Callable[..., np.ndarray], int]:
    """Return a function that speaks a word, and its sampling rate."""
    import espeakng_loader

    espeak = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = espeak.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(espeakng_loader.get_data_path()), _DO_NOT_EXIT)
    if rate <= 0:  # espeak-ng keeps the path in a buffer of a fixed size
        raise RuntimeError(
            f"espeak-ng cannot read its voices in {espeakng_loader.get_data_path()}; is the path very long?"
        )
    pieces: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def collect(samples, count, events):
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    espeak.espeak_SetSynthCallback(collect)
    espeak.espeak_ng_SetRandSeed(ctypes.c_long(1))  # breath is noise, which the clock would seed

    def say(word: str, voice: str, speed: int, pitch: int, liveliness: int) -> np.ndarray:
        pieces.clear()
        failed = espeak.espeak_SetVoiceByName(voice.encode())
        for parameter, value in ((_RATE, speed), (_PITCH, pitch), (_RANGE, liveliness)):
            failed = failed or espeak.espeak_SetParameter(parameter, int(value), 0)
        text = word.encode() + b"\0"
        failed = failed or espeak.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 1, 0, _UTF8, None, None)
        if failed or not pieces:
            raise RuntimeError(f"espeak-ng could not say {word!r} in the voice {voice!r} (error {failed})")
        return np.concatenate(pieces)

    say.keep = collect  # the library holds a bare pointer to it
    return say, rate


def main(target: Path) -> None:
    """Write the clips of both sets of voices to ``target``, all or nothing."""
    train, test = synthesise(TRAIN_VOICES, TRAIN_TAKES, seed=0), synthesise(TEST_VOICES, TEST_TAKES, seed=1)
    arrays = {f"{split}_{name}": x for split, clips in (("train", train), ("test", test)) for name, x in clips.items()}
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
