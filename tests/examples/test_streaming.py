"""Images that stay in their files: the same order and views whatever reads them, and after any kill."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import image
import numpy as np
import pytest
import torch
from PIL import Image
from processes import end_at, start
from runner.data.files import ImageFiles, TwoViews, middle, simclr_views
from runner.data.image import load_image
from runner.errors import Refused, one_line_errors
from runner.sgd_probe import Schedule, sgd_probe
from runner.state.saved import open_run
from torchvision.transforms import v2

EXAMPLES = Path(image.__file__).parent

SHORT = ("--stream", "--epochs", "3", "--batch-size", "8", "--seeds", "1", "--width", "2", "--mix", "cutmix",
         "--method", "moco", "--queue", "16", "--checkpoint-every", "0")  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes as ImageNet lies on disk: photographs of any shape, JPEG, train/ and val/."""
    folder, draw = tmp_path_factory.mktemp("root") / "imagenet", np.random.default_rng(0)
    for part, count in (("train", 16), ("val", 5)):
        for name, tint in (("n01", (120, 0, 0)), ("n02", (0, 0, 120))):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 100, (24 + i, 36 - i, 3)) + np.array(tint)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{i:02}.JPEG")
    return folder


def files(photos, **options):
    return load_image(str(photos), size=16, stream=True, **options).train_x


