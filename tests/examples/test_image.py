import pickle

import image
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from runner.augment.image import SimCLRAugment, crop_and_flip, luminance, rotate_hue
from runner.data.image import load_image
from runner.encoders import build_resnet
from runner.errors import Refused
from torchvision.transforms.v2.functional import rgb_to_grayscale

TINY = ("--epochs", 1, "--batch-size", 256, "--seeds", 1, "--width", 2)


@pytest.mark.parametrize("method", ["npair", "moco"])
def test_methods_with_every_mix(runs, tmp_path, method):
    done = runs(image, "--method", method, "--mix", "none", "mixup", "cutmix", *TINY)
    assert [run["mix"] for run in done] == ["none", "mixup", "cutmix"]
    assert all(0 < run["metrics"][name] <= 1 for run in done for name in ("probe_accuracy", "knn_accuracy"))
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    sheets = [path.parent.name for path in sorted((tmp_path / "out").rglob("mixed.png"))]
    assert sheets == [f"{method}-cutmix-seed0", f"{method}-mixup-seed0"]


@pytest.fixture
def photos(tmp_path):
    """Two classes that differ in colour, images of several sizes and formats."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 3)):
        for name, tint in (("sea", (0, 0, 200)), ("wood", (0, 150, 0))):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = draw.integers(0, 55, (16, 16 + 4 * (i % 2), 3)).astype(np.uint8)
                Image.fromarray(noise + np.uint8(tint)).save(folder / f"{i}.{'png' if i % 3 else 'jpg'}")
    return tmp_path / "photos"


def test_own_folder(runs, photos):
    data = load_image(str(photos))
    assert data.classes == ["sea", "wood"]
    assert (data.train_x.shape, data.test_x.shape) == ((24, 3, 16, 16), (6, 3, 16, 16))
    assert data.train_x.dtype == torch.uint8
    blue = data.train_x[:, 2].float().mean((1, 2)) > 150
    assert torch.equal(blue, data.train_y == 0)
    assert load_image(str(photos), size=8).test_x.shape == (6, 3, 8, 8)
    done = runs(
        image, "--data", photos, "--epochs", 2, "--batch-size", 12, "--seeds", 1, "--width", 4, "--mix", "mixup"
    )
    assert done[0]["metrics"]["probe_accuracy"] > 0.8


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_in_its_published_format(tmp_path, monkeypatch, runs, name):
    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)  # of the real files' checksums
    label, classes = ("labels", 10) if name == "cifar10" else ("fine_labels", 100)
    draw = np.random.default_rng(0)
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    images = {}
    for file, _ in kind.train_list + kind.test_list:
        rows = draw.integers(0, 256, (60, 3072)).astype(np.uint8)
        images[file] = (rows, [i % classes for i in range(60)])
        (folder / file).write_bytes(pickle.dumps({"data": rows, label: images[file][1]}))
    names = {kind.meta["key"]: [f"class {i}" for i in range(classes)]}
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps(names))

    data = load_image(name, root=tmp_path)
    rows, labels = images[kind.test_list[0][0]]
    assert torch.equal(data.test_x, torch.from_numpy(rows).view(60, 3, 32, 32))
    assert data.test_y.tolist() == labels
    assert len(data.train_x) == 60 * len(kind.train_list)
    assert len(data.classes) == classes
    if name == "cifar10":
        options = (
            "--data-root",
            tmp_path,
            "--arch",
            "cnn",
            "--width",
            2,
            "--epochs",
            1,
            "--batch-size",
            100,
            "--seeds",
            1,
        )
        assert len(runs(image, "--data", name, *options)) == 2


def test_refusals_name_what_is_wrong(tmp_path, photos, refusal):
    def error(folder):
        with pytest.raises(Refused) as refused:
            load_image(str(folder))
        return str(refused.value)

    assert "no such folder" in error(tmp_path / "absent")
    assert "train/" in error(tmp_path)
    (photos / "test" / "sky").mkdir()
    assert "sky" in error(photos)
    (photos / "test" / "sky").rmdir()
    (photos / "train" / "sky").mkdir()
    assert "sky: no image" in error(photos)
    (photos / "train" / "sky").rmdir()
    (photos / "train" / "sea" / "5.png").write_bytes(b"no picture")
    assert "5.png" in error(photos)
    (photos / "train" / "sea" / "5.png").write_bytes(b"")
    assert "5.png" in error(photos)
    (photos / "train" / "sea" / "5.png").unlink()
    assert "--batch-size 256" in refusal(image, "--data", photos, "--batch-size", 256)
    assert "--image-size" in refusal(image, "--data", photos, "--image-size", 0)


@pytest.fixture
def colours():
    return torch.rand(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def test_augmentation_keeps_to_its_range_and_generator(colours):
    augment = SimCLRAugment()
    first, second = (augment(colours, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == colours.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert not torch.equal(first, augment(colours, torch.Generator().manual_seed(2)))
    grey = (first.amax(1) - first.amin(1)).amax((1, 2)) < 1e-5
    assert 0 < grey.sum() < 30  # a fifth of 64


def test_crop_of_everything_is_the_image_and_flip_its_mirror(colours):
    draw = torch.Generator().manual_seed(0)
    square = crop_and_flip(torch.linspace(0, 1, 12).expand(64, 1, 12, 12), 1.0, True, draw)
    rising = square[:, 0, 0, -1] > square[:, 0, 0, 0]
    assert 10 < rising.sum() < 54
    # On a ramp, a crop is a ramp: its slope tells the share of the width that was cut out.
    ramp = torch.linspace(0, 1, 120).expand(500, 1, 120, 120)
    cut = crop_and_flip(ramp, 0.2, False, draw)
    width = cut[:, 0, 60, -1] - cut[:, 0, 60, 0]
    height = crop_and_flip(ramp.mT, 0.2, False, torch.Generator().manual_seed(3))
    assert width.min() > 0.2**0.5 * 0.75**0.5 - 0.02
    assert width.max() > 0.9
    assert (height[:, 0, -1, 60] > height[:, 0, 0, 60]).all()
    lefts = cut[:, 0, 60, 0]
    assert lefts.min() < 0.02
    assert (lefts + width).max() > 0.98


def test_grey_and_hue_against_their_definitions(colours):
    torch.testing.assert_close(luminance(colours), rgb_to_grayscale(colours), atol=2e-3, rtol=0)
    torch.testing.assert_close(rotate_hue(colours, torch.zeros(64)), colours)
    third = rotate_hue(colours, torch.full((64,), 1 / 3))  # red to green, green to blue, blue to red
    torch.testing.assert_close(third, colours[:, [2, 0, 1]])
    torch.testing.assert_close(rotate_hue(colours, torch.full((64,), 0.07)).mean(1), colours.mean(1))


@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 64)])
def test_resnet_stems(channels, size):
    net = build_resnet("resnet18", channels, small_images=size <= 32).eval()
    with torch.no_grad():
        assert net(torch.zeros(2, channels, size, size)).shape == (2, net.features)
    assert net.conv1.stride == ((1, 1) if size <= 32 else (2, 2))
