import pickle
from itertools import permutations
from types import SimpleNamespace

import image
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from runner.augment.image import (
    SimCLRAugment,
    brighten,
    contrast,
    crop_and_flip,
    jitter_colours,
    luminance,
    rotate_hue,
    saturate,
)
from runner.data.dataset import Dataset
from runner.data.image import load_image
from runner.domains.image import IMAGES
from runner.encoders import build_encoder, build_resnet
from runner.errors import Refused
from runner.inputs import Normalize
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2.functional import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    normalize,
    resized_crop,
    rgb_to_grayscale,
)

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


def test_the_weak_augmentation_leaves_the_colours(colours):
    weak = SimCLRAugment(colours=False)(colours, torch.Generator().manual_seed(1))
    assert torch.equal(weak, crop_and_flip(colours, 0.2, True, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(("augment", "moves", "recolours"), [("none", 0, 0), ("weak", 1, 0), ("default", 1, 1)])
def test_what_each_augmentation_changes(augment, moves, recolours):
    settings = SimpleNamespace(augment=augment, arch="cnn", width=1, device=torch.device("cpu"))
    flat = torch.tensor([200, 90, 40], dtype=torch.uint8)[:, None, None].expand(20, 3, 16, 16)
    ramp = torch.arange(0, 256, 16, dtype=torch.uint8).expand(20, 3, 16, 16)
    for pixels, changes in ((flat, recolours), (ramp, moves)):
        task = IMAGES.task(settings, Dataset("photos", pixels, torch.arange(20), pixels, torch.arange(20), []))
        view = task.augmented(pixels)
        assert torch.allclose(view, task.to_input(pixels), atol=1e-4) == (not changes)


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
    for turns in (0.0, 0.07, -0.1, 1 / 3):
        expected = adjust_hue(colours, turns)
        torch.testing.assert_close(rotate_hue(colours, torch.full((64, 1, 1, 1), turns)), expected, atol=1e-5, rtol=0)
    for corner in (torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)):
        torch.testing.assert_close(rotate_hue(corner, torch.full((1, 1, 1, 1), 0.1)), corner)


def test_each_change_of_colour_is_torchvisions(colours):
    for change, peer in ((brighten, adjust_brightness), (contrast, adjust_contrast), (saturate, adjust_saturation)):
        for amount in (0.6, 1.4):
            expected = peer(colours, amount)
            torch.testing.assert_close(change(colours, torch.full((64, 1, 1, 1), amount)), expected, atol=2e-3, rtol=0)


def test_changes_of_colour_come_in_every_order(monkeypatch):
    names = iter("bcsh")
    marks = {name: lambda x, _amount, k=k: 5 * x + k for k, name in enumerate(names, 1)}  # an order is a number
    monkeypatch.setattr("runner.augment.image.CHANGES", tuple(marks.values()))
    monkeypatch.setattr("runner.augment.image.luminance", lambda x: x)
    seen = jitter_colours(torch.zeros(20_000, 3, 1, 1), torch.Generator().manual_seed(0))[:, 0, 0, 0].long()
    values, counts = seen.unique(return_counts=True)
    orders = [sum(k * 5 ** (3 - i) for i, k in enumerate(order)) for order in permutations(range(1, 5))]
    assert values.tolist() == [0, *sorted(orders)]
    assert abs(counts[0] / 20_000 - 0.2) < 0.01
    assert counts[1:].min() > 0.8 * counts[1:].max()


def test_crops_are_those_of_torchvision():
    """Same areas and sides in distribution, and the same pixels for the same box."""
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 32)
    x = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32)]).expand(20_000, 2, 32, 32)
    cut = crop_and_flip(x, 0.2, False, generator)
    w = ((cut[:, 0, 0, -1] - cut[:, 0, 0, 0]) * 31).round() + 1
    h = ((cut[:, 1, -1, 0] - cut[:, 1, 0, 0]) * 31).round() + 1
    torch.manual_seed(0)
    boxes = torch.tensor(
        [RandomResizedCrop.get_params(x[0], [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(20_000)]
    ).float()
    ours, theirs = (w * h).numpy() / 1024, (boxes[:, 2] * boxes[:, 3]).numpy() / 1024
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.006)
    assert ours.mean() == pytest.approx(0.55, abs=0.01)
    for share in (0.1, 0.5, 0.9):
        assert np.quantile(ours, share) == pytest.approx(np.quantile(theirs, share), abs=0.015)
        assert np.quantile(w, share) == pytest.approx(np.quantile(boxes[:, 3], share), abs=1)
    image = torch.rand(1, 3, 32, 32, generator=generator)
    left, top = (cut[0, 0, 0, 0] * 31).round(), (cut[0, 1, 0, 0] * 31).round()
    box = [int(v) for v in (top, left, h[0], w[0])]
    again = crop_and_flip(
        torch.cat([image, x[1:, :1].expand(-1, 3, -1, -1)]), 0.2, False, torch.Generator().manual_seed(0)
    )
    expected = resized_crop(image, *box, [32, 32], antialias=False)
    torch.testing.assert_close(again[:1], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ("cifar100", (0.5071, 0.4867, 0.4408), (0.2009, 0.1984, 0.2023)),
    ],
)
def test_cifar_is_normalised_as_published(name, mean, std):
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = normalize(pixels.float() / 255, list(mean), list(std))
    torch.testing.assert_close(Normalize(name, pixels)(pixels), expected)


@pytest.mark.parametrize(("channels", "fan_out"), [(3, 64 * 9), (1, 64 * 9)])
def test_the_stem_begins_like_the_other_convolutions(channels, fan_out):
    torch.manual_seed(0)
    stem = build_resnet("resnet18", channels, small_images=True).conv1.weight
    assert stem.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


@pytest.mark.parametrize("arch", ["resnet8", "resnet14", "resnet20"])
def test_the_name_of_a_small_resnet_counts_its_layers(arch):
    net = build_encoder(arch, channels=1, size=32, width=4)
    kernels = [tuple(part.kernel_size) for part in net.modules() if isinstance(part, torch.nn.Conv2d)]
    assert f"resnet{kernels.count((3, 3)) + 1}" == arch  # the last layer is the classifier, which there is none of
    assert kernels.count((1, 1)) == 2  # beside the two stages that begin with another shape
    with torch.no_grad():
        assert net.eval()(torch.zeros(2, 1, 40, 32)).shape == (2, net.features) == (2, 16)


@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 64)])
def test_resnet_stems(channels, size):
    net = build_resnet("resnet18", channels, small_images=size <= 32).eval()
    with torch.no_grad():
        assert net(torch.zeros(2, channels, size, size)).shape == (2, net.features)
    assert net.conv1.stride == ((1, 1) if size <= 32 else (2, 2))
