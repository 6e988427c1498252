import hashlib
import re
import subprocess
import sys
import tarfile

import librosa
import numpy as np
import pytest
import soundfile
import torch
from conftest import EXAMPLES
from runner.data import speech as speech_data
from runner.data.speech import download, extract, falls_to_test, load_speech, one_second, read_sound
from runner.errors import Refused


def tone(frequency, seconds, rate):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


@pytest.fixture
def words(tmp_path):
    """Two words as tones, in the published layout: several sampling rates and lengths, some clips in stereo."""
    folder = tmp_path / "words"
    shapes = [(8000, 0.3), (16_000, 1.0), (44_100, 1.7), (22_050, 0.6)]
    for word, frequency in (("go", 400), ("stop", 1500)):
        (folder / word).mkdir(parents=True)
        for i in range(12):
            rate, seconds = shapes[i % 4]
            sound = tone(frequency, seconds, rate)
            if i % 3 == 0:
                sound = np.stack([1.5 * sound, 0.5 * sound], axis=1)
            soundfile.write(folder / word / f"speaker{i // 2}_nohash_{i % 2}.wav", sound, rate)
    (folder / "testing_list.txt").write_text(
        "go/speaker1_nohash_0.wav\nstop/speaker1_nohash_0.wav\n\n", encoding="utf-8"
    )
    (folder / "validation_list.txt").write_text("go/speaker2_nohash_1.wav\n", encoding="utf-8")
    (folder / "LICENSE").write_text("nothing to hear\n", encoding="utf-8")
    return folder


def pitch(clip):
    return librosa.fft_frequencies(sr=16_000, n_fft=16_000)[np.abs(np.fft.rfft(clip)).argmax()]


def test_folder_in_the_published_layout(words):
    data = load_speech(str(words))
    assert (data.name, data.classes, data.noise) == ("words", ["go", "stop"], None)
    assert data.train_x.dtype == torch.float32
    assert (data.train_x.shape, data.test_x.shape) == ((21, 16_000), (2, 16_000))
    assert data.train_y.tolist() == [0] * 10 + [1] * 11
    assert data.test_y.tolist() == [0, 1]
    for clip, label in zip(data.train_x, data.train_y, strict=True):
        assert abs(pitch(clip.numpy()) - (400, 1500)[label]) < 4
        assert clip.abs().max().item() == pytest.approx(0.5, abs=0.04)  # of the louder and the softer channel, the mean


def test_channels_are_averaged_and_other_rates_resampled(tmp_path):
    sound = tone(1000, 0.5, 44_100)
    soundfile.write(tmp_path / "opposite.wav", np.stack([sound, -sound], axis=1), 44_100, subtype="FLOAT")
    assert np.abs(read_sound(tmp_path / "opposite.wav")).max() == 0
    soundfile.write(tmp_path / "tone.wav", sound, 44_100, subtype="FLOAT")
    resampled = read_sound(tmp_path / "tone.wav")
    assert resampled.shape == (8000,)
    np.testing.assert_allclose(resampled[500:-500], tone(1000, 0.5, 16_000)[500:-500], atol=1e-3)


@pytest.mark.parametrize(("length", "first", "last"), [(1, 8000, 8000), (15_999, 0, 15_998), (16_000, 0, 15_999)])
def test_short_clips_are_padded_on_both_sides(length, first, last):
    clip = one_second(np.ones(length, np.float32) * np.arange(1, length + 1))
    assert clip.shape == (16_000,)
    assert np.flatnonzero(clip)[[0, -1]].tolist() == pytest.approx([first, last], abs=1)
    assert clip[np.flatnonzero(clip)].tolist() == list(range(1, length + 1))


@pytest.mark.parametrize("length", [16_001, 16_002, 50_000])
def test_of_long_clips_the_middle_is_kept(length):
    kept = one_second(np.arange(length))
    assert len(kept) == 16_000
    assert abs(kept[0] - (length - 1 - kept[-1])) <= 1
    assert np.array_equal(np.diff(kept), np.ones(15_999))


