import librosa
import numpy as np
import pytest
import torch
from runner.augment.audio import AudioAugment, Stretch, coloured_noise, cut_noise, read_frames, resample_and_shift
from runner.inputs import LogMel

RATE = 16_000


def tones(*frequencies):
    seconds = torch.arange(RATE, dtype=torch.float64) / RATE
    return torch.stack([0.3 * torch.sin(2 * torch.pi * f * seconds) for f in frequencies]).float()


def bursts(*frequencies, start=6000, stop=10_000):
    x = tones(*frequencies)
    x[:, :start] = x[:, stop:] = 0
    return x


def pitch(x):
    return np.abs(np.fft.rfft(x.numpy())).argmax(-1) * (RATE / x.shape[-1])


@pytest.fixture
def clips():
    draw = torch.Generator().manual_seed(0)
    return torch.randn(5, RATE, generator=draw) * torch.linspace(0.001, 0.3, 5)[:, None] + tones(
        200, 500, 900, 2000, 5000
    )


def test_mel_agrees_with_librosa(clips):
    mel = LogMel()
    ours = mel.power(mel.spectrum(clips))
    theirs = librosa.feature.melspectrogram(
        y=clips.numpy(), sr=RATE, n_fft=2048, hop_length=512, n_mels=32, power=2.0, center=True, pad_mode="constant"
    )
    assert ours.shape == (5, 32, 32)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_decibels_agree_with_librosa(clips):
    ours = LogMel()(clips.repeat(5, 1))  # more rows than a block has
    power = librosa.feature.melspectrogram(y=clips.numpy(), sr=RATE, n_fft=2048, hop_length=512, n_mels=32)
    theirs = np.stack([librosa.power_to_db(p, ref=np.max, top_db=80) for p in power])
    assert ours.shape == (25, 1, 32, 32)
    np.testing.assert_allclose(ours[:, 0] * 20 - 40, np.tile(theirs, (5, 1, 1)), atol=1e-2)


def test_loudness_drops_out_and_silence_is_silent(clips):
    mel = LogMel()
    torch.testing.assert_close(mel(clips), mel(0.25 * clips), atol=1e-4, rtol=0)
    assert torch.equal(mel(torch.zeros(2, RATE)), torch.full((2, 1, 32, 32), -2.0))
    assert mel(clips).amax((1, 2, 3)).tolist() == pytest.approx([2.0] * 5)


def test_shift_moves_by_so_many_samples(clips):
    moved = resample_and_shift(clips, torch.ones(5, 1), torch.tensor([[0.0], [700.0], [-4096.0], [1.0], [16_000.0]]))
    torch.testing.assert_close(moved[0], clips[0])
    torch.testing.assert_close(moved[1, 700:], clips[1, :-700])
    torch.testing.assert_close(moved[2, :-4096], clips[2, 4096:])
    torch.testing.assert_close(moved[3, 1:], clips[3, :-1])
    assert moved[1, :700].eq(0).all()
    assert moved[2, -4096:].eq(0).all()
    assert moved[4].eq(0).all()


def test_longer_is_slower_and_lower():
    x = bursts(1000, 1000)
    changed = resample_and_shift(x, torch.tensor([[1.25], [0.8]]), torch.zeros(2, 1))
    assert pitch(changed) == pytest.approx([800, 1250], abs=5)
    loud = changed.abs() > 1e-3
    assert loud.sum(1).tolist() == pytest.approx([5000, 3200], rel=0.02)
    # The middle of the burst is the middle of the clip, and stays there.
    centre = (loud * torch.arange(RATE)).sum(1) / loud.sum(1)
    assert centre.tolist() == pytest.approx([8000, 8000], abs=5)


def test_frames_at_their_own_pace_are_the_same(clips):
    x = LogMel()(clips)
    torch.testing.assert_close(read_frames(x, torch.ones(5, 1)), x)


@pytest.mark.parametrize("rate", [0.8, 1.1, 1.2])
def test_frames_are_read_between_as_on_a_line(clips, rate):
    x = LogMel()(clips)
    read = read_frames(x, torch.full((5, 1), rate))
    at = 15.5 + (np.arange(32) - 15.5) * rate
    expected = [[np.interp(at, np.arange(32), band) for band in picture] for picture in x[:, 0].numpy()]
    np.testing.assert_allclose(read[:, 0], expected, atol=1e-4)


