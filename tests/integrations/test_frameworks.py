"""Training frameworks: the scripts train, in one process and in two."""

import re
import subprocess
import sys

import pytest
import torch
from falling import STEPS, falls


def test_lightning(script):
    assert script("with_lightning", "pytorch_lightning").main(steps=STEPS) < 4.0  # log(128) = 4.85 at the start


def test_lightning_rests_while_it_validates(script):
    module = script("with_lightning", "pytorch_lightning").Contrastive().eval()
    x = torch.rand(4, 1, 8, 8)
    mixed, labels = module.imix(x)
    assert mixed is x
    assert labels.lam.eq(1).all()


def test_lightning_ddp(script):
    """Trainer starts a second process of the script; the gathered loss sees the keys of both."""
    path = script("with_lightning", "pytorch_lightning").__file__
    arguments = ["--devices", "2", "--steps", "1"]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", path, *arguments], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    # Two processes write to one pipe, so a line may hold both.
    losses = [float(loss) for loss in re.findall(r"last loss (\d+\.\d{3})", run.stdout)]
    assert len(losses) == 2, run.stdout
    # An untrained loss grows with the logarithm of the keys: about 4.3 against 128 of them, 0.7 more against 256.
    assert all(4.7 < loss < 6.0 for loss in losses), losses


def test_accelerate(script):
    losses = script("with_accelerate", "accelerate").main(STEPS)
    assert falls(losses), losses


def test_hugging_face_trainer(script):
    losses = script("with_hf_trainer", "transformers", "accelerate").main(STEPS)
    assert falls(losses), losses


def test_hugging_face_model_mixes_only_in_training(script):
    model = script("with_hf_trainer", "transformers", "accelerate").Contrastive()
    views = torch.rand(2, 8, 1, 8, 8)
    model.train()
    assert model(*views)["loss"] != model(*views)["loss"]
    model.eval()
    logits = torch.nn.functional.normalize(model.net(views[0])) @ torch.nn.functional.normalize(model.net(views[1])).T
    plain = torch.nn.functional.cross_entropy(logits / 0.2, torch.arange(8))
    torch.testing.assert_close(model(*views)["loss"], plain)


def test_torchvision(script):
    pretraining, fine_tuning = script("with_torchvision", "torchvision").main(epochs=1, steps=STEPS)
    assert falls(pretraining), pretraining
    assert falls(fine_tuning), fine_tuning


def test_timm(script):
    pretraining, fine_tuning = script("with_timm", "timm").main(steps=10)
    assert falls(pretraining), pretraining
    assert falls(fine_tuning), fine_tuning


@pytest.mark.parametrize("seed", range(3))
def test_timms_mixup_of_a_batch_is_ours_with_its_partner(seed):
    """timm pairs row i with row N - 1 - i: with that partner and its lambda, the mixed images are the same."""
    data = pytest.importorskip("timm.data")
    import numpy as np

    from imix_aug._mixing.operators import blend

    np.random.seed(seed)  # noqa: NPY002 (timm draws from it)
    x, classes = torch.rand(8, 3, 4, 4), torch.arange(8)
    mixed, soft = data.Mixup(mixup_alpha=1.0, num_classes=8, label_smoothing=0.0)(x.clone(), classes)
    lam = soft[0, 0]
    torch.testing.assert_close(blend(x, torch.arange(8).flip(0), lam.expand(8)), mixed)
