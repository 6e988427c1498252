"""Raw input and untrained network beside the runs, and what is said of them."""

import json
from types import SimpleNamespace

import image
import numpy as np
import pytest
import speech
import tabular
import torch
from runner.controls import Raw, settle_statistics
from runner.data.tabular import load_tabular
from runner.encoders import TabularMLP
from runner.report.conclusion import conclude
from sklearn.neighbors import KNeighborsClassifier
from test_speech_data import words  # noqa: F401
from torch import nn

TINY = ("--controls", "--epochs", 1, "--width", 1)


def test_a_table_begins_with_its_controls(runs, tmp_path, capsys):
    runs(tabular, *TINY, "--batch-size", 256, "--seeds", 2)
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert [(one["control"], one["seed"]) for one in found["controls"]] == [
        ("raw", 0),
        ("untrained", 0),
        ("untrained", 1),
    ]
    raw, untrained, _ = (one["metrics"] for one in found["controls"])
    data = load_tabular("digits")
    peer = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp(-distance / 0.07))
    peer.fit(data.train_x.numpy(), data.train_y.numpy())
    assert raw["knn_accuracy"] == pytest.approx(peer.score(data.test_x.numpy(), data.test_y.numpy()), abs=0.003)
    assert raw["probe_accuracy"] > 0.9
    assert 0.5 < untrained["probe_accuracy"] < 1
    printed = capsys.readouterr().out
    rows = [line.split("  ")[0] for line in printed.splitlines() if "  " in line]
    assert rows == ["mix", "-----------", "raw columns", "untrained", "none", "mixup"]
    assert found["conclusion"] in printed
    assert "95 % over 2 seeds" in found["conclusion"]
    assert "over the raw columns" in found["conclusion"]


def test_controls_are_judged_once(runs, monkeypatch, tmp_path):
    options = (*TINY, "--batch-size", 256, "--mix", "mixup", "--seeds")
    judged, half = [], dict.fromkeys(("probe_accuracy", "knn_accuracy"), 0.5)
    monkeypatch.setattr("runner.run.raw_input", lambda *_: judged.append("raw") or half)
    monkeypatch.setattr("runner.run.untrained", lambda _, seed, *__: judged.append(seed) or half)
    runs(tabular, *options, 1)
    assert judged == ["raw", 0]
    runs(tabular, *options, 2)
    assert judged == ["raw", 0, 1]


@pytest.mark.parametrize(("script", "name"), [(image, "raw pixels"), (speech, "raw spectrograms")])
def test_other_domains_have_them_too(runs, words, capsys, script, name):  # noqa: F811
    data = ("--data", words) if script is speech else ()
    runs(script, *TINY, *data, "--batch-size", 8 if data else 256, "--mix", "mixup", "--seeds", 1)
    printed = capsys.readouterr().out
    assert f"\n{name}  1" in printed
    assert f"over the {name}" in printed


def test_large_pictures_are_averaged_down():
    x = torch.arange(128.0).expand(2, 3, 128, 128)
    raw = Raw()(x)
    assert raw.shape == (2, 3 * 32 * 32)
    torch.testing.assert_close(raw[0, :32], torch.arange(1.5, 128, 4))  # the means of four columns each
    assert torch.equal(Raw()(x[:, :1, :8, :8]), x[:, :1, :8, :8].flatten(1))


def test_batch_statistics_settle_to_those_of_the_data():
    torch.manual_seed(0)
    x = 3 * torch.randn(2000, 6) + 5
    task = SimpleNamespace(data=SimpleNamespace(train_x=x, train_y=torch.zeros(2000)), to_input=nn.Identity())
    net = TabularMLP((6,), 1)
    settle_statistics(net, task, 500, torch.device("cpu"))
    linear, norm, _ = net.layer1
    with torch.no_grad():
        hidden = linear(x)
    left = 0.9**30  # of the zeros and ones that the running statistics begin with
    torch.testing.assert_close(norm.running_mean, (1 - left) * hidden.mean(0), atol=0.15, rtol=0.05)
    torch.testing.assert_close(norm.running_var, (1 - left) * hidden.var(0) + left, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (  # differences 1, 2, 3: Student's t at 0.975 for two degrees of freedom is 4.303, times 1 / sqrt(3)
            {"none": {0: 90, 1: 90, 2: 90}, "mixup": {0: 91, 1: 92, 2: 93}, "raw": {0: 88}, "untrained": {0: 50}},
            "Linear probe: i-Mix +2.0 over none (-0.5 to +4.5: 95 % over 3 seeds), +4.0 over the raw columns, "
            "+42.0 over the untrained network.",
        ),
        (
            {"none": {0: 90}, "mixup": {0: 91.5}, "raw": {0: 93.9}},
            "Linear probe: i-Mix +1.5 over none (one seed), -2.4 over the raw columns; "
            "the raw columns do better here: 93.9.",
        ),
        (
            {"none": {0: 90}, "raw": {0: 80}, "untrained": {0: 95}},
            "Linear probe: training without i-Mix +10.0 over the raw columns, -5.0 over the untrained network; "
            "the untrained network does better here: 95.0.",
        ),
        (
            {"none": {0: 90}, "mixup": {0: 91}, "cutmix": {0: 89}},
            "Linear probe: i-Mix +1.0 over none (one seed); i-Mix (cutmix) -1.0 over none (one seed).",
        ),
        (
            # Half of the interval is 12.706 / sqrt(2) standard deviations of 1.14 / sqrt(2) points: it ends at -0.04.
            {"none": {0: 90, 1: 90}, "mixup": {0: 96.63, 1: 97.77}, "raw": {0: 97.16}},
            "Linear probe: i-Mix +7.2 over none (0.0 to +14.4: 95 % over 2 seeds), 0.0 over the raw columns.",
        ),
        ({"mixup": {0: 91}}, ""),
    ],
)
def test_the_closing_line(found, said):
    assert conclude(found, "columns") == said
