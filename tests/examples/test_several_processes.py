"""The recipe for several processes under each launcher: two end with the weights of one that has the whole batch."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"
SCRIPT = RECIPES / "several_processes.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
NEEDS = {"torchrun": "torch", "accelerate": "accelerate", "lightning": "pytorch_lightning"}


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    spec = importlib.util.spec_from_file_location("several_processes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of_one_process(recipe):
    model = recipe.Contrastive(alpha=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model(*recipe.views().tensors).item()
    for batch in DataLoader(recipe.views(), 128):
        optimizer.zero_grad()
        model(*batch).backward()
        optimizer.step()
    return model, before


@pytest.mark.parametrize("launcher", NEEDS)
def test_two_processes_are_one_with_the_whole_batch(recipe, launcher, tmp_path):
    pytest.importorskip(NEEDS[launcher])
    arguments = [launcher, "--alpha", "0", "--batch-size", "64", "--out", str(tmp_path / "{rank}.pt")]
    run = subprocess.run([*TORCHRUN, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr[-3000:]
    alone, before = of_one_process(recipe)
    assert alone(*recipe.views().tensors).item() < before - 0.05  # it learns, so that equal weights say something
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.pt", "1.pt"]
    for rank in range(2):
        weights = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, weight in alone.net.state_dict().items():
            torch.testing.assert_close(weights[name], weight, rtol=0, atol=2e-5)
