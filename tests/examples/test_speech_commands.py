"""Speech Commands as the paper has it, against librosa and a transcription in numpy, on files of the same layout."""

import librosa
import numpy as np
import pytest
import reproduce
import runner.data.speech as speech_data
import soundfile
import speech
import torch
from runner.augment.commands import CommandsAugment, change_length, shift_frames, vocode
from runner.data.commands import COMMANDS, TWELVE
from runner.data.speech import load_speech
from runner.errors import Refused
from runner.inputs import Decibels
from test_speech_data import pack

RATE = 16_000


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """The ten commands, two other words, both lists and two recordings of noise, as version 0.01 lies on disk."""
    folder, draw = tmp_path_factory.mktemp("root") / "commands", np.random.default_rng(0)
    for i, word in enumerate((*COMMANDS, "bed", "cat")):
        (folder / word).mkdir(parents=True)
        for speaker in range(5):
            clip = 0.1 * draw.standard_normal(RATE if speaker else 9000)  # the first of each word is short
            clip += 0.3 * np.sin(2 * np.pi * (300 + 100 * i) * np.arange(len(clip)) / RATE)
            soundfile.write(folder / word / f"s{speaker}_nohash_0.wav", clip, RATE)
    (folder / "_background_noise_").mkdir()
    for name, seconds in (("a", 1.5), ("b", 2.25)):
        noise = 0.05 * draw.standard_normal(round(seconds * RATE))
        soundfile.write(folder / "_background_noise_" / f"{name}.wav", noise, RATE)
    clips = [f"{path.parent.name}/{path.name}\n" for path in sorted(folder.glob("[!_]*/*.wav"))]
    (folder / "testing_list.txt").write_text("".join(clip for clip in clips if "s1_" in clip), encoding="utf-8")
    (folder / "validation_list.txt").write_text("".join(clip for clip in clips if "s2_" in clip), encoding="utf-8")
    return folder


