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


@pytest.mark.parametrize("mix_at", [None, "layer2"])
@pytest.mark.parametrize("method", ["npair", "supcon"])
def test_batch_statistics_are_those_of_both_views_together(views, method, mix_at):
    built = build(method, TabularMLP((6,), 1), mix_at=mix_at)
    inputs = []
    built.net[1].register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    imix, lam = IMix(generator=torch.Generator().manual_seed(0)), []
    imix.register_forward_hook(lambda _module, _args, result: lam.append(result))
    built(*views, imix, torch.arange(16) % 3)
    (features,), ((mixed, labels),) = inputs, lam
    assert len(mixed) == 16  # the first view alone

    net = built.encoder

    def blend(x):
        share = labels.lam[:, None]
        return torch.cat([share * x[:16] + (1 - share) * x[:16][labels.partner], x[16:]])

    x = torch.cat(views)
    hidden = net.layer2(net.layer1(x if mix_at else blend(x)))
    hidden = net.layer5(net.layer4(net.layer3(blend(hidden) if mix_at else hidden)))
    torch.testing.assert_close(features, hidden.unflatten(1, (-1, 4)).amax(2))


def test_moco_without_mixing_sees_its_own_key_and_the_queue(views):
    method = build("moco", TabularMLP((6,), 1)).eval()
    start = method.queue.negatives.clone()
    assert start.shape == (64, 128)
    torch.testing.assert_close(start.norm(dim=1), torch.ones(64))
    assert (start @ start.T - torch.eye(64)).abs().max() < 0.6  # pairs of 128 random numbers: deviation 0.09
    method(*views, None, None)
    method.after_step()
    newest = F.normalize(method.key_net(views[1]))
    queue = torch.cat([newest, start[16:]])
    torch.testing.assert_close(method.queue.negatives, queue)
    query, key = F.normalize(method.net(views[0])), F.normalize(method.key_net(views[1]))
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], 1)
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


def test_the_paper_mlp_has_the_papers_sizes():
    mlp = TabularMLP((10, 4, 40), width=64)
    layers = [layer for layer in mlp.modules() if isinstance(layer, nn.Linear)]
    sizes = [(10, 64), (4, 64), (40, 64), (192, 2048), (2048, 2048), (2048, 4096), (4096, 4096), (4096, 8192)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == sizes
    assert [layer.bias is not None for layer in layers] == [True] * 3 + [False] * 4 + [True]
    norms = [layer.num_features for layer in mlp.modules() if isinstance(layer, nn.BatchNorm1d)]
    assert norms == [2048, 2048, 4096, 4096]  # none on the groups, none before maxout
    assert mlp.features == 2048
    hidden = build("npair", mlp).net[1][0]
    assert (hidden.in_features, hidden.out_features) == (2048, 2048)
    assert [kind.out_features for kind in TabularMLP((10, 4, 40), width=2).kinds] == [
        64
    ] * 3  # the width changes the rest


def test_the_paper_mlp_by_hand():
    torch.manual_seed(0)
    mlp, x = TabularMLP((10, 4, 40), width=2).double(), torch.randn(7, 54).double()
    weights = mlp.state_dict()
    parts = [
        part @ weights[f"kinds.{i}.weight"].T + weights[f"kinds.{i}.bias"]
        for i, part in enumerate((x[:, :10], x[:, 10:14], x[:, 14:]))
    ]
    hidden = torch.cat(parts, 1)
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        hidden = hidden @ weights[f"{layer}.0.weight"].T
        hidden = ((hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 1e-5).sqrt()).clamp(min=0)
    units = hidden @ weights["layer5.weight"].T + weights["layer5.bias"]
    expected = torch.stack([units[:, 4 * i : 4 * i + 4].max(1).values for i in range(64)], 1)
    torch.testing.assert_close(mlp(x), expected)


def test_columns_of_one_kind_skip_the_layer_of_groups_and_higgs_has_one_of_its_own():
    assert next(layer.in_features for layer in TabularMLP((64,), 2).modules() if isinstance(layer, nn.Linear)) == 64
    higgs = TabularMLP((28,), 2, first=64)
    assert [type(layer) for layer in higgs.first] == [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert (higgs.first[0].in_features, higgs.first[0].out_features) == (28, 64)
    assert higgs.layer1[0].in_features == 64
    assert higgs(torch.randn(5, 28)).shape == (5, 64)


def test_the_small_cnn_takes_any_size():
    assert SmallCNN(1, 4)(torch.zeros(2, 1, 8, 8)).shape == SmallCNN(1, 4)(torch.zeros(2, 1, 32, 40)).shape == (2, 32)
