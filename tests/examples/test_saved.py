"""What can be done with an encoder once it is trained."""

import json

import embed
import image
import numpy as np
import pandas as pd
import probe
import pytest
import tabular
import torch
from runner.data.dataset import draw_labels
from runner.data.tabular import load_tabular
from runner.encoders import TabularMLP
from sklearn.datasets import load_digits


@pytest.fixture
def trained(runs, tmp_path):
    size = ("--epochs", 3, "--batch-size", 128, "--seeds", 1, "--width", 1, "--mix", "mixup")
    (run,) = runs(tabular, *size)
    return tmp_path / "out" / "runs" / "npair-mixup-seed0" / "checkpoint.pt", run["metrics"]


def test_probe_finds_what_the_run_found(trained, tmp_path):
    checkpoint, metrics = trained
    report = tmp_path / "probe.json"
    options = ["--labels", "0.05", "1", "--draws", "2", "--fine-tune", "--epochs", "10", "--device", "cpu"]
    probe.main([str(checkpoint), *options, "--out", str(report)])
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["knn_accuracy"] == metrics["knn_accuracy"]
    few, everything = found["labels"]["0.05"], found["labels"]["1.0"]
    assert everything["rows"] == 1438  # four fifths of 1797
    assert everything["probe_accuracy"] > few["probe_accuracy"]
    assert everything["fine_tuned_accuracy"] > 0.9
    assert 60 <= few["rows"] <= 80
    # The probe on all rows sees them in another order; the tenth that it holds out differs, and with it the strength.
    assert everything["probe_accuracy"] == pytest.approx(metrics["probe_accuracy"], abs=0.08)


def test_draw_labels_takes_a_share_of_every_class():
    y = torch.arange(300) % 3
    y[:5] = 3
    rows = draw_labels(y, 0.1, seed=0)
    assert torch.bincount(y[rows]).tolist() == [10, 10, 10, 1]
    assert len(rows.unique()) == len(rows)
    assert not torch.equal(rows, draw_labels(y, 0.1, seed=1))


def test_embed_writes_features_and_weights(trained, tmp_path):
    checkpoint, _ = trained
    for name in ("features.npz", "features.parquet"):
        embed.main(
            [
                str(checkpoint),
                "--out",
                str(tmp_path / name),
                "--weights",
                str(tmp_path / "encoder.pt"),
                "--device",
                "cpu",
            ]
        )
    embed.main([str(checkpoint), "--map", str(tmp_path / "map.png"), "--device", "cpu"])
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    arrays, table = np.load(tmp_path / "features.npz"), pd.read_parquet(tmp_path / "features.parquet")

    encoder = TabularMLP((64,), width=1)  # the snippet of the README
    encoder.load_state_dict(torch.load(tmp_path / "encoder.pt", weights_only=True))
    encoder.eval()
    digits = load_tabular("digits")
    with torch.no_grad():
        features = encoder(digits.test_x)
    np.testing.assert_allclose(arrays["test_x"], features, atol=1e-5)
    np.testing.assert_array_equal(arrays["train_y"], digits.train_y)
    assert table.index.tolist() == list(range(1797))
    test = table.loc[arrays["test_row"]]
    assert set(test["split"]) == {"test"}
    np.testing.assert_allclose(test.filter(like="feature_"), features, atol=1e-5)
    assert test["label"].tolist() == [digits.classes[i] for i in digits.test_y]
    assert table["label"].tolist() == load_digits().target.astype(str).tolist()


def test_an_image_encoder_brings_its_own_normalisation(runs, tmp_path):
    size = ("--epochs", 1, "--batch-size", 256, "--seeds", 1, "--width", 2, "--mix", "none")
    (run,) = runs(image, *size)
    checkpoint = tmp_path / "out" / "runs" / "npair-none-seed0" / "checkpoint.pt"
    probe.main([str(checkpoint), "--labels", "1", "--out", str(tmp_path / "probe.json"), "--device", "cpu"])
    found = json.loads((tmp_path / "probe.json").read_text(encoding="utf-8"))
    assert found["knn_accuracy"] == run["metrics"]["knn_accuracy"]


def test_refusals(trained, tmp_path):
    checkpoint, _ = trained
    frame = pd.DataFrame({"a": range(20), "b": [0, 1] * 10})
    frame.to_csv(tmp_path / "narrow.csv", index=False)
    for options, words in [
        ((tmp_path / "absent.pt",), "absent.pt"),
        ((checkpoint, "--data", tmp_path / "narrow.csv", "--label", "b"), "narrow"),
    ]:
        with pytest.raises(SystemExit, match=words):
            probe.main([*map(str, options), "--device", "cpu"])


@pytest.mark.parametrize(
    ("script", "option"), [(probe, "--out"), (embed, "--out"), (embed, "--map"), (embed, "--weights")]
)
def test_what_cannot_be_written_is_said_before_the_work(tmp_path, monkeypatch, script, option):
    """Of a checkpoint that is not even looked at."""
    monkeypatch.setattr(script, "open_run", lambda *_, **__: pytest.fail("opened"))
    (tmp_path / "file").touch()
    (tmp_path / "folder.npz").mkdir()
    for path, reason in (("file/below.npz", "can be written there"), ("folder.npz", "wanted a file")):
        with pytest.raises(SystemExit, match=rf"^error: .*{reason}.*$"):
            script.main(["checkpoint.pt", option, str(tmp_path / path)])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder.npz"]
