import pytest
import speech
import torch
from runner.data.speech import load_speech
from runner.domains.speech import spectrograms
from runner.inputs import LogMel
from test_speech_data import tone, words  # noqa: F401

TINY = ("--epochs", 1, "--batch-size", 8, "--seeds", 1)


@pytest.mark.parametrize("augment", ["none", "default"])
def test_own_folder_with_every_mix(runs, words, tmp_path, augment):  # noqa: F811
    done = runs(speech, "--data", words, "--mix", "none", "mixup", "cutmix", "--augment", augment, *TINY)
    assert [run["mix"] for run in done] == ["none", "mixup", "cutmix"]
    for run in done:
        assert 0 <= run["metrics"]["probe_accuracy"] <= 1
        assert run["config"]["temperature"] == 0.5
        assert run["config"]["augment"] == augment
    sheets = [path.parent.name for path in sorted((tmp_path / "out").rglob("mixed.png"))]
    assert sheets == ["npair-cutmix-seed0", "npair-mixup-seed0"]
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("method", ["simclr", "moco", "byol", "simsiam"])
def test_methods(runs, words, method):  # noqa: F811
    queue = ("--queue", 16) if method == "moco" else ()
    done = runs(speech, "--data", words, "--method", method, "--mix", "mixup", *queue, *TINY)
    assert done[0]["method"] == method


@pytest.mark.parametrize("arch", [("resnet18",), ("resnet14", "--width", 2)])
def test_resnets_take_one_channel(runs, words, arch):  # noqa: F811
    options = ("--data", words, "--arch", *arch, "--mix", "mixup", "--augment", "none")
    assert runs(speech, *options, *TINY)[0]["config"]["arch"] == arch[0]


def test_embedded_digits_with_one_command(runs, tmp_path):
    done = runs(speech, "--data-root", tmp_path / "root", "--epochs", 2, "--seeds", 1, "--mix", "mixup",
                "--augment", "none")  # fmt: skip
    assert done[0]["metrics"]["probe_accuracy"] > 0.2  # chance is 0.1
    assert done[0]["config"]["data"] == "digits"


def test_without_augmentation_spectrograms_are_made_once(words):  # noqa: F811
    data = load_speech(str(words))
    mel = LogMel()
    assert torch.equal(spectrograms(data.train_x, mel), mel(data.train_x))


def test_bad_input_ends_with_one_line(refusal, words, tmp_path):  # noqa: F811
    assert "no such folder or archive" in refusal(speech, "--data", tmp_path / "none")
    assert "--batch-size 256: larger than the 21 training rows" in refusal(speech, "--data", words, "--batch-size", 256)
    (words / "go" / "speaker0_nohash_0.wav").write_bytes(b"")
    assert "speaker0_nohash_0.wav: not a readable sound file" in refusal(speech, "--data", words)
