"""CIFAR from a folder that is already there, as its authors publish it."""

import pickle

import numpy as np
import pytest
import torch
from runner.data.image import load_image
from runner.errors import Refused

DRAW = np.random.default_rng(0)


def batch(rows, key, classes):
    data = DRAW.integers(0, 256, (rows, 3072), dtype=np.uint8)
    return {"data": data, key: DRAW.integers(0, classes, rows).tolist(), "filenames": ["x.png"] * rows}


def write(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


@pytest.fixture
def hundred(tmp_path):
    files = {"train": batch(30, "fine_labels", 100), "test": batch(8, "fine_labels", 100)}
    write(tmp_path / "cifar-100-python", {**files, "meta": {"fine_label_names": [f"c{i}" for i in range(100)]}})
    return files


@pytest.mark.parametrize("inner", [".", "cifar-100-python"])
def test_cifar_100(tmp_path, hundred, inner):
    data = load_image(str(tmp_path / inner))
    assert (data.name, data.classes[99]) == ("cifar100", "c99")
    for split in ("train", "test"):
        x, y = getattr(data, f"{split}_x"), getattr(data, f"{split}_y")
        assert y.tolist() == hundred[split]["fine_labels"]
        assert x.dtype == torch.uint8
        # Row by row, a plane of 1,024 bytes for each of red, green and blue.
        assert x[5, 2, 31, 4] == hundred[split]["data"][5, 2 * 1024 + 31 * 32 + 4]


def test_cifar_10_is_its_batches_in_order(tmp_path):
    batches = {f"data_batch_{i}": batch(4, "labels", 10) for i in range(1, 6)}
    files = {**batches, "test_batch": batch(4, "labels", 10), "batches.meta": {"label_names": list("abcdefghij")}}
    write(tmp_path / "cifar-10-batches-py", files)
    data = load_image(str(tmp_path))
    assert data.name == "cifar10"
    assert data.train_y.tolist() == [label for one in batches.values() for label in one["labels"]]
    assert (data.train_x[4:8].flatten(1).numpy() == batches["data_batch_2"]["data"]).all()


class Runs:
    def __reduce__(self):
        return print, ("it ran",)


@pytest.mark.parametrize(
    ("content", "words"), [({"data": Runs()}, "it wants"), ({"labels": [1]}, "not a batch"), ("text", "not a batch")]
)
def test_a_file_that_is_something_else(tmp_path, hundred, capsys, content, words):
    (tmp_path / "cifar-100-python" / "train").write_bytes(pickle.dumps(content))
    with pytest.raises(Refused, match=f"train: .*{words}"):
        load_image(str(tmp_path))
    assert "it ran" not in capsys.readouterr().out