def test_the_middle_of_each_file(photos):
    data = load_image(str(photos), size=16, stream=True, workers=0)
    assert data.notes == ("no test/ in it: val/ tests",)
    assert data.train_x.shape == (32, 3, 16, 16)
    assert torch.bincount(data.train_y).tolist() == [16, 16]
    assert torch.bincount(data.test_y).tolist() == [5, 5]
    resize = v2.Compose([v2.Resize(18), v2.CenterCrop(16), v2.PILToTensor()])
    for row in (0, 15, 31):
        path = photos / "train" / data.classes[row // 16] / f"{row % 16:02}.JPEG"
        assert torch.equal(data.train_x[torch.tensor([row])][0], resize(Image.open(path)))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_whole_and_in_order_for_any_number_of_workers(photos, workers):
    x = files(photos, workers=workers)
    batches = list(x.split(5))
    assert [len(batch) for batch in batches] == [5] * 6 + [2]
    assert torch.equal(torch.cat(batches), x[torch.arange(32)])
    assert torch.equal(x.subset(torch.tensor([7, 3]))[torch.tensor([1])], x[torch.tensor([3])])


def test_views_follow_from_seed_epoch_and_row_alone(photos):
    read = TwoViews(files(photos), simclr_views(16), seed=3)
    before = torch.get_rng_state()
    first = read((1, 5))
    torch.rand(7)
    assert torch.equal(read((1, 5)), first)
    assert not torch.equal(read((2, 5)), first)
    assert not torch.equal(TwoViews(files(photos), simclr_views(16), seed=4)((1, 5)), first)
    assert first.shape == (2, 3, 16, 16)
    assert not torch.equal(first[0], first[1])
    torch.set_rng_state(before)
    assert torch.equal(TwoViews(files(photos), middle(16), seed=3)((1, 5))[0], files(photos).read(5))
    assert torch.equal(torch.get_rng_state(), before)  # the run's own draws are as they were


def test_weak_views_leave_the_colours():
    crop, mirror = simclr_views(224, colours=False).transforms
    assert (type(crop), tuple(crop.scale)) == (v2.RandomResizedCrop, (0.2, 1.0))
    assert isinstance(mirror, v2.RandomHorizontalFlip)


def test_large_images_are_blurred_and_small_ones_not():
    kinds = [[type(step).__name__ for step in simclr_views(size).transforms] for size in (64, 224)]
    assert len(kinds[1]) == len(kinds[0]) + 1
    blur = simclr_views(224).transforms[3].transforms[0]
    assert isinstance(blur, v2.GaussianBlur)
    assert tuple(blur.sigma) == (0.1, 2.0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_no_image_is_one_line(photos, tmp_path, workers):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    x = ImageFiles.of([photos / "train" / "n01" / "00.JPEG", tmp_path / "broken.png"], 16, workers=workers)
    with pytest.raises(Refused, match=r"broken.png: not an image that can be read") as refused:
        list(x.split(2))
    assert "Traceback" not in str(refused.value)


def train(out, photos, workers, stop_at=None):
    end_at(stop_at)
    image.main([*SHORT, "--data", str(photos), "--image-size", "16", "--device", "cpu", "--no-controls",
                "--workers", str(workers), "--out", str(out)])  # fmt: skip


def final(out):
    return torch.load(out / "runs" / "moco-cutmix-seed0" / "checkpoint.pt", weights_only=True)


def test_killed_in_mid_epoch_a_run_goes_on_to_the_same_bits(photos, tmp_path):
    """Killed twice, each time read by another number of workers; epochs have four steps."""
    train(tmp_path / "whole", photos, 0)
    for stop_at, workers, step in ((3, 2, 2), (4, 0, 5)):
        assert start(1, "image", train, tmp_path / "cut", photos, workers, stop_at) == [3]
        assert final(tmp_path / "cut")["progress"]["step"] == step  # the step that was cut short is not saved
    train(tmp_path / "cut", photos, 2)
    whole, cut = final(tmp_path / "whole"), final(tmp_path / "cut")
    assert whole["progress"]["losses"] == cut["progress"]["losses"]
    for key, weight in whole["parts"]["method"].items():
        if isinstance(weight, torch.Tensor):
            assert torch.equal(cut["parts"]["method"][key], weight), key
    metrics = [
        json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8"))["runs"][0]["metrics"]
        for name in ("whole", "cut")
    ]
    assert metrics[0] == metrics[1]


def test_pixels_in_memory_and_files_are_different_data(photos, tmp_path, runs, refusal):
    options = (*SHORT, "--data", photos, "--image-size", 16)
    (run,) = runs(image, *options, "--workers", 0)
    assert "stream" not in run["config"]
    assert "fingerprint" in refusal(image, *options, "--no-stream")
    checkpoint = tmp_path / "out" / "runs" / "moco-cutmix-seed0" / "checkpoint.pt"
    encoder, task = open_run(checkpoint, torch.device("cpu"))
    assert encoder(task.to_input(task.data.test_x[torch.arange(3)])).shape == (3, 16)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups")
def test_a_signal_to_the_whole_group_saves(photos, tmp_path):
    command = [sys.executable, EXAMPLES / "image.py", *SHORT, "--epochs", 100_000, "--data", photos, "--image-size", 16]
    command += ["--device", "cpu", "--no-controls", "--workers", 2, "--out", tmp_path / "out"]
    child = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(tmp_path.rglob("checkpoint.pt")) and child.poll() is None:
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGTERM)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 128 + signal.SIGTERM
    assert "interrupted; the same command continues from the last checkpoint" in said
    assert "Traceback" not in said
    assert final(tmp_path / "out")["progress"]["step"] > 0


def test_a_worker_that_is_killed_is_one_line(capsys):
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error.\nTry --shm-size")
    assert end.value.code.startswith(
        "error: DataLoader worker (pid 7) is killed by signal: Bus error.; the same command"
    )
    with pytest.raises(RuntimeError, match="something else"), one_line_errors():
        raise RuntimeError("something else")


def test_what_is_in_memory_has_no_workers(photos, refusal):
    assert "--stream: the images of digits are in memory" in refusal(image, "--stream")
    assert "--workers 2: the images of imagenet are in memory" in refusal(image, "--data", photos, "--workers", 2)


def test_reading_leaves_the_draws_of_the_run_alone(photos):
    before = torch.get_rng_state()
    files(photos, workers=0)[torch.arange(32)]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_that_changed_is_other_data(photos, tmp_path):
    x = files(photos)
    assert x.identity() == files(photos).identity()
    assert x.identity() != x.subset(torch.arange(31)).identity()


def test_imagenet_by_name_and_the_hundred_classes_of_the_authors(photos, monkeypatch):
    data = load_image("imagenet", root=photos.parent, workers=0)
    assert (data.name, data.train_x.shape) == ("imagenet", (32, 3, 224, 224))
    kept = sorted(random.Random(-1).sample(["n01", "n02"], 1))
    monkeypatch.setattr("runner.data.image.HUNDRED", 1)
    with pytest.raises(Refused, match="all of one class"):
        load_image("imagenet100", root=photos.parent, workers=0)
    monkeypatch.setattr("runner.data.image.HUNDRED", 2)
    hundred = load_image("imagenet100", root=photos.parent, workers=0)
    assert (hundred.name, hundred.classes) == ("imagenet100", ["n01", "n02"])
    assert torch.equal(hundred.train_y, data.train_y)
    assert kept[0] in data.classes
    with pytest.raises(
        Refused, match="imagenet: cannot be downloaded; wanted train/CLASS/IMAGE and val/CLASS/IMAGE in"
    ):
        load_image("imagenet", root=photos)


def test_the_probe_of_imagenet(monkeypatch):
    """One rate, which falls to a tenth after 60 and 80 of 100 epochs."""
    rates = []
    step = torch.optim.SGD.step

    def note(optimizer, *rest):
        rates.append([group["lr"] for group in optimizer.param_groups])
        return step(optimizer, *rest)

    monkeypatch.setattr(torch.optim.SGD, "step", note)
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    found = sgd_probe(lambda: x, y, x, y, batch_size=4, schedule=Schedule((30,), (60, 80), 0.1))
    assert list(found) == [30]
    assert torch.tensor(rates).flatten().tolist() == pytest.approx([30] * 60 + [3] * 20 + [0.3] * 20)


def test_two_ranks_read_each_its_share(photos, tmp_path):
    assert start(2, "image", train, tmp_path / "two", photos, 1) == [0, 0]
    (run,) = json.loads((tmp_path / "two" / "results.json").read_text(encoding="utf-8"))["runs"]
    assert run["config"]["ranks"] == 2
    assert final(tmp_path / "two")["progress"]["step"] == 12


def test_bf16(photos, runs):
    (run,) = runs(image, *SHORT, "--data", photos, "--image-size", 16, "--workers", 0, "--amp", "bf16")
    assert run["config"]["amp"] == "bf16"
