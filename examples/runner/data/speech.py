"""Speech: the embedded spoken digits, Google's Speech Commands, and any folder that is laid out like it.

    FOLDER/<word>/<clip>.wav           the clips (or .flac, .ogg, .mp3), of any length, rate and depth, mono or not
    FOLDER/testing_list.txt            optional: the clips to test on, as <word>/<clip>.wav, one per line
    FOLDER/validation_list.txt         optional: clips that are neither trained nor tested on
    FOLDER/_background_noise_/*.wav    optional: noise for the augmentation

Every clip becomes one second at 16 kHz: a shorter one is padded with silence on both sides alike, of a longer one the
middle is kept. With the paper's twelve classes, a clip is padded or cut at its end.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.hub import download_url_to_file
from tqdm import tqdm

from runner.data.commands import TWELVE, to_twelve, with_silence
from runner.data.dataset import Dataset
from runner.data.split import split_rows
from runner.data.spoken_digits import WORDS
from runner.errors import Refused
from runner.inputs import SAMPLE_RATE

WHERE = "https://storage.googleapis.com/download.tensorflow.org/data/"
# By --words: the version that the paper takes its twelve classes from, and the newest of all words.
SPEECH_COMMANDS = {
    "twelve": (
        f"{WHERE}speech_commands_v0.01.tar.gz",
        "743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d",
    ),
    "all": (
        f"{WHERE}speech_commands_v0.02.tar.gz",
        "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
    ),
}
NAMED = ("digits", "speechcommands")
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")
KINDS = "WAV, FLAC, OGG or MP3"
NOISE_FOLDER = "_background_noise_"
DIGITS_CACHE = "spoken-digits-1.npz"  # count up when the clips change


@dataclass(frozen=True)
class SpeechDataset(Dataset):
    """Clips, and a track of recorded background noise where the folder has one."""

    noise: Tensor | None = None
    twelve: bool = False  # the paper's classes of Speech Commands, and with them its input and augmentation


def load_speech(name_or_path: str, *, root: str | Path | None = None, words: str | None = None) -> SpeechDataset:
    """Load ``digits`` or ``speechcommands`` by name, or a folder or a .tar.gz of the same layout by path.

    What is synthesised, downloaded or extracted is kept in ``root`` (default: ``data``). With ``words="twelve"``, the
    default for ``speechcommands``, the classes are the paper's; with ``"all"`` each word is one.
    """
    root = Path(root or "data")
    if name_or_path == "digits":
        if words == "twelve":
            raise Refused("--words twelve: digits are none of them; wanted speechcommands, or where it lies")
        return _digits(_folder(root))
    if name_or_path == "speechcommands":
        url, sha256 = SPEECH_COMMANDS[words or "twelve"]
        archive = _folder(root) / url.rpartition("/")[2]
        if not archive.exists():
            download(url, archive, sha256)
        return load_folder(extract(archive, root), name="speechcommands", twelve=words != "all")
    path, twelve = Path(name_or_path), words == "twelve"
    if path.is_dir():
        return load_folder(path, twelve=twelve)
    if path.is_file() and path.name.endswith((".tar.gz", ".tgz")):
        return load_folder(extract(path, _folder(root)), name=path.name.partition(".")[0], twelve=twelve)
    known = f"digits, speechcommands, a folder of <word>/<clip>, sounds as {KINDS}, or a .tar.gz of one"
    raise Refused(f"--data {name_or_path}: no such folder or archive; wanted {known}")


def load_folder(folder: Path, name: str | None = None, *, twelve: bool = False) -> SpeechDataset:
    """Read a folder in the layout of Speech Commands, with each word for a class or with the paper's twelve."""
    words = sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith(("_", ".")))
    if len(words) < 2:
        found = f"only {words[0]!r}" if words else "none"
        raise Refused(f"{folder}: wanted a folder of sound files for each of two words or more, found {found}")
    clips = []
    for word in words:
        of_word = _sound_files(folder / word)
        if not of_word:
            raise Refused(f"{folder / word}: no sound file for the class {word!r}; wanted {KINDS}")
        clips += [f"{word}/{clip.name}" for clip in of_word]

    classes = to_twelve(str(folder), words) if twelve else torch.arange(len(words))
    train, test, notes = split(folder, clips)
    (train_x, train_y), (test_x, test_y) = (
        _read_clips(folder, part, words, pad_end if twelve else one_second) for part in (train, test)
    )
    train_y, test_y = classes[train_y], classes[test_y]
    if twelve:
        train_x, train_y = with_silence(train_x, train_y)
    return SpeechDataset(
        name or folder.resolve().name,
        train_x,
        train_y,
        test_x,
        test_y,
        TWELVE if twelve else words,
        notes=notes,
        noise=_read_noise(folder / NOISE_FOLDER),
        twelve=twelve,
    )


def split(folder: Path, clips: Sequence[str]) -> tuple[list[str], list[str], tuple[str, ...]]:
    """Divide clips (``<word>/<clip>.wav``) into training and test clips, by the lists where the folder has them.

    Also return what a user should know of it.
    """
    known = set(clips)
    validation = _read_list(folder / "validation_list.txt", known) or set()
    testing = _read_list(folder / "testing_list.txt", known)
    notes = () if testing is not None else ("no testing_list.txt in it: a tenth of the speakers tests, by their names",)
    if testing is None:
        testing = {clip for clip in clips if falls_to_test(clip)} - validation
        rest = [clip for clip in clips if clip not in validation]
        if not testing or len(testing) == len(rest):  # too few speakers for a tenth
            notes = ("no testing_list.txt in it: four fifths of the clips of each word train, one fifth tests",)
            y = np.unique([clip.partition("/")[0] for clip in rest], return_inverse=True)[1]
            testing = {rest[row] for row in split_rows(folder.name, y)[1]}
    if both := testing & validation:
        raise Refused(f"{folder}: {min(both)} is both in testing_list.txt and in validation_list.txt")
    train = [clip for clip in clips if clip not in testing and clip not in validation]
    test = [clip for clip in clips if clip in testing]
    for part, of_part in (("training", train), ("test", test)):
        if not of_part:
            raise Refused(f"{folder}: no {part} clip; write the clips to test on into testing_list.txt, one per line")
    return train, test, notes