def test_split_by_speaker_agrees_with_the_published_lists():
    # Speakers from testing_list.txt of Speech Commands v0.02, and one from its validation_list.txt.
    testing = [
        "bb05582b",
        "97f4c236",
        "f2e59fea",
        "fdb5155e",
        "dc75148d",
        "3f170018",
        "18f8afd5",
        "e1469561",
        "5c8af87a",
    ]
    assert all(falls_to_test(f"right/{speaker}_nohash_{i}.wav") for i, speaker in enumerate(testing))
    assert not falls_to_test("right/a69b9b3e_nohash_0.wav")
    share = np.mean([falls_to_test(f"go/{i}.wav") for i in range(5000)])
    assert 0.08 < share < 0.12


def test_without_lists_no_speaker_is_on_both_sides(words):
    (words / "testing_list.txt").unlink()
    (words / "validation_list.txt").unlink()
    for word in ("go", "stop"):
        for clip in sorted((words / word).iterdir()):
            speaker = "bb05582b" if "speaker3" in clip.name else clip.name[:8]
            clip.rename(clip.with_name(clip.name.replace(clip.name[:8], speaker)))
    data = load_speech(str(words))
    testing = [c for w in ("go", "stop") for c in sorted((words / w).iterdir()) if falls_to_test(f"{w}/{c.name}")]
    assert {c.name[:8] for c in testing} >= {"bb05582b"}
    assert (len(data.test_x), len(data.train_x)) == (len(testing), 24 - len(testing))
    expected = torch.from_numpy(np.stack([one_second(read_sound(clip)) for clip in testing]))
    assert torch.equal(data.test_x, expected)


def test_background_noise_is_kept_apart(words):
    (words / "_background_noise_").mkdir()
    soundfile.write(words / "_background_noise_" / "hum.wav", tone(50, 2.5, 16_000), 16_000)
    soundfile.write(words / "_background_noise_" / "pink.wav", np.full(8000, 0.25), 8000)
    (words / "_background_noise_" / "README.md").write_text("what hums", encoding="utf-8")
    data = load_speech(str(words))
    assert data.classes == ["go", "stop"]
    assert data.noise.shape == (40_000 + 16_000,)
    np.testing.assert_allclose(data.noise[:40_000], tone(50, 2.5, 16_000), atol=1e-3)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("wav", {"subtype": "PCM_U8"}),
        ("wav", {"subtype": "PCM_24"}),
        ("wav", {"subtype": "PCM_32"}),
        ("wav", {"subtype": "FLOAT"}),
        ("wav", {"subtype": "ULAW"}),
        ("flac", {"subtype": "PCM_16"}),
        ("flac", {"subtype": "PCM_24"}),
        ("ogg", {"format": "OGG", "subtype": "VORBIS"}),
        ("opus", {"format": "OGG", "subtype": "OPUS"}),
        ("mp3", {"format": "MP3"}),
        ("FLAC", {"format": "FLAC"}),
    ],
)
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (48_000, 2), (8000, 2)])
def test_sounds_in_every_format_rate_and_depth(tmp_path, suffix, options, rate, channels):
    for word, frequency in (("go", 400), ("stop", 1500)):
        (tmp_path / word).mkdir()
        for i in range(5):
            sound = np.stack([tone(frequency, 1.0, rate)] * channels, axis=1)
            soundfile.write(tmp_path / word / f"{i}.{suffix}", sound, rate, **options)
    (tmp_path / "go" / "._0.wav").write_bytes(b"no sound")
    data = load_speech(str(tmp_path))
    assert data.train_x.shape == (8, 16_000)
    for clip, label in zip(data.train_x, data.train_y, strict=True):
        assert abs(pitch(clip.numpy()) - (400, 1500)[label]) < 4
        middle = clip[4000:12_000]
        assert middle.abs().max().item() == pytest.approx(0.5, abs=0.08)


def test_few_clips_without_lists_are_split_all_the_same(tmp_path):
    for word in ("go", "stop"):
        (tmp_path / word).mkdir()
        for i in range(10):
            soundfile.write(tmp_path / word / f"one_nohash_{i}.wav", tone(400, 0.1, 8000), 8000)
    data = load_speech(str(tmp_path))
    assert data.notes == ("no testing_list.txt in it: four fifths of the clips of each word train, one fifth tests",)
    assert torch.bincount(data.train_y).tolist() == [8, 8]
    assert torch.bincount(data.test_y).tolist() == [2, 2]


def nothing(folder):
    return folder


def broken(folder):
    (folder / "go" / "speaker0_nohash_0.wav").write_bytes(b"RIFF and then nothing of the kind")


