"""What features are worth on many tables: raw columns, untrained network, six trainings, gradient boosting."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor, nn

from runner.controls import raw_input, untrained_encoder
from runner.domain import Task
from runner.domains.tabular import TABULAR
from runner.errors import Refused
from runner.evaluate import evaluate, extract_features, linear_probe
from runner.piecewise import EncodedMLP
from runner.report.wins import WinReport, accuracies, compare, draw_matrix, gains, matrix, means, seeds_of
from runner.run import parse, prepare, pretrain
from runner.settings import Settings
from runner.state.experiment import Experiment
from runner.state.files import write_text

# The recipe was chosen on these; what it is worth is read off the others.
DEVELOPMENT = ("chess", "contraceptive", "german", "mammographic", "marketing", "texture", "vehicle", "vowel")
SUFFIXES = (".csv", ".csv.gz", ".parquet")

RAW, UNTRAINED, BOOSTING = "raw columns", "untrained network", "gradient boosting"
JOINED = "SCARF + i-Mix + raw columns"
# Each training: the augmentation and the mix.
TRAININGS = {
    "none": ("none", "none"),
    "i-Mix": ("none", "mixup"),
    "dropout": ("default", "none"),
    "dropout + i-Mix": ("default", "mixup"),
    "SCARF": ("scarf", "none"),
    "SCARF + i-Mix": ("scarf", "mixup"),
}
ARMS = (RAW, UNTRAINED, *TRAININGS, JOINED, BOOSTING)
ONCE = (RAW, BOOSTING)  # nothing in them depends on the seed

Metrics = dict[str, float]


@dataclass(frozen=True)
class Bench:
    """One table, ready to be judged in every way."""

    path: Path
    prepared: dict[str, tuple[Settings, Task]]  # by augmentation

    def describe(self) -> dict[str, Any]:
        """How large the table is, and of what kinds."""
        return describe(self.prepared["default"][1])

    def judge(self, arm: str, seed: int) -> dict[str, Metrics]:
        """Return the accuracies of an arm, and of what comes along with it."""
        settings, task = self.prepared["default"]
        if arm == RAW:
            return {arm: raw_input(task, "logistic")}
        if arm == UNTRAINED:
            batch_size = min(settings.batch_size, len(task.data.train_y))
            return {arm: judge_encoder(untrained_encoder(task, seed, batch_size, settings.device), task)}
        if arm == BOOSTING:
            return {arm: boost(task, seed)}
        augment, mix = TRAININGS[arm]
        settings, task = self.prepared[augment]
        encoder, pace = pretrain(Experiment(settings, mix, seed), task, task.data)
        seconds = {"cpu_seconds": pace.summary()["cpu_seconds"]}
        found = {arm: {**judge_encoder(encoder, task), **seconds}}
        if arm == "SCARF + i-Mix":
            found[JOINED] = {"probe_accuracy": probe_joined(encoder, task)}
        return found


def find_tables(folder: Path) -> list[Path]:
    """All tables of a folder."""
    if not folder.is_dir():
        raise Refused(f"--path {folder}: wanted a folder of tables")
    found = [path for path in sorted(folder.iterdir()) if path.name.endswith(SUFFIXES)]
    if not found:
        raise Refused(f"--path {folder}: no table in it; wanted files that end with {', '.join(SUFFIXES)}")
    return found


def open_bench(path: Path, label: str, out: Path, options: list[str]) -> Bench:
    """Load a table, and settle how it is trained on; ``options`` are those of ``tabular.py``."""
    given = parse(TABULAR, ["--data", str(path), "--label", label, *options])
    load = functools.cache(lambda: TABULAR.load(given))
    prepared = {
        augment: prepare(TABULAR, {**given, "augment": augment, "out": out / augment}, lambda _: load())
        for augment in dict.fromkeys(augment for augment, _ in TRAININGS.values())
    }
    return Bench(path, prepared)


class Judged(Protocol):
    """A table that is ready to be judged."""

    def describe(self) -> dict[str, Any]:
        """How large it is."""

    def judge(self, arm: str, seed: int) -> dict[str, Metrics]:
        """Return what was found of an arm, and of what comes along with it."""


def arms_of(table: str, seed: int, report: WinReport) -> list[str]:
    """What has not been judged yet; what comes along with others, or depends on no seed, is not asked for."""
    arms = [arm for arm in ARMS if arm != JOINED and (seed == 0 or arm not in ONCE)]
    return [arm for arm in arms if not report.has(table, arm, seed)]


def judge_all(
    paths: list[Path],
    seeds: int,
    open_table: Callable[[Path], Judged],
    report: WinReport,
    missing: Callable[[str, int, WinReport], list[str]] = arms_of,
) -> None:
    """Judge what the report lacks, a seed of all tables before the next seed of any, and save each arm at once."""
    for seed in range(seeds):
        for path in paths:
            arms = missing(path.stem, seed, report)
            if not arms:
                continue
            bench = open_table(path)
            report.describe(path.stem, bench.describe())
            for arm in arms:
                report.add(path.stem, seed, bench.judge(arm, seed))


def describe(task: Task) -> dict[str, Any]:
    """How large a table is, and of what kinds."""
    data = task.data
    return {
        "training_rows": len(data.train_y),
        "test_rows": len(data.test_y),
        "columns": len(data.parts),
        "inputs": data.train_x.shape[1],
        "classes": len(data.classes),
    }


def judge_encoder(encoder: nn.Module, task: Task) -> Metrics:
    """Accuracies of all that an encoder hands on, and where it hands on its input too, of what it has learnt alone."""
    found = evaluate(encoder, task.data, task.to_input)
    if isinstance(encoder, EncodedMLP):
        alone = evaluate(Learnt(encoder), task.data, task.to_input)
        found.update({f"learnt_{name}": value for name, value in alone.items()})
    return found


class Learnt(nn.Module):
    """The encoder without the columns that go past its network."""

    def __init__(self, encoder: EncodedMLP) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder.learnt(x)


def boost(task: Task, seed: int, **options: Any) -> Metrics:
    """Gradient boosting on the raw columns with all labels: what a table is usually given."""
    data = task.data
    train, test = data.train_x.cpu().numpy(), data.test_x.cpu().numpy()
    model = HistGradientBoostingClassifier(random_state=seed, **options).fit(train, data.train_y.cpu().numpy())
    return {"probe_accuracy": model.score(test, data.test_y.cpu().numpy())}


def probe_joined(encoder: nn.Module, task: Task) -> float:
    """The linear probe of features and raw columns side by side."""
    data = task.data
    train, test = (
        torch.cat([extract_features(encoder, x, task.to_input), x.to(y.device)], dim=1)
        for x, y in ((data.train_x, data.train_y), (data.test_x, data.test_y))
    )
    return linear_probe(train, data.train_y, test, data.test_y)


METRICS = {
    "probe_accuracy": ("linear probe", ARMS),
    "knn_accuracy": ("kNN", (RAW, UNTRAINED, *TRAININGS)),
    "learnt_probe_accuracy": ("linear probe of what is learnt", (UNTRAINED, *TRAININGS)),
    "learnt_knn_accuracy": ("kNN of what is learnt", (UNTRAINED, *TRAININGS)),
}
PAIRS = (
    ("i-Mix", "none"),
    ("i-Mix", "dropout"),
    ("dropout + i-Mix", "dropout"),
    ("SCARF + i-Mix", "SCARF"),
    ("i-Mix", RAW),
    ("dropout + i-Mix", RAW),
    ("SCARF + i-Mix", RAW),
    (JOINED, RAW),
    (JOINED, BOOSTING),
)


def write_page(folder: Path, report: WinReport) -> str:
    """Write ``report.md`` and the pictures: the development tables and all others, each by themselves."""
    parts = [f"# {report.title}"]
    for kind, chosen in (("tables not looked at before", False), ("development tables", True)):
        cells = [cell for cell in report.cells if (cell["table"] in DEVELOPMENT) == chosen]
        for metric, (name, arms) in METRICS.items():
            found = means(cells, metric, arms)
            if not found:
                continue
            pairs = [pair for pair in PAIRS if set(pair) <= set(arms)]
            parts += [f"## {kind.capitalize()}, {name}", f"Means over {seeds_of(cells)}.", matrix(found, arms)]
            parts += [accuracies(found, arms), "\n".join(f"- {compare(found, *pair)}" for pair in pairs)]
            parts += ["Bold where the 95 % interval over the seeds leaves zero out.", gains(cells, metric, pairs)]
            if not chosen:
                draw_matrix(folder / f"{metric}.png", f"{report.title}, {name}, {seeds_of(cells)}", found, arms)
    page = "\n\n".join(parts) + "\n"
    write_text(folder / "report.md", page)
    return page
