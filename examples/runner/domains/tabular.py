"""Tables: rows as they are, input dropout, and the paper's MLP."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from runner.augment.tabular import input_dropout, scarf_corruption
from runner.data.tabular import NAMED, Table, load_tabular
from runner.domain import Task
from runner.encoders import TabularMLP
from runner.errors import Refused
from runner.options import share, whole
from runner.piecewise import EncodedMLP, PiecewiseLinear
from runner.settings import Settings

# The paper's temperature, 0.1, for every table: none was chosen by looking at test rows.
RECIPES: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 60, "alpha": 1.0},
    "covtype": {"epochs": 150, "alpha": 2.0, "batch_size": 512, "dropout_columns": 10},
    "higgs": {"epochs": 20, "alpha": 2.0, "batch_size": 512},
    # Chosen on eight tables that are named in runner/many_tables.py, and judged on others.
    "other": {"steps": 300, "batch_size": 128, "width": 2, "bins": 8, "alpha": 2.0},
}
FIRST_LAYER = {"higgs": 64}  # a layer of its own before the paper's five


@dataclass(frozen=True, kw_only=True)
class TabularSettings(Settings):
    """What only tables have."""

    label: str | None
    drop: tuple[str, ...] | None
    dropout: float
    corruption: float
    dropout_columns: int | None
    standardize_by: str
    bins: int = 0
    train_rows: int | None = None


class Tabular:
    """The domain of ``tabular.py``."""

    name = "tabular"
    description = "Contrastive pretraining on a table, with and without i-Mix."
    data_help = "digits, covtype, higgs, UCI's file of either, or any CSV or Parquet file with --label"
    named = NAMED
    augmentations = ("none", "default", "scarf")
    settings = TabularSettings

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        option = parser.add_argument
        option("--label", metavar="COLUMN", help="the column that holds the class, for a file of your own")
        option("--drop", nargs="+", metavar="COLUMN", help="leave these columns of a file of your own out")
        option("--dropout", type=float, metavar="P", help="input dropout of the default augmentation (default: 0.2)")
        option(
            "--corruption", type=share, metavar="P", help="of the columns that --augment scarf replaces (default: 0.6)"
        )
        option(
            "--bins",
            type=whole(0),
            metavar="K",
            help="encode numbers piecewise linearly in K bins; 0: leave them as they are (default: 8 for own files)",
        )
        option("--dropout-columns", type=int, metavar="K", help="drop inputs in the first K columns alone")
        option(
            "--standardize-by",
            choices=("train", "all"),
            help="covtype, higgs: scale the columns by the training rows (default), or as the paper by all rows",
        )
        option(
            "--train-rows", type=whole(2), metavar="N", help="higgs: train on so many rows, drawn as the paper's 100k"
        )

    def load(self, given: Mapping[str, Any]) -> Table:
        return load_tabular(
            given["data"],
            label=given["label"],
            drop=given["drop"] or (),
            root=given["data_root"],
            standardize_by=given["standardize_by"] or "train",
            train_rows=given.get("train_rows"),
        )

    def recipe(self, data_name: str, device: torch.device) -> dict[str, Any]:
        return {
            "width": 4,
            "bins": 0,
            "dropout": 0.2,
            "standardize_by": "train",
            "corruption": 0.6,
            "temperature": 0.1,
            **RECIPES.get(data_name, RECIPES["other"]),
        }

    def task(self, settings: TabularSettings, data: Table) -> Task:
        return Task(
            data,
            to_input=nn.Identity(),
            build_encoder=lambda: build_encoder(settings, data),
            augmented=build_augmentation(settings, data),
            raw_name="columns",
            pictures=False,
        )


def build_encoder(settings: TabularSettings, data: Table) -> TabularMLP:
    """The paper's MLP, or one over encoded numbers."""
    if not settings.bins:
        return TabularMLP(data.groups, settings.width, first=FIRST_LAYER.get(data.name))
    if settings.mix_at not in (None, "encode"):
        beside = "encoded columns go past it unmixed"
        raise Refused(f"--mix-at {settings.mix_at}: {beside}; wanted encode, or --bins 0")
    return EncodedMLP(PiecewiseLinear(data.train_x, data.numbers, settings.bins), settings.width)


def build_augmentation(settings: TabularSettings, data: Table) -> Callable[..., Tensor]:
    """What makes two views of a row: nothing, input dropout, or SCARF's corruption."""
    if settings.augment == "scarf":
        return scarf_corruption(settings.corruption, data.parts or (1,) * data.train_x.shape[1])
    return input_dropout(settings.dropout if settings.augment == "default" else 0.0, settings.dropout_columns)


TABULAR = Tabular()
