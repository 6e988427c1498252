"""Try settings for tables of one's own on the development tables: `python docs/figures/recipe_runs.py DIR`.

Each split of a table is drawn anew: 70 % of its rows train, at most 1,500, and at most 1,500 others test. Within a
split both trainings of a setting see the same rows, batches and first weights. Runs go into `recipe.json` beside this
file as they end; what is there is not run again. Settings can be named: `recipe_runs.py DIR "no augmentation"`.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from runs import load_runs, save_runs
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from runner.controls import raw_input, untrained_encoder
from runner.data.tabular import Table
from runner.domains import tabular
from runner.domains.tabular import TABULAR
from runner.evaluate import evaluate
from runner.many_tables import DEVELOPMENT, judge_encoder
from runner.piecewise import EncodedMLP, PiecewiseLinear
from runner.run import parse, prepare, pretrain
from runner.state.experiment import Experiment

MOST = 1500

PLAIN = "three layers of 256, AdamW"
# What differs from the defaults for a file of one's own.
SETTINGS: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "no augmentation": {"augment": "none"},
    "no augmentation, temperature 0.2": {"augment": "none", "temperature": 0.2},
    "no augmentation, alpha 1": {"augment": "none", "alpha": 1.0},
    "no augmentation, width 4": {"augment": "none", "width": 4},
    "no augmentation, mixed once encoded": {"augment": "none", "mix_at": "encode"},
    "mixed once encoded": {"mix_at": "encode"},
    "alpha 0.5": {"alpha": 0.5},
    "temperature 0.2": {"temperature": 0.2},
    "temperature 0.5": {"temperature": 0.5},
    "1,000 steps": {"steps": 1000},
    "SCARF, 30 %": {"augment": "scarf", "corruption": 0.3},
    PLAIN: {},
}


class PlainMLP(EncodedMLP):
    """Three layers of 256 units, nothing normalised, over encoded columns, which it hands on too."""

    def __init__(self, encode: PiecewiseLinear) -> None:
        nn.Module.__init__(self)
        self.encode, self.features = encode, 256 + encode.outputs
        sizes = pairwise((encode.outputs, 256, 256, 256))
        self.layers = nn.Sequential(*(part for n, m in sizes for part in (nn.Linear(n, m), nn.ReLU())))

    def forward(self, x: Tensor) -> Tensor:
        encoded = self.encode(x)
        return torch.cat([self.layers(encoded), encoded], dim=1)

    def learnt(self, x: Tensor) -> Tensor:
        return self.layers(self.encode(x))


def adamw(parameters, *, epochs, steps_per_epoch, **_):
    """AdamW at 1e-3 with a warm-up of a tenth and a cosine."""
    optimizer = torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=1e-3, weight_decay=1e-4)
    total = epochs * steps_per_epoch

    def factor(step: int) -> float:
        return min(1, (step + 1) / max(1, total // 10)) * 0.5 * (1 + math.cos(math.pi * min(1, step / total)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def split_anew(table: Table, split: int) -> Table:
    """Other training and test rows than those of the file's own split."""
    x, y = torch.cat([table.train_x, table.test_x]), torch.cat([table.train_y, table.test_y])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1000 + split))
    cut = int(0.7 * len(x))
    train, test = order[:cut][:MOST], order[cut:][:MOST]
    return replace(table, train_x=x[train], train_y=y[train], test_x=x[test], test_y=y[test], rows=None)


def in_percent(found: dict[str, float], prefix: str = "") -> dict[str, float]:
    """Both accuracies of some features."""
    return {name: round(100 * found[f"{prefix}{name}_accuracy"], 2) for name in ("probe", "knn")}


def run(path: Path, table: Table, split: int, setting: str, mix: str) -> dict[str, dict[str, float]]:
    """Train once, and judge what the network has learnt (`own`) and all that it hands on (`all`)."""
    data, changes = split_anew(table, split), SETTINGS[setting]
    with tempfile.TemporaryDirectory() as folder, network(setting):
        given = {**parse(TABULAR, ["--data", str(path), "--label", "class"]), "out": Path(folder)}
        recipe = {**tabular.RECIPES["other"], **{key: changes[key] for key in changes.keys() - given.keys()}}
        given |= {key: changes[key] for key in changes.keys() & given.keys()}
        with patch.dict(tabular.RECIPES, other=recipe):
            settings, task = prepare(TABULAR, given, lambda _: data)
        if mix == "untrained":
            encoder = untrained_encoder(task, split, min(settings.batch_size, len(data.train_y)), settings.device)
        else:
            encoder, _ = pretrain(Experiment(settings, mix, split), task, data)
    judged = judge_encoder(encoder, task)
    found = {"own": in_percent(judged, "learnt_"), "all": in_percent(judged)}
    if mix == "untrained":
        found["raw"] = in_percent(raw_input(task, "logistic"))
        found["encoded"] = in_percent(evaluate(encoder.encode, data, task.to_input))
    return found


@contextmanager
def network(setting: str) -> Iterator[None]:
    """Put the plain network and its optimiser where the recipe's are, if the setting asks for them."""
    if setting != PLAIN:
        yield
        return

    def build(settings: tabular.TabularSettings, data: Table) -> PlainMLP:
        return PlainMLP(PiecewiseLinear(data.train_x, data.numbers, settings.bins))

    with patch.object(tabular, "build_encoder", build), patch("runner.run.build_optimizer", adamw):
        yield


def main() -> None:
    """Run what is missing, a split of all settings and tables before the next."""
    parser = argparse.ArgumentParser(description="Settings for tables of one's own, on the development tables.")
    parser.add_argument("tables", type=Path, metavar="DIR")
    parser.add_argument("settings", nargs="*", default=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--splits", nargs="+", type=int, default=[0], metavar="N")
    args = parser.parse_args()
    kept = load_runs("recipe")
    known = set(map(identity, kept))
    for split in args.splits:
        for setting in args.settings:
            for name in DEVELOPMENT:
                path = args.tables / f"{name}.csv"
                mixes = ("untrained", "none", "mixup") if setting == "the recipe" else ("none", "mixup")
                missing = [mix for mix in mixes if (setting, name, split, mix) not in known]
                table = TABULAR.load(parse(TABULAR, ["--data", str(path), "--label", "class"])) if missing else None
                for mix in missing:
                    start = time.process_time()
                    found = run(path, table, split, setting, mix)
                    key = {"setting": setting, "table": name, "split": split, "mix": mix}
                    kept.append({**key, **found, "cpu_seconds": round(time.process_time() - start, 2)})
                    save_runs("recipe", sorted(kept, key=identity))


def identity(one: dict[str, Any]) -> tuple[str, str, int, str]:
    """What tells a run from all others."""
    return one["setting"], one["table"], one["split"], one["mix"]


if __name__ == "__main__":
    main()
