"""Write the features of a saved encoder to a file, or its weights alone for use elsewhere.

python examples/embed.py CHECKPOINT --out features.parquet         # or .csv, .npz
python examples/embed.py CHECKPOINT --out features.parquet --with-input
python examples/embed.py CHECKPOINT --data OTHER_DATA --out features.npz
python examples/embed.py CHECKPOINT --map map.png
python examples/embed.py CHECKPOINT --weights encoder.pt           # a plain state_dict
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from runner.data.dataset import Dataset, take
from runner.data.tabular import Table
from runner.device import pick_device
from runner.domain import Task
from runner.errors import Refused, one_line_errors
from runner.evaluate import extract_features
from runner.options import add_saved_options
from runner.report.plots import draw_map
from runner.state.files import write_atomically, write_tensors
from runner.state.place import refuse_unwritable
from runner.state.saved import open_run
from sklearn.manifold import TSNE
from torch import nn

MAPPED = 2000  # more rows are no clearer, and t-SNE takes its time
SPLITS = ("train", "test")


def main(argv: Sequence[str] | None = None) -> None:
    """Embed and write."""
    parser = argparse.ArgumentParser(prog="embed.py", description="Write the features or weights of a saved encoder.")
    add_saved_options(parser)
    option = parser.add_argument
    option("--out", type=Path, metavar="FILE", help="features, labels and split: .parquet, .csv or .npz")
    option("--with-input", action="store_true", help="put the columns of the table beside the features (not .npz)")
    option("--map", type=Path, metavar="FILE", help="a picture: test features in two dimensions (t-SNE), as PNG")
    option("--weights", type=Path, metavar="FILE", help="the encoder's state_dict")
    args = parser.parse_args(argv)
    if not (args.out or args.weights or args.map):
        parser.error("nothing to write; give --out, --map or --weights")
    if args.out and args.out.suffix not in (".npz", ".parquet", ".csv"):
        parser.error(f"--out {args.out}: wanted a name that ends with .parquet, .csv or .npz")
    if args.with_input and (args.out is None or args.out.suffix == ".npz"):
        parser.error("--with-input: wanted --out with a name that ends with .parquet or .csv")
    with one_line_errors():
        refuse_unwritable(args.out, args.map, args.weights)
        encoder, task = open_run(
            args.checkpoint,
            pick_device(args.device),
            data=args.data,
            label=args.label,
            drop=args.drop,
            root=args.data_root,
        )
        if args.weights:
            write_tensors(args.weights, {name: weight.cpu() for name, weight in encoder.state_dict().items()})
        if args.map:
            write_map(args.map, encoder, task)
        if args.out:
            features = [extract_features(encoder, getattr(task.data, f"{split}_x"), task.to_input) for split in SPLITS]
            write_features(args.out, task.data, [part.cpu().numpy() for part in features], with_input=args.with_input)


def write_features(path: Path, data: Dataset, features: Sequence[np.ndarray], *, with_input: bool) -> None:
    """Write one row for each row of the file, in its order and under its index."""
    labels = [getattr(data, f"{split}_y").cpu().numpy() for split in SPLITS]
    places = data.places() if isinstance(data, Table) else np.arange(sum(map(len, labels)))
    if path.suffix == ".npz":
        named = {"x": features, "y": labels, "row": np.split(places, [len(labels[0])])}
        arrays = {
            f"{split}_{kind}": part for kind, parts in named.items() for split, part in zip(SPLITS, parts, strict=True)
        }
        write_atomically(path, lambda file: np.savez(file, classes=np.array(data.classes), **arrays))
        return
    table = pd.DataFrame(np.concatenate(features), index=places).rename(columns=lambda i: f"feature_{i}")
    table["label"] = np.array(data.classes)[np.concatenate(labels)]
    table["split"] = np.repeat(SPLITS, [len(part) for part in labels])
    table = table.sort_index()
    raw = data.raw if isinstance(data, Table) else None
    if raw is not None:
        table.index = raw.index[table.index]
    if with_input:
        table = join_input(table, raw, data.name)
    if path.suffix == ".csv":
        write_atomically(path, lambda file: file.write(table.to_csv().encode()))
    else:
        write_atomically(path, table.to_parquet)


def join_input(table: pd.DataFrame, raw: pd.DataFrame | None, name: str) -> pd.DataFrame:
    """Put the columns of the file first."""
    if raw is None:
        raise Refused(f"--with-input: {name} has no columns of its own to put beside the features")
    if twice := sorted(set(raw.columns) & set(table.columns)):
        raise Refused(f"--with-input: the table has a column {twice[0]!r} of its own; rename it, or --drop it")
    return pd.concat([raw, table], axis=1)


def write_map(path: Path, encoder: nn.Module, task: Task) -> None:
    """Draw the features of test rows in two dimensions."""
    data = task.data
    order = torch.randperm(len(data.test_x), generator=torch.Generator().manual_seed(0))
    rows = order[:MAPPED]
    features = F.normalize(extract_features(encoder, take(data.test_x, rows), task.to_input)).cpu().numpy()
    points = TSNE(perplexity=min(30, (len(rows) - 1) / 3), init="pca", random_state=0).fit_transform(features)
    draw_map(path, f"{data.name}, test rows", points, take(data.test_y, rows).cpu().numpy(), data.classes)


if __name__ == "__main__":
    main()