def test_stretch_changes_the_time_and_not_the_pitch():
    x = LogMel()(bursts(1000, start=4000, stop=12_000).repeat(2, 1))
    stretched = read_frames(x, torch.tensor([[0.8], [1.2]]))[:, 0]
    assert (stretched.amax(2).argmax(1) == x[0, 0].amax(1).argmax()).all()
    loud = (stretched.amax(1) > 1).sum(1) / (x[0, 0].amax(0) > 1).sum()
    assert loud.tolist() == pytest.approx([1 / 0.8, 1 / 1.2], abs=0.1)


def test_every_other_spectrogram_is_stretched():
    x = LogMel()(bursts(1000)).repeat(400, 1, 1, 1)
    stretch = Stretch()
    changed = stretch(x, torch.Generator().manual_seed(0))
    assert torch.equal(changed, stretch(x, torch.Generator().manual_seed(0)))
    same = (changed - x).abs().amax((1, 2, 3)) < 1e-4
    assert 0.4 < same.float().mean() < 0.6
    assert torch.unique(changed[~same], dim=0).shape[0] == int((~same).sum())


def test_augment_is_the_same_under_the_same_generator(clips):
    augment, before = AudioAugment(), clips.clone()
    first, second, other = (augment(clips, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert torch.equal(clips, before)
    assert first.shape == clips.shape
    assert first.isfinite().all()
    assert not torch.equal(first, other)
    torch.manual_seed(1)
    by_default = augment(clips)
    torch.manual_seed(1)
    assert torch.equal(by_default, augment(clips))


def test_every_clip_is_changed_its_own_way():
    x = tones(400).repeat(64, 1)
    changed = AudioAugment()(x, torch.Generator().manual_seed(0))
    assert torch.unique(changed, dim=0).shape[0] > 50  # one in sixteen is left as it is


def test_noise_falls_on_half_of_the_clips_and_no_louder_than_stated():
    draw = torch.Generator().manual_seed(0)
    x = bursts(1000, start=7900, stop=8100).repeat(600, 1)
    changed = AudioAugment()(x, draw)
    quiet = changed[:, :1500]  # where no shift can bring the burst
    noisy = quiet.abs().amax(1) > 1e-6
    assert 0.42 < noisy.float().mean() < 0.58
    level = x[0].square().mean().sqrt()
    share = quiet[noisy].square().mean(1).sqrt() / level
    assert share.median().item() == pytest.approx(0.225, abs=0.05)
    assert share.max() < 0.45 * 2  # a stretch of noise may be louder than its piece as a whole


def test_recorded_noise_is_what_is_mixed_in():
    hum = tones(123)[0]
    changed = AudioAugment(hum)(bursts(3000, start=7900, stop=8100).repeat(40, 1), torch.Generator().manual_seed(0))
    noisy = changed[:, :1500].abs().amax(1) > 1e-6
    assert noisy.any()
    smooth = torch.nn.functional.avg_pool1d(changed[noisy][:, None], 16, stride=1)[:, 0]
    assert pitch(smooth) == pytest.approx([123] * int(noisy.sum()), abs=3)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_silence_stays_silent_for_any_number_of_rows(rows):
    changed = AudioAugment()(torch.zeros(rows, RATE), torch.Generator().manual_seed(0))
    assert torch.equal(changed, torch.zeros(rows, RATE))


def test_noise_has_the_stated_colours():
    track = coloured_noise(pieces=3, seconds=4).view(3, -1)
    assert track.square().mean(1).tolist() == pytest.approx([1, 1, 1], rel=1e-3)
    power = torch.fft.rfft(track).abs().square()
    octave = [power[:, 4 * f : 8 * f].mean(1) for f in (200, 400, 800, 1600)]
    slopes = (octave[3] / octave[0]).log2() / 3
    assert slopes.tolist() == pytest.approx([0, -1, -2], abs=0.1)


def test_pieces_of_noise_wrap_round():
    pieces = cut_noise(torch.arange(10.0), n=50, samples=25, generator=torch.Generator().manual_seed(0))
    assert pieces.shape == (50, 25)
    assert torch.equal(pieces.diff(dim=1) % 10, torch.ones(50, 24))
    assert len(pieces[:, 0].unique()) == 10
