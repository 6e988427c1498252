"""Ask of a saved encoder what its features are worth: with all labels, with few, and fine-tuned.

python examples/probe.py runs/tabular-digits-npair/runs/npair-mixup-seed0/checkpoint.pt
python examples/probe.py CHECKPOINT --data OTHER_DATA        # transfer
python examples/probe.py CHECKPOINT --labels 0.01 0.1 --fine-tune
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

from runner.data.dataset import draw_labels
from runner.device import pick_device
from runner.errors import one_line_errors
from runner.evaluate import extract_features, linear_probe, nearest_neighbours
from runner.fine_tuning import fine_tune, steps_per_epoch
from runner.options import add_saved_options
from runner.state.files import write_text
from runner.state.place import refuse_unwritable
from runner.state.saved import open_run


def main(argv: list[str] | None = None) -> None:
    """Probe and report."""
    parser = argparse.ArgumentParser(prog="probe.py", description="What the features of a saved encoder are worth.")
    add_saved_options(parser)
    parser.add_argument(
        "--labels", nargs="+", type=float, default=[0.01, 0.1, 1.0], metavar="SHARE", help="of the labels"
    )
    parser.add_argument("--draws", type=int, default=3, help="how often a share is drawn; the mean counts (default: 3)")
    parser.add_argument("--fine-tune", action="store_true", help="also train the encoder on the labels")
    parser.add_argument("--epochs", type=int, default=30, help="of fine-tuning (default: 30)")
    parser.add_argument("--lr", type=float, default=0.05, help="of fine-tuning (default: 0.05)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the numbers as JSON")
    args = parser.parse_args(argv)
    if not all(0 < share <= 1 for share in args.labels):
        parser.error(f"--labels {args.labels}: wanted shares between 0 and 1")
    with one_line_errors():
        refuse_unwritable(args.out)
        device = pick_device(args.device)
        encoder, task = open_run(
            args.checkpoint, device, data=args.data, label=args.label, drop=args.drop, root=args.data_root
        )
        data, to_input = task.data, task.to_input
        train = extract_features(encoder, data.train_x, to_input)
        test = extract_features(encoder, data.test_x, to_input)
        found = {"knn_accuracy": nearest_neighbours(train, data.train_y, test, data.test_y), "labels": {}}
        print(f"{data.name}: accuracy in percent\n\nkNN, all labels       {100 * found['knn_accuracy']:6.2f}")
        for share in args.labels:
            draws = [draw_labels(data.train_y, share, seed) for seed in range(args.draws if share < 1 else 1)]
            probes = [linear_probe(train[rows], data.train_y[rows], test, data.test_y) for rows in draws]
            cell = {"rows": len(draws[0]), "probe_accuracy": mean(probes)}
            print(f"linear probe, {100 * share:5.4g} %  {100 * cell['probe_accuracy']:6.2f}   ({len(draws[0])} labels)")
            if args.fine_tune:
                steps = args.epochs * steps_per_epoch(len(draws[0]))
                tuned = [fine_tune(encoder, data, to_input, rows, steps=steps, rate=args.lr) for rows in draws]
                cell["fine_tuned_accuracy"] = mean(tuned)
                print(f"fine-tuned,   {100 * share:5.4g} %  {100 * cell['fine_tuned_accuracy']:6.2f}")
            found["labels"][str(share)] = cell
        if args.out:
            text = json.dumps({"checkpoint": str(args.checkpoint), "data": data.name, **found}, indent=2) + "\n"
            write_text(args.out, text)


if __name__ == "__main__":
    main()