def test_twelve_classes(commands):
    data = load_speech(str(commands), words="twelve")
    assert data.classes == TWELVE
    assert TWELVE == ["unknown", "silence", "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]
    # Of twelve words with five clips each, three train and one tests; a tenth of 36 more is silent.
    assert torch.bincount(data.train_y).tolist() == [6, 3, *[3] * 10]
    assert torch.bincount(data.test_y, minlength=12).tolist() == [2, 0, *[1] * 10]
    silent = data.train_x.abs().amax(1) == 0
    assert torch.equal(silent, data.train_y == TWELVE.index("silence"))
    for i, word in enumerate((*COMMANDS, "bed", "cat")):
        clip, _ = soundfile.read(commands / word / "s1_nohash_0.wav", dtype="float32")
        (row,) = (data.test_x == torch.from_numpy(clip)).all(1).nonzero().flatten()
        assert data.classes[data.test_y[row]] == (word if i < 10 else "unknown")


def test_short_clips_are_padded_at_their_end(commands):
    data = load_speech(str(commands), words="twelve")
    clip, _ = soundfile.read(commands / "go" / "s0_nohash_0.wav", dtype="float32")
    expected = torch.from_numpy(np.concatenate([clip, np.zeros(7000, np.float32)]))
    assert (data.train_x == expected).all(1).sum() == 1


def test_by_name_the_version_of_the_paper_is_taken(commands, tmp_path, monkeypatch):
    archive = pack(commands, tmp_path / "speech_commands_v0.01.tar.gz")
    assert "speech_commands_v0.01" in speech_data.SPEECH_COMMANDS["twelve"][0]
    assert "speech_commands_v0.02" in speech_data.SPEECH_COMMANDS["all"][0]
    assert reproduce.PLACES["speechcommands"] == ("{root}/speech_commands_v0.01.tar.gz",)
    data = load_speech("speechcommands", root=tmp_path)
    assert (data.name, data.classes) == ("speechcommands", TWELVE)
    assert torch.equal(data.train_x, load_speech(str(archive), root=tmp_path, words="twelve").train_x)
    (tmp_path / "speech_commands_v0.02.tar.gz").write_bytes(archive.read_bytes())
    assert load_speech("speechcommands", root=tmp_path, words="all").classes == sorted((*COMMANDS, "bed", "cat"))


def test_other_folders_have_no_twelve(tmp_path):
    for word in ("yes", "perhaps"):
        (tmp_path / word).mkdir()
        soundfile.write(tmp_path / word / "a.wav", np.zeros(100), RATE)
    with pytest.raises(Refused, match="wants Speech Commands, and there is no word 'no' in it"):
        load_speech(str(tmp_path), words="twelve")
    with pytest.raises(Refused, match="digits are none of them"):
        load_speech("digits", words="twelve")


def clips(rows=4):
    draw = torch.Generator().manual_seed(0)
    x = 0.3 * torch.randn(rows, RATE, generator=draw, dtype=torch.float64)
    return x * torch.linspace(0, 1, RATE) ** 2  # loud at its end, so that a wrong edge shows


def by_librosa(x):
    power = librosa.feature.melspectrogram(y=x.numpy(), sr=RATE, n_mels=32, pad_mode="reflect")
    return np.stack([librosa.power_to_db(each, ref=np.max) for each in power])


def test_the_input_is_raw_decibels():
    decibels = Decibels().double()(clips())
    assert decibels.shape == (4, 1, 32, 32)
    np.testing.assert_allclose(decibels[:, 0], by_librosa(clips()), atol=1e-5)
    assert decibels.amax((1, 2, 3)).tolist() == [0] * 4
    assert decibels.min() >= -80
    assert torch.equal(Decibels()(torch.zeros(2, RATE)), torch.zeros(2, 1, 32, 32))


@pytest.mark.parametrize("scale", [-0.2, -0.1134, 0.0, 0.0871, 0.2])
def test_length_by_interpolation_from_the_start(scale):
    changed = change_length(clips(), torch.full((4, 1), 1 + scale, dtype=torch.float64))
    for x, found in zip(clips().numpy(), changed.numpy(), strict=True):
        read = np.interp(np.arange(0, RATE, 1 / (1 + scale)), np.arange(RATE), x)[:RATE]
        np.testing.assert_allclose(found, np.pad(read, (0, RATE - len(read))), atol=1e-9)


@pytest.mark.parametrize("rate", [0.8, 0.93, 1.0, 1.071, 1.2])
def test_the_vocoder_is_librosas(rate):
    spectrum = Decibels().double().spectrum(clips())
    stretched, length = vocode(spectrum, torch.full((4, 1), rate, dtype=torch.float64))
    expected = librosa.phase_vocoder(spectrum.numpy(), rate=rate, hop_length=512)
    assert length.flatten().tolist() == [expected.shape[2]] * 4
    np.testing.assert_allclose(stretched[..., : expected.shape[2]], expected, atol=1e-7)


@pytest.mark.parametrize("shift", range(-8, 9))
@pytest.mark.parametrize("length", [27, 32, 40])
def test_frames_shift_within_the_stretched_spectrum(shift, length):
    x = torch.arange(1.0, 41.0).expand(1, 3, 40)
    found = shift_frames(x, torch.tensor([[length]]), torch.tensor([[shift]]), frames=32)
    row = list(range(1, length + 1))
    row = row[shift:] + [0] * shift if shift >= 0 else [0] * -shift + row[:shift]
    assert found.tolist() == [[(row + [0] * 32)[:32]] * 3]


class Chain:
    """The augmentation of one clip with its draws given, in numpy and librosa."""

    def spectrum(self, x, amplitude, length, rate, shift):
        x = np.interp(np.arange(0, RATE, 1 / length), np.arange(RATE), amplitude * x)[:RATE]
        spectrum = librosa.stft(np.pad(x, (0, RATE - len(x))), n_fft=2048, hop_length=512, pad_mode="reflect")
        if rate != 1:
            spectrum = librosa.phase_vocoder(spectrum, rate=rate, hop_length=512)
        left, right = max(-shift, 0), max(shift, 0)
        spectrum = np.pad(spectrum, ((0, 0), (left, right)))
        spectrum = (spectrum[:, right:] if right else spectrum[:, : spectrum.shape[1] - left])[:, :32]
        return np.pad(spectrum, ((0, 0), (0, 32 - spectrum.shape[1])))

    def __call__(self, row):
        clip, *rest = row
        spectrum = (1 - rest[9]) * self.spectrum(clip, *rest[:4]) + rest[9] * self.spectrum(rest[4], *rest[5:9])
        mel = librosa.filters.mel(sr=RATE, n_fft=2048, n_mels=32) @ np.abs(spectrum) ** 2
        return librosa.power_to_db(mel, ref=np.max)


def test_the_whole_chain_is_the_papers():
    noise = 0.1 * torch.randn(3 * RATE + 500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    augment, rows = CommandsAugment(Decibels(), noise).double(), []
    assert augment.noise.shape == (3, RATE)
    inner = augment._augment
    augment._augment = lambda *row: rows.append(row) or inner(*row)
    x = torch.cat([clips(23), torch.zeros(1, RATE, dtype=torch.float64)])
    found = augment(x, torch.Generator().manual_seed(2))
    columns = [torch.cat(column).numpy() for column in zip(*rows, strict=True)]
    assert len(columns) == 11
    one = [columns[i] if i in (0, 5) else columns[i][:, 0] for i in range(11)]
    for i in range(24):
        row = [column[i] for column in one]
        row[4], row[9] = int(row[4]), int(row[9])
        np.testing.assert_allclose(found[i, 0], Chain()(row), atol=1e-4, err_msg=str(i))


def test_every_change_comes_to_half_of_the_clips(monkeypatch):
    augment, rows = CommandsAugment(Decibels(), torch.ones(2 * RATE)), []
    monkeypatch.setattr(augment, "_augment", lambda *row: rows.append(row) or torch.zeros(len(row[0]), 1, 32, 32))
    augment(torch.zeros(20_000, 1).expand(-1, RATE), torch.Generator().manual_seed(0))
    columns = [torch.cat(column)[:, 0] for i, column in enumerate(zip(*rows, strict=True)) if i not in (0, 5)]
    bounds = [(1, 0.7, 1.1), (1, 0.8, 1.2), (1, 0.8, 1.2), (0, -8, 8)] * 2 + [(0, 0, 0.45)]
    for column, (otherwise, low, high) in zip(columns, bounds, strict=True):
        changed = column[column != otherwise]
        share = 0.5 * 16 / 17 if high == 8 else 0.5  # a shift by none is one of seventeen
        assert len(changed) / 20_000 == pytest.approx(share, abs=0.015)  # four deviations
        assert changed.min().item() == pytest.approx(low, abs=0.01)
        assert changed.max().item() == pytest.approx(high, abs=0.01)
        assert changed.double().mean().item() == pytest.approx((low + high) / 2, abs=0.2 if high == 8 else 0.005)
    assert not torch.equal(columns[0], columns[4])  # the noise is changed on its own


@pytest.mark.parametrize("augment", ["default", "none"])
def test_the_command_trains_on_them(runs, commands, tmp_path, augment):
    (run,) = runs(speech, "--data", commands, "--words", "twelve", "--augment", augment, "--mix", "mixup",
                  "--epochs", 1, "--batch-size", 16, "--seeds", 1, "--width", 2, "--probe", "sgd")  # fmt: skip
    assert run["config"]["words"] == "twelve"
    assert len(run["metrics"]["sgd_probe"]) == 7


def test_without_noise_the_paper_cannot_be_followed(refusal, commands, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for entry in commands.iterdir():
        if entry.name != "_background_noise_":
            (bare / entry.name).symlink_to(entry)
    assert "no _background_noise_ in it" in refusal(speech, "--data", bare, "--words", "twelve", "--batch-size", 8)
