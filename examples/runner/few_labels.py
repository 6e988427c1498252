"""What pretraining is worth on many tables where few rows have a label: probe and fine-tuning against none of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from runner.controls import Raw, untrained_encoder
from runner.data.dataset import draw_labels
from runner.domain import Task
from runner.evaluate import extract_features, linear_probe
from runner.fine_tuning import fine_tune
from runner.many_tables import BOOSTING, DEVELOPMENT, RAW, Metrics, boost, describe
from runner.report.shares import averages, draw_shares, duels, in_percent
from runner.report.wins import WinReport, accuracies, means, seeds_of
from runner.run import pretrain
from runner.settings import Settings
from runner.state.experiment import Experiment
from runner.state.files import write_text

# Chosen on five development tables (docs/results/tables.md), for all shares and for the network from scratch too.
STEPS, RATE = 100, 0.05

PROBED, FROM_SCRATCH = "untrained, probe", "from scratch"
# Each network: the mix that it was pretrained with, and what its probe and its fine-tuning are called.
NETWORKS = {
    "untrained": (None, PROBED, FROM_SCRATCH),
    "none": ("none", "none, probe", "none, fine-tuned"),
    "i-Mix": ("mixup", "i-Mix, probe", "i-Mix, fine-tuned"),
}
ARMS = (RAW, BOOSTING, *(name for _, *names in NETWORKS.values() for name in names))
PAIRS = (
    *(("i-Mix, probe", other) for other in (RAW, BOOSTING, FROM_SCRATCH, PROBED, "none, probe")),
    *(("i-Mix, fine-tuned", other) for other in (RAW, BOOSTING, FROM_SCRATCH, "none, fine-tuned")),
    *(("none, probe", other) for other in (PROBED, FROM_SCRATCH)),
    ("none, fine-tuned", FROM_SCRATCH),
)

Way = Callable[[Tensor], float]  # labelled rows to the accuracy on the test rows


@dataclass(frozen=True)
class FewLabels:
    """One table, ready to be judged with each share of its labels."""

    settings: Settings
    task: Task
    shares: Sequence[float]

    def judge(self, arm: str, seed: int) -> dict[str, Metrics]:
        """Return the accuracies of an arm by share, and of what comes along with it."""
        return {
            name: {str(share): way(self.draw(share, seed)) for share in self.shares}
            for name, way in self._ways(arm, seed).items()
        }

    def draw(self, share: float, seed: int) -> Tensor:
        """The rows that keep their label, the same for all arms."""
        return draw_labels(self.task.data.train_y, share, seed)

    def describe(self) -> dict[str, Any]:
        """How large the table is, and how many labels a share of them is."""
        return {**describe(self.task), "labels": {str(share): len(self.draw(share, 0)) for share in self.shares}}

    def _ways(self, arm: str, seed: int) -> dict[str, Way]:
        if arm == RAW:
            return {arm: self._probe(Raw())}
        if arm == BOOSTING:
            return {arm: lambda rows: boost_few(self.task, seed, rows)}
        mix, probed, tuned = NETWORKS[arm]
        if mix is None:
            batch_size = min(self.settings.batch_size, len(self.task.data.train_y))
            encoder = untrained_encoder(self.task, seed, batch_size, self.settings.device)
        else:
            encoder, _ = pretrain(Experiment(self.settings, mix, seed), self.task, self.task.data)
        return {probed: self._probe(encoder), tuned: self._fine_tune(encoder, seed)}

    def _probe(self, encoder: nn.Module) -> Way:
        data, to_input = self.task.data, self.task.to_input
        train, test = (extract_features(encoder, x, to_input) for x in (data.train_x, data.test_x))
        return lambda rows: linear_probe(train[rows], data.train_y[rows], test, data.test_y)

    def _fine_tune(self, encoder: nn.Module, seed: int) -> Way:
        data, to_input = self.task.data, self.task.to_input
        return lambda rows: fine_tune(encoder, data, to_input, rows, steps=STEPS, rate=RATE, seed=seed)


def boost_few(task: Task, seed: int, rows: Tensor) -> float:
    """Gradient boosting on the labelled rows alone.

    Its leaves hold a tenth of them, or 20 rows as is scikit-learn's default: with that, 39 rows would make no split.
    """
    labelled = replace(task.data, train_x=task.data.train_x[rows], train_y=task.data.train_y[rows])
    leaf = max(1, min(20, len(rows) // 10))
    return boost(replace(task, data=labelled), seed, min_samples_leaf=leaf)["probe_accuracy"]


def arms_of(table: str, seed: int, report: WinReport) -> list[str]:
    """What has not been judged yet."""
    missing = [arm for arm in (RAW, BOOSTING) if not report.has(table, arm, seed)]
    return missing + [name for name, (_, probed, _) in NETWORKS.items() if not report.has(table, probed, seed)]


def write_page(folder: Path, report: WinReport, shares: Sequence[float]) -> str:
    """Write ``report.md`` and the picture: the development tables and all others, each by themselves."""
    parts = [f"# {report.title}"]
    for kind, chosen in (("tables not looked at before", False), ("development tables", True)):
        cells = [cell for cell in report.cells if (cell["table"] in DEVELOPMENT) == chosen]
        found = {share: means(cells, str(share), ARMS) for share in shares}
        if not all(found.values()):
            continue
        parts += [f"## {kind.capitalize()}, means over {seeds_of(cells)}", averages(found, ARMS), duels(found, PAIRS)]
        for share, tables in found.items():
            parts += [f"## {kind.capitalize()}, {in_percent(share)} of the labels", accuracies(tables, ARMS)]
        if not chosen:
            draw_shares(folder / "report.png", f"{report.title}, {seeds_of(cells)}", found, ARMS)
    page = "\n\n".join(parts) + "\n"
    write_text(folder / "report.md", page)
    return page