def no_bytes(folder):
    (folder / "stop" / "speaker0_nohash_0.wav").write_bytes(b"")


def no_samples(folder):
    soundfile.write(folder / "stop" / "speaker0_nohash_0.wav", np.zeros(0), 16_000)


def not_finite(folder):
    soundfile.write(folder / "stop" / "speaker0_nohash_0.wav", np.array([0.0, np.nan]), 16_000, subtype="FLOAT")


def empty_class(folder):
    (folder / "wait").mkdir()


def one_class(folder):
    (folder / "stop").rename(folder / "_stop")


def unknown_in_list(folder):
    (folder / "testing_list.txt").write_text("go/who.wav\n", encoding="utf-8")


def in_both_lists(folder):
    (folder / "validation_list.txt").write_text("go/speaker1_nohash_0.wav\n", encoding="utf-8")


def empty_list(folder):
    (folder / "testing_list.txt").write_text("\n", encoding="utf-8")


def all_in_list(folder):
    (folder / "testing_list.txt").write_text(
        "".join(f"{c.parent.name}/{c.name}\n" for c in folder.glob("*/*.wav")), encoding="utf-8"
    )
    (folder / "validation_list.txt").unlink()


@pytest.mark.parametrize(
    ("spoil", "wanted"),
    [
        (broken, "speaker0_nohash_0.wav: not a readable sound file"),
        (no_bytes, "speaker0_nohash_0.wav: not a readable sound file"),
        (no_samples, "speaker0_nohash_0.wav: the file holds no samples"),
        (not_finite, "speaker0_nohash_0.wav: the file holds NaN"),
        (empty_class, "no sound file for the class 'wait'"),
        (one_class, "found only 'go'"),
        (unknown_in_list, "testing_list.txt: names 'go/who.wav', but there is no such clip"),
        (in_both_lists, "go/speaker1_nohash_0.wav is both in testing_list.txt and in validation_list.txt"),
        (empty_list, "no test clip; write the clips to test on into testing_list.txt"),
        (all_in_list, "no training clip"),
    ],
)
def test_refusals(words, spoil, wanted):
    spoil(words)
    with pytest.raises(Refused) as error:
        load_speech(str(words))
    assert str(error.value).startswith(str(words))
    assert wanted in str(error.value)
    assert "\n" not in str(error.value)


def test_refusals_of_what_is_no_data_set(tmp_path):
    with pytest.raises(Refused, match="nowhere: no such folder or archive; wanted digits, speechcommands"):
        load_speech(str(tmp_path / "nowhere"))
    with pytest.raises(
        Refused, match=f"{re.escape(str(tmp_path))}: wanted a folder of sound files for each of two words.*found none"
    ):
        load_speech(str(tmp_path))
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(Refused, match=f"--data-root {tmp_path / 'file' / 'root'}: cannot be made"):
        load_speech("digits", root=tmp_path / "file" / "root")


def pack(folder, target):
    with tarfile.open(target, "w:gz") as tar:
        for entry in sorted(folder.iterdir()):
            tar.add(entry, f"./{entry.name}")  # the published archive has no folder of its own around the words
    return target


def test_archive_by_path(words, tmp_path):
    archive, root = pack(words, tmp_path / "speech_commands_v0.02.tar.gz"), tmp_path / "root"
    data = load_speech(str(archive), root=root)
    assert data.name == "speech_commands_v0"
    assert torch.equal(data.train_x, load_speech(str(words)).train_x)
    (made,) = root.iterdir()  # nothing half done is left beside it
    before = made.stat().st_mtime_ns
    assert torch.equal(data.test_x, load_speech(str(archive), root=root).test_x)
    assert made.stat().st_mtime_ns == before


def test_an_extraction_that_was_killed_is_done_again(words, tmp_path):
    archive = pack(words, tmp_path / "w.tar.gz")
    half = tmp_path / f".w-{archive.stat().st_size}.part" / "go"
    half.mkdir(parents=True)
    (half / "left.wav").write_bytes(b"")
    folder = extract(archive, tmp_path)
    assert not half.exists()
    assert not (folder / "go" / "left.wav").exists()


