"""Pretrain on a table, with and without i-Mix, and compare what the features are worth.

python examples/tabular.py                              # scikit-learn's digits, a few minutes
python examples/tabular.py --data covtype --seeds 3     # UCI Covertype, downloaded once
python examples/tabular.py --data mine.csv --label species
"""

from __future__ import annotations

import argparse

import torch
from common.cli import build_parser, complete, one_line_errors
from common.dataset import Dataset, reduce
from common.distributed import is_main, join_ranks, main_first, spread
from common.encoders import TabularMLP
from common.evaluate import evaluate
from common.loop import Loop
from common.methods import build_method
from common.pace import Pace
from common.recipe import Columns, autocast, build_inputmix, build_mix, build_optimizer
from common.results import Results
from common.tabular_data import input_dropout, load_tabular
from torch import Tensor, nn

# The paper's temperature, 0.1, for every table: none was chosen by looking at test rows.
RECIPES = {
    "digits": {"epochs": 60, "alpha": 1.0, "temperature": 0.1},
    "covtype": {"epochs": 150, "alpha": 2.0, "temperature": 0.1, "batch_size": 512},
    "higgs": {"epochs": 20, "alpha": 2.0, "temperature": 0.1, "batch_size": 512},
    "other": {"epochs": 100, "alpha": 2.0, "temperature": 0.1},
}


def to_input(x: Tensor) -> Tensor:
    """What the network sees of a row: the row."""
    return x


def pretrain(args: argparse.Namespace, data: Dataset, mix: str, seed: int) -> tuple[nn.Module, Pace]:
    """Train one encoder from scratch; return it and how fast that went."""
    torch.manual_seed(seed)
    encoder = TabularMLP(data.groups, args.width)
    method = build_method(args, encoder)
    imix, inputmix = build_mix(mix, args.alpha), build_inputmix(args.inputmix)
    if mix == "cutmix":
        imix = Columns(imix)
    augment = input_dropout(args.dropout if args.augment == "default" else 0.0, args.dropout_columns)

    optimizer, schedule = build_optimizer(args, method, len(data.train_x))
    parts = {"method": method, "optimizer": optimizer, "schedule": schedule}
    train = spread(method, args, seed)
    loop = Loop(args, mix, seed, rows=len(data.train_x), parts=parts)
    for rows in loop:
        x = data.train_x[rows]
        view_1, view_2 = (inputmix(to_input(augment(x))) for _ in range(2))
        with autocast(args):
            loss = train(view_1, view_2, imix, data.train_y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        method.after_step()
        loop.record(loss)
    return encoder, loop.pace


def main(argv: list[str] | None = None) -> None:
    """Train with each mix and seed, and report."""
    parser = build_parser(
        "tabular",
        description="Contrastive pretraining on a table, with and without i-Mix.",
        data="digits",
        data_help="digits, covtype, higgs, UCI's file of either, or any CSV or Parquet file with --label",
    )
    parser.add_argument("--label", metavar="COLUMN", help="the column that holds the class, for a file of your own")
    parser.add_argument(
        "--dropout", type=float, metavar="P", help="input dropout of the default augmentation (default: 0.2)"
    )
    parser.add_argument("--dropout-columns", type=int, metavar="K", help="drop inputs in the first K columns alone")
    args = parser.parse_args(argv)
    with one_line_errors():
        join_ranks(args)
        with main_first():
            data = load_tabular(args.data, label=args.label, root=args.data_root)
        recipe = RECIPES.get(data.name, RECIPES["other"])
        args = complete(args, {"width": 4, "dropout": 0.2, **recipe}, data)
        data = data.to(args.device)
        shown = reduce(data, args.data_fraction, args.class_fraction)
        results = Results(args, data.name)
        for mix in args.mix:
            for seed in range(args.seeds):
                encoder, pace = pretrain(args, shown, mix, seed)
                if is_main():
                    results.add(mix, seed, evaluate(encoder, data, to_input), pace)
        if is_main():
            results.finish()


if __name__ == "__main__":
    main()
