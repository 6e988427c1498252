import pytest
import tabular
import torch
import torch.nn.functional as F
from runner.encoders import SmallCNN, TabularMLP
from runner.manifold import mixing_at
from runner.methods import METHODS, build_method
from torch import nn

from imix_aug import IMix


def build(method, encoder, **changes):
    plain = {"temperature": 0.2, "queue": 64, "momentum": 0.9, "prediction_bn": "hidden"}
    return build_method(method, encoder, **{**plain, **changes})


@pytest.fixture
def views():
    torch.manual_seed(0)
    return torch.randn(16, 6), torch.randn(16, 6)


def test_mixing_at_a_layer_mixes_what_it_says():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    x = torch.randn(12, 5)
    with mixing_at(net[1], IMix(), 2) as drawn:
        mixed = net(x)
    (labels,) = drawn
    hidden = net[1](net[0](x)).view(2, 6, 4)
    expected = labels.lam[:, None] * hidden + (1 - labels.lam[:, None]) * hidden[:, labels.partner]
    torch.testing.assert_close(mixed, net[2](expected.view(12, 4)))
    assert torch.equal(net(x), net[2](net[1](net[0](x))))  # and not a moment longer


@pytest.mark.parametrize("layer", ["layer2", "layer4.0"])
@pytest.mark.parametrize("method", ["npair", "simclr", "moco"])
def test_mix_at_from_the_command_line(runs, method, layer):
    size = ("--epochs", 1, "--batch-size", 256, "--seeds", 1, "--width", 1)
    done = runs(tabular, "--method", method, "--mix", "mixup", "cutmix", "--mix-at", layer, *size)
    assert [run["config"]["mix_at"] for run in done] == [layer, layer]


def test_an_unknown_layer_is_refused_with_those_there_are(refusal):
    line = refusal(tabular, "--mix-at", "layer9")
    assert "layer9" in line
    assert "layer2" in line


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("imix", [None, IMix()])
def test_every_parameter_learns_and_no_other_does(views, method, imix):
    built = build(method, TabularMLP((6,), 1))
    classes = torch.arange(16) % 3
    built(*views, imix, classes).backward()
    built.after_step()
    built(*views, imix, classes).backward()
    for name, parameter in built.named_parameters():
        follows = name.startswith(("key_net", "target_net"))
        assert (parameter.grad is None) == follows, name


def test_npair_without_mixing_is_cross_entropy(views):
    method = build("npair", TabularMLP((6,), 1)).eval()
    query, key = (F.normalize(method.net(view)) for view in views)
    expected = F.cross_entropy(query @ key.T / 0.2, torch.arange(16))
    torch.testing.assert_close(method(*views, None, None), expected)


def test_moco_without_mixing_sees_its_own_key_and_the_queue(views):
    method = build("moco", TabularMLP((6,), 1)).eval()
    method(*views, None, None)
    method.after_step()
    old = F.normalize(method.key_net(views[1]))
    torch.testing.assert_close(method.queue.negatives, old)
    query, key = F.normalize(method.net(views[0])), F.normalize(method.key_net(views[1]))
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ old.T], 1)
    torch.testing.assert_close(method(*views, None, None), F.cross_entropy(logits / 0.2, torch.zeros(16).long()))


@pytest.mark.parametrize("method", ["moco", "byol"])
def test_the_copy_follows_with_momentum(views, method):
    built = build(method, TabularMLP((6,), 1))
    copy = built.key_net if method == "moco" else built.target_net
    before = [p.clone() for p in copy.parameters()]
    built(*views, None, None).backward()
    with torch.no_grad():
        for p in built.net.parameters():
            p += torch.randn_like(p)
    built.after_step()
    for old, new, net in zip(before, copy.parameters(), built.net.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * net)


def test_the_paper_mlp():
    mlp = TabularMLP((10, 4, 40), width=2)
    sizes = [layer.num_features for layer in mlp.modules() if isinstance(layer, nn.BatchNorm1d)]
    assert sizes == [64, 64, 128, 128, 256]
    assert [layer.in_features for layer in mlp.first] == [10, 4, 40]
    mlp.eval()
    x = torch.randn(3, 54)
    fifth = mlp.layer5.register_forward_hook(lambda _m, _i, out: setattr(mlp, "seen", out))
    features = mlp(x)
    fifth.remove()
    assert features.shape == (3, 64) == (3, mlp.features)
    assert torch.equal(features[:, 5], mlp.seen[:, 20:24].amax(1))


def test_the_small_cnn_takes_any_size():
    assert SmallCNN(1, 4)(torch.zeros(2, 1, 8, 8)).shape == SmallCNN(1, 4)(torch.zeros(2, 1, 32, 40)).shape == (2, 32)