def falls_to_test(clip: str, buckets: int = 2**27) -> bool:
    """Decide by a hash of the speaker (what stands before ``_nohash_``) as the README of Speech Commands has it.

    The second tenth of the hashes is for testing: all clips of a speaker fall to one side, and stay there as data grow.
    """
    speaker = re.sub(r"_nohash_.*$", "", clip.rpartition("/")[2])
    percent = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % buckets * (100 / (buckets - 1))
    return 10 <= percent < 20


def read_sound(path: Path) -> np.ndarray:
    """Samples of a file, one channel at 16 kHz."""
    import librosa
    import soundfile

    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise Refused(f"{path}: not a readable sound file: {error}") from error
    if len(samples) == 0:
        raise Refused(f"{path}: the file holds no samples")
    if not np.isfinite(samples).all():
        raise Refused(f"{path}: the file holds NaN or infinite samples")
    mono = samples.mean(1)
    return mono if rate == SAMPLE_RATE else librosa.resample(mono, orig_sr=rate, target_sr=SAMPLE_RATE)


def one_second(clip: np.ndarray) -> np.ndarray:
    """Pad with silence on both sides alike, or keep the middle."""
    missing = SAMPLE_RATE - len(clip)
    if missing < 0:
        return clip[-missing // 2 :][:SAMPLE_RATE]
    return np.pad(clip, (missing // 2, missing - missing // 2))


def pad_end(clip: np.ndarray) -> np.ndarray:
    """Pad with silence at the end, or cut there."""
    return np.pad(clip[:SAMPLE_RATE], (0, max(SAMPLE_RATE - len(clip), 0)))


def download(url: str, target: Path, sha256: str) -> None:
    """Fetch a file; it gets its name when all of it is there and is what it should be."""
    try:
        download_url_to_file(url, str(target), hash_prefix=sha256)
    except (OSError, RuntimeError) as error:
        raise Refused(f"{url}: cannot be downloaded to {target}: {error}") from error


def extract(archive: Path, root: Path) -> Path:
    """Unpack an archive once; the folder gets its name when all of it is there."""
    folder = root / f"{archive.name.partition('.tar')[0]}-{archive.stat().st_size}"  # another archive, another folder
    if folder.is_dir():
        return folder
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(part, filter="data")
        os.replace(part, folder)
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise Refused(f"{archive}: cannot be extracted to {folder}: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _digits(root: Path) -> SpeechDataset:
    """Load the embedded digits; the voices to test on are not among those to train on."""
    cache = root / DIGITS_CACHE
    if not cache.exists():
        print("synthesising the spoken digits, once ...", file=sys.stderr)
        command = [sys.executable, "-m", "runner.data.spoken_digits", str(cache.resolve())]
        made = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
        if made.returncode:
            reason = (made.stderr.strip().splitlines() or [f"exit status {made.returncode}"])[-1]
            raise Refused(f"the spoken digits cannot be synthesised (pip install 'imix-aug[examples]'?): {reason}")
    try:
        with np.load(cache, allow_pickle=False) as file:
            arrays = dict(file)
        parts = []
        for part in ("train", "test"):
            clips = np.split(arrays[f"{part}_audio"], np.cumsum(arrays[f"{part}_length"])[:-1])
            sound = np.stack([one_second(clip) for clip in clips]).astype(np.float32) / 32768
            parts += [torch.from_numpy(sound), torch.from_numpy(arrays[f"{part}_label"])]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise Refused(f"{cache}: the cached digits are damaged; delete the file ({error})") from error
    return SpeechDataset("digits", *parts, list(WORDS))


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"--data-root {path}: cannot be made: {error}") from error
    return path


def _sound_files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))


def _read_list(path: Path, known: set[str]) -> set[str] | None:
    """Read the clips that a list names, or return None where there is no list."""
    if not path.exists():
        return None
    named = {line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}
    if missing := named - known:
        raise Refused(f"{path}: names {min(missing)!r}, but there is no such clip; wanted <word>/<clip>.wav")
    return named


def _read_clips(
    folder: Path, clips: Sequence[str], words: Sequence[str], fit: Callable[[np.ndarray], np.ndarray]
) -> tuple[Tensor, Tensor]:
    sound = torch.empty(len(clips), SAMPLE_RATE)

    def read(row: int) -> None:
        sound[row] = torch.from_numpy(fit(read_sound(folder / clips[row])))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = pool.map(read, range(len(clips)))
        quick = len(clips) <= 5000  # read before one could look at a bar
        for _ in tqdm(rows, total=len(clips), desc=f"reading {folder.name}", disable=quick or None):
            pass
    label = {word: i for i, word in enumerate(words)}
    return sound, torch.tensor([label[clip.partition("/")[0]] for clip in clips])


def _read_noise(folder: Path) -> Tensor | None:
    """Join all recordings of background noise into one track."""
    files = _sound_files(folder) if folder.is_dir() else []
    return torch.from_numpy(np.concatenate([read_sound(f) for f in files])) if files else None
