"""Numbers in bins: the encoding by hand and by the published formula, and the network that hands it on."""

from itertools import pairwise

import embed
import numpy as np
import pandas as pd
import pytest
import tabular
import torch
from runner.encoders import TabularMLP
from runner.piecewise import EncodedMLP, PiecewiseLinear


def published(x, edges):
    """Gorishniy et al. (2022), equation 1, value by value, for values within the outer edges."""
    encoded = []
    for low, high in pairwise(edges):
        encoded.append(0.0 if x < low else 1.0 if x >= high else (x - low) / (high - low))
    return encoded


def test_the_published_formula():
    rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    rows[:, 1] = (rows[:, 1] > 0).float()
    encode = PiecewiseLinear(rows, numbers=[0, 2], bins=4)
    assert encode.outputs == 9
    edges = [np.quantile(rows[:, column].double().numpy(), [0, 0.25, 0.5, 0.75, 1]) for column in range(3)]
    for row, found in zip(rows.tolist(), encode(rows).tolist(), strict=True):
        assert found == pytest.approx([*published(row[0], edges[0]), row[1], *published(row[2], edges[2])], abs=1e-5)


def test_by_hand():
    rows = torch.tensor([[0.0], [1.0], [2.0], [4.0], [8.0]])
    found = PiecewiseLinear(rows, [0], 2)(torch.tensor([[-1.0], [1.0], [2.0], [5.0], [9.0]]))
    assert found.tolist() == [[0, 0], [0.5, 0], [1, 0], [1, 0.5], [1, 1]]  # beyond the rows: as at their edge


def test_few_values_and_one():
    rows = torch.tensor([[1.0, 7.0]] * 6 + [[3.0, 7.0]] * 5)
    encode = PiecewiseLinear(rows, [0, 1], 4)
    assert encode.outputs == 8  # as for any table of these columns
    assert encode(torch.tensor([[2.0, 7.0]])).tolist() == [[0.5] + [0.0] * 7]


def test_the_network_hands_the_encoded_columns_on():
    rows = torch.randn(50, 2)
    net = EncodedMLP(PiecewiseLinear(rows, [0, 1], 3), width=1)
    found = net(rows)
    assert found.shape == (50, net.features) == (50, 32 + 6)
    assert torch.equal(found[:, 32:], net.encode(rows))
    peer = TabularMLP((6,), 1)
    peer.load_state_dict({name: value for name, value in net.state_dict().items() if not name.startswith("encode.")})
    torch.testing.assert_close(found[:, :32], peer(net.encode(rows)))
    net.eval()
    assert torch.equal(net.learnt(rows), net(rows)[:, :32])


@pytest.fixture
def plants(tmp_path):
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(draw.normal(0, 1, (100, 3)), columns=list("abc"))
    frame["soil"] = draw.choice(["clay", "sand"], 100)
    frame["kind"] = np.where(frame["a"].abs() > 0.7, "fern", "moss")
    frame.to_csv(tmp_path / "plants.csv", index=False)
    return ("--data", tmp_path / "plants.csv", "--label", "kind", "--epochs", 2, "--width", 1, "--seeds", 1)


def test_a_table_of_ones_own_and_back(runs, plants, tmp_path):
    (run,) = runs(tabular, *plants, "--mix", "mixup", "--mix-at", "encode", "--bins", 4)
    assert run["config"]["bins"] == 4
    assert run["metrics"]["probe_accuracy"] >= 0.8  # the raw columns know nothing of an absolute value
    checkpoint = next((tmp_path / "out").rglob("checkpoint.pt"))
    embed.main([str(checkpoint), "--out", str(tmp_path / "features.parquet")])
    features = pd.read_parquet(tmp_path / "features.parquet").filter(like="feature_")
    assert features.shape == (100, 32 + 3 * 4 + 2)
    assert features.iloc[:, 32:].to_numpy().min() >= 0


def test_a_hidden_layer_is_no_place_to_mix(refusal, plants):
    line = refusal(tabular, *plants, "--mix-at", "layer2", "--bins", 4)
    assert "wanted encode, or --bins 0" in line