def test_archives_that_are_cut_short_or_reach_outside_are_refused(words, tmp_path):
    archive = pack(words, tmp_path / "whole.tar.gz")
    short = tmp_path / "short.tar.gz"
    short.write_bytes(archive.read_bytes()[:-2000])
    outside = tmp_path / "outside.tar.gz"
    with tarfile.open(outside, "w:gz") as tar:
        tar.add(words / "LICENSE", "../escaped")
    for bad in (short, outside):
        with pytest.raises(Refused, match=f"{re.escape(str(bad))}: cannot be extracted"):
            load_speech(str(bad), root=tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []
    assert not (tmp_path / "escaped").exists()


def test_speechcommands_is_downloaded_once(words, tmp_path, monkeypatch):
    archive = pack(words, tmp_path / "speech_commands_v0.02.tar.gz")
    source = (archive.as_uri(), hashlib.sha256(archive.read_bytes()).hexdigest())
    monkeypatch.setitem(speech_data.SPEECH_COMMANDS, "all", source)
    data = load_speech("speechcommands", root=tmp_path / "root", words="all")
    assert (data.name, data.classes) == ("speechcommands", ["go", "stop"])
    archive.unlink()
    assert torch.equal(load_speech("speechcommands", root=tmp_path / "root", words="all").train_x, data.train_x)


def test_a_failed_download_leaves_nothing(tmp_path):
    target = tmp_path / "here.tar.gz"
    with pytest.raises(Refused, match=r"gone\.tar\.gz: cannot be downloaded to"):
        download((tmp_path / "gone.tar.gz").as_uri(), target, "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_is_not_what_it_should_be_is_refused(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"other bytes")
    with pytest.raises(Refused, match=r"cannot be downloaded to .*: invalid hash value"):
        download(source.as_uri(), target, "0" * 64)
    assert list(tmp_path.iterdir()) == [source]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    return load_speech("digits", root=root), root


def test_embedded_digits(digits):
    data, root = digits
    assert (data.train_x.shape, data.test_x.shape) == ((3080, 16_000), (600, 16_000))
    assert data.classes[0] == "zero"
    assert torch.bincount(data.train_y).tolist() == [308] * 10
    assert torch.bincount(data.test_y).tolist() == [60] * 10
    for clips in (data.train_x, data.test_x):
        assert clips.abs().amax(1).min() > 0.02  # nobody is silent
        assert (clips.abs() > 0.995).float().mean(1).max() < 0.01  # and nobody overdrives
        assert (clips[:, :300] == 0).all()  # nothing is cut off
    with np.load(root / speech_data.DIGITS_CACHE, allow_pickle=False) as file:
        assert not set(file["train_voice"]) & set(file["test_voice"])
        assert (np.percentile(file["train_length"], [1, 99]) / 16_000).tolist() == pytest.approx([0.25, 0.8], abs=0.1)
    again = load_speech("digits", root=root)
    assert torch.equal(again.train_x, data.train_x)
    assert [f.name for f in root.iterdir()] == [speech_data.DIGITS_CACHE]


def test_digits_sound_alike_within_a_class_and_different_across(digits):
    """Nearest class mean of crude spectra, on voices that the means have not heard: far above chance."""
    data, _ = digits
    spectra = [torch.fft.rfft(x.unflatten(1, (20, 800))).abs()[..., :200] for x in (data.train_x, data.test_x)]
    bands = [s.unflatten(2, (20, 10)).mean(3).log1p().flatten(1) for s in spectra]
    train, test = (torch.nn.functional.normalize(b) for b in bands)
    means = torch.stack([train[data.train_y == label].mean(0) for label in range(10)])
    assert ((test @ means.T).argmax(1) == data.test_y).float().mean() > 0.5


def test_synthesis_is_the_same_in_every_process():
    """Voices with breath too, whose noise the library would otherwise seed from the clock."""
    say = (
        "from runner.data.spoken_digits import synthesise\n"
        "import hashlib, numpy\n"
        "clips = synthesise(['m3', 'f5', 'victor'], 1, seed=3)\n"
        "print(hashlib.sha256(clips['audio'].tobytes() + clips['length'].tobytes()).hexdigest(), len(clips['label']))"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", say], cwd=EXAMPLES, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert first == second
    assert first.split()[1] == "30"


def test_a_damaged_cache_is_named(tmp_path):
    (tmp_path / speech_data.DIGITS_CACHE).write_bytes(b"not a zip file")
    with pytest.raises(Refused, match=f"{re.escape(str(tmp_path / speech_data.DIGITS_CACHE))}: .* delete the file"):
        load_speech("digits", root=tmp_path)
