"""Write the features of a saved encoder to a file, or its weights alone for use elsewhere.

python examples/embed.py CHECKPOINT --out features.npz             # or features.parquet
python examples/embed.py CHECKPOINT --data OTHER_DATA --out features.npz
python examples/embed.py CHECKPOINT --map map.png
python examples/embed.py CHECKPOINT --weights encoder.pt           # a plain state_dict
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from runner.device import pick_device
from runner.errors import one_line_errors
from runner.evaluate import extract_features
from runner.options import add_saved_options
from runner.report.plots import draw_map
from runner.state.files import write_atomically
from runner.state.saved import open_run
from sklearn.manifold import TSNE

MAPPED = 2000  # more rows are no clearer, and t-SNE takes its time


def main(argv: list[str] | None = None) -> None:
    """Embed and write."""
    parser = argparse.ArgumentParser(prog="embed.py", description="Write the features or weights of a saved encoder.")
    add_saved_options(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="features, labels and split: .npz or .parquet")
    parser.add_argument(
        "--map", type=Path, metavar="FILE", help="a picture: test features in two dimensions (t-SNE), as PNG"
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="the encoder's state_dict")
    args = parser.parse_args(argv)
    if not (args.out or args.weights or args.map):
        parser.error("nothing to write; give --out, --map or --weights")
    if args.out and args.out.suffix not in (".npz", ".parquet"):
        parser.error(f"--out {args.out}: wanted a name that ends with .npz or .parquet")
    with one_line_errors():
        device = pick_device(args.device)
        encoder, task = open_run(args.checkpoint, device, data=args.data, label=args.label, root=args.data_root)
        data, to_input = task.data, task.to_input
        if args.weights:
            weights = {name: weight.cpu() for name, weight in encoder.state_dict().items()}
            write_atomically(args.weights, lambda file: torch.save(weights, file))
        if args.map:
            rows = torch.randperm(len(data.test_x), generator=torch.Generator().manual_seed(0))[:MAPPED].to(
                data.test_x.device
            )
            features = F.normalize(extract_features(encoder, data.test_x[rows], to_input)).cpu().numpy()
            points = TSNE(perplexity=min(30, (len(rows) - 1) / 3), init="pca", random_state=0).fit_transform(features)
            draw_map(args.map, f"{data.name}, test rows", points, data.test_y[rows].cpu().numpy(), data.classes)
        if args.out:
            splits = {"train": (data.train_x, data.train_y), "test": (data.test_x, data.test_y)}
            features = {name: extract_features(encoder, x, to_input).cpu().numpy() for name, (x, _) in splits.items()}
            labels = {name: y.cpu().numpy() for name, (_, y) in splits.items()}
            if args.out.suffix == ".npz":
                arrays = {
                    f"{name}_{kind}": part[name] for kind, part in (("x", features), ("y", labels)) for name in splits
                }
                write_atomically(args.out, lambda file: np.savez(file, classes=np.array(data.classes), **arrays))
            else:
                table = pd.DataFrame(np.concatenate(list(features.values()))).rename(columns=lambda i: f"feature_{i}")
                table["label"] = np.array(data.classes)[np.concatenate(list(labels.values()))]
                table["split"] = np.repeat(list(splits), [len(y) for y in labels.values()])
                write_atomically(args.out, table.to_parquet)


if __name__ == "__main__":
    main()
