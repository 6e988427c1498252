"""Images as people have them: layouts, depths, and files that are none."""

import image
import numpy as np
import pytest
import torch
from PIL import Image
from runner.data import image_folder, pixels
from runner.data.files import ImageFiles
from runner.data.image import load_image
from runner.errors import Refused

SHORT = ("--epochs", 1, "--batch-size", 4, "--seeds", 1, "--width", 2, "--mix", "mixup")


@pytest.fixture
def photos(tmp_path):
    """Two classes, ten images each, in one folder per class."""
    draw = np.random.default_rng(0)
    for name, tint in (("sea", (0, 0, 200)), ("wood", (0, 150, 0))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            noise = draw.integers(0, 55, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(noise + np.uint8(tint)).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def refusal_of(folder, **options):
    with pytest.raises(Refused) as refused:
        load_image(str(folder), **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_one_folder_per_class_is_split(photos, runs, capsys):
    data = load_image(str(photos))
    assert data.notes == ("no train/ and test/ in it: four fifths of the images of each class train, one fifth tests",)
    assert torch.bincount(data.train_y).tolist() == [8, 8]
    assert torch.bincount(data.test_y).tolist() == [2, 2]
    (run,) = runs(image, "--data", photos, *SHORT)
    assert run["config"]["batch_size"] == 4
    assert "photos: no train/ and test/ in it" in capsys.readouterr().err


def test_train_alone_is_split_and_val_tests(photos):
    (photos / "train").mkdir()
    for name in ("sea", "wood"):
        (photos / name).rename(photos / "train" / name)
    assert load_image(str(photos)).notes[0].startswith("no test/ in it: four fifths")
    (photos / "val" / "sea").mkdir(parents=True)
    (photos / "train" / "sea" / "0.png").rename(photos / "val" / "sea" / "0.png")
    data = load_image(str(photos))
    assert data.notes == ("no test/ in it: val/ tests",)
    assert (len(data.train_y), data.test_y.tolist()) == (19, [0])
    (photos / "train").rename(photos / "training")
    assert "val/ without train/" in refusal_of(photos)


def test_what_is_hidden_is_no_class_and_no_image(photos):
    before = load_image(str(photos))
    (photos / ".ipynb_checkpoints").mkdir()
    (photos / "__MACOSX").mkdir()
    (photos / "sea" / "._0.png").write_bytes(b"no picture")
    (photos / "sea" / ".thumbnails").mkdir()
    (photos / "sea" / ".thumbnails" / "0.png").write_bytes(b"no picture")
    (photos / "sea" / "Thumbs.db").write_bytes(b"no picture")
    data = load_image(str(photos))
    assert data.classes == ["sea", "wood"]
    assert torch.equal(data.train_x, before.train_x)


@pytest.mark.parametrize(
    ("kind", "suffix", "low", "high"),
    [
        (np.uint16, "png", 0, 65_535),
        (np.uint16, "tif", 100, 4095),  # twelve bits in sixteen
        (np.int32, "tif", -7, 1_000_000),
        (np.float32, "tif", 0.0, 1.0),
        (np.float32, "tif", -3.5, 12.0),
    ],
)
def test_deep_images_are_scaled_by_their_range(tmp_path, kind, suffix, low, high):
    ramp = np.linspace(low, high, 256)
    for name, rows in (("up", ramp), ("down", ramp[::-1])):
        (tmp_path / name).mkdir()
        for i in range(5):
            values = np.tile(rows, (256, 1)).astype(kind)
            Image.fromarray(values).save(tmp_path / name / f"{i}.{suffix}")
    data = load_image(str(tmp_path), size=256)
    assert "images of more than 8 bits, scaled from" in data.notes[1]
    up = data.train_x[data.train_y == 1][0].float()
    expected = torch.arange(256.0).expand(3, 256, 256)  # from black to white, and nothing clipped on the way
    torch.testing.assert_close(up, expected, atol=1, rtol=0)
    torch.testing.assert_close(data.train_x[data.train_y == 0][0].float(), expected.flip(2), atol=1, rtol=0)


def test_deep_images_of_one_folder_share_a_scale(tmp_path):
    for name, level in (("dark", 1000), ("light", 3000)):
        (tmp_path / name).mkdir()
        for i in range(5):
            pixel = np.full((4, 4), level, np.uint16)
            pixel[0, 0], pixel[0, 1] = 0, 4000
            Image.fromarray(pixel).save(tmp_path / name / f"{i}.png")
    data = load_image(str(tmp_path), size=4)
    assert [int(data.train_x[data.train_y == i][0, 0, 2, 2]) for i in (0, 1)] == [64, 191]  # 255 / 4 and its triple


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_other_modes_become_rgb(photos, mode):
    Image.open(photos / "sea" / "0.png").convert(mode).save(photos / "sea" / f"0.{'tif' if mode == 'CMYK' else 'png'}")
    assert load_image(str(photos)).train_x.shape[1:] == (3, 8, 8)


def test_a_photograph_is_turned_upright(photos):
    picture = Image.fromarray(np.full((8, 8, 3), 255, np.uint8))
    picture.paste((0, 0, 0), (0, 0, 4, 8))  # black on the left
    exif = Image.Exif()
    exif[0x0112] = 3  # lies on its head
    picture.save(photos / "sea" / "0.png", exif=exif)
    found = pixels.read_pixels(photos / "sea" / "0.png", 8, None)
    assert found[0, 4].tolist() == [255] * 4 + [0] * 4


def test_a_decompression_bomb_is_one_line(photos, monkeypatch, refusal):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    assert ".png: 8 x 8 pixels, more than is safe to unpack" in refusal_of(photos)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert ".png: more pixels than is safe to unpack" in refusal_of(photos)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", None])
def test_files_that_are_no_images(photos, content):
    path = photos / "wood" / "3.png"
    path.write_bytes(path.read_bytes()[:-60] if content is None else content)
    assert f"{path}: not an image that can be read" in refusal_of(photos)


def test_floats_that_are_none(photos):
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(photos / "sea" / "a.tif")
    assert "a.tif: holds NaN or infinite values" in refusal_of(photos)


def test_one_class_or_none(photos):
    assert "found only 'photos'; wanted train/CLASS/IMAGE" in refusal_of(photos.parent)
    assert "found none" in refusal_of(photos / "sea")


def test_more_images_than_memory_are_streamed(photos, monkeypatch, runs, tmp_path):
    monkeypatch.setattr(image_folder, "fits", lambda *_: False)
    streamed = load_image(str(photos), workers=0)
    assert isinstance(streamed.train_x, ImageFiles)
    assert streamed.notes[-1] == "more than half of the free memory, so the images are streamed from their files"
    assert isinstance(load_image(str(photos), stream=False).train_x, torch.Tensor)
    (run,) = runs(image, "--data", photos, *SHORT, "--workers", 0)
    assert 0 <= run["metrics"]["probe_accuracy"] <= 1
