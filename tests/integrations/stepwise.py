"""Twenty steps of a training loop against the formula by hand.

Before a step the network is copied; from the copy and the raw views the step's loss is then worked out, dense and in
double precision, and so is its update.
"""

import copy

import oracle
import pytest
import torch

from imix_aug import IMix

STEPS, ROWS, RATE = 20, 8, 0.05


def two_views():
    """The same batches for every loop: two noisy views of twelve numbers per row."""
    generator = torch.Generator().manual_seed(7)
    for _ in range(STEPS):
        x = torch.randn(ROWS, 12, generator=generator)
        yield tuple(x + 0.3 * torch.randn(ROWS, 12, generator=generator) for _ in range(2))


def run(module, **settings):
    """Train; return the losses, the network as it was before each step and after the last, and the views."""
    torch.manual_seed(100)
    model = module.build()
    vars(module).update(settings)
    snapshots, batches = [], list(two_views())

    def loader():
        for step, batch in enumerate(batches):
            snapshots.append(copy.deepcopy(model))
            torch.manual_seed(step)
            yield batch
        snapshots.append(copy.deepcopy(model))

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    losses = module.train(model, loader(), torch.optim.SGD(trained, lr=RATE))
    return losses, snapshots, batches


def check(by_hand, losses, snapshots, batches):
    """Compare each step's loss, and what gradient descent made of it, with ``by_hand(model, views)``."""
    assert len(losses) == STEPS
    for step, views in enumerate(batches):
        model, after = snapshots[step], dict(snapshots[step + 1].named_parameters())
        torch.manual_seed(step)
        expected = by_hand(model, views)
        assert losses[step] == pytest.approx(expected.item(), rel=1e-9)
        trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
        gradients = torch.autograd.grad(expected, list(trained.values()), allow_unused=True)
        for (name, before), gradient in zip(trained.items(), gradients, strict=True):
            moved = before if gradient is None else before - RATE * gradient
            torch.testing.assert_close(after[name], moved, rtol=1e-8, atol=1e-10)


def draw(like, **settings):
    """The labels that the loop draws next, from the generator's state."""
    return IMix(**settings)(torch.zeros(len(like), 1, dtype=torch.float32))[1]


def mix(views, labels):
    """Mix each view, one row after the other."""
    return [
        torch.stack(
            [
                share * row + (1 - share) * view[j]
                for row, share, j in zip(view, labels.lam.double(), labels.partner, strict=True)
            ]
        )
        for view in views
    ]


def four_passes(encode, views, temperature):
    """SimCLR: both views unmixed as keys, both mixed as queries."""
    keys = [encode(x) for x in views]
    labels = draw(views[0])
    queries = [encode(x) for x in mix(views, labels)]
    return oracle.ntxent(*queries, *keys, labels, temperature).mean()
