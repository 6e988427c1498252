"""``python -m benchmarks [SUBCOMMAND ...]``: measure, print tables, and write JSON and plots beside this file."""

import argparse
import re
from pathlib import Path

import torch

from benchmarks import measure, report
from benchmarks.arguments import ARGUMENTS
from benchmarks.timing import describe

SUBCOMMANDS = ("loss", "simclr", "memory", "mix", "step", "growth", "arguments", "cost", "directions")
PEERS = (
    "formula compiled",
    "torch chunked",
    "Inf-CL",
    "cut-cross-entropy",
    "Liger",
    "lightly",
    "pytorch-metric-learning",
)

DEFAULTS = {
    "cpu": {
        "sizes": ["64x128", "256x128", "1024x128", "2048x128", "4096x128", "512x512", "2048x512", "512+65536x128"],
        "simclr_sizes": ["64x128", "256x128", "1024x128"],
        "growth_sizes": [
            "128x128",
            "256x128",
            "512x128",
            "1024x128",
            "2048x128",
            "4096x128",
            "1024x32",
            "1024x64",
            "1024x256",
            "1024x512",
        ],
        "cost_size": "2048x128",
        "direction_sizes": ["64x128", "256x128", "1024x128", "4096x128"],
        "memory_rows": [1024, 4096, 8192, 16384, 32768],
        "dense_rows": 8192,
        "megabytes": [1, 4, 16, 64, 256],
        "models": ["mlp:256x32", "resnet18:32x32"],
    },
    "cuda": {
        "sizes": [f"{n}x{d}" for d in (128, 256, 512, 768) for n in (8192, 16384, 32768, 65536)]
        + ["4096+65536x128", "262144x512"],
        "simclr_sizes": ["1024x128", "4096x128"],
        "growth_sizes": [f"{n}x{d}" for d in (128, 512) for n in (1024, 4096, 16384, 65536)],
        "cost_size": "16384x128",
        "direction_sizes": ["1024x128", "4096x128", "16384x128", "65536x128"],
        "memory_rows": [4096, 16384, 65536, 262144],
        "dense_rows": 32768,
        "megabytes": [16, 64, 256, 1024],
        "models": ["resnet18:256x32", "resnet50:128x224"],
    },
}


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch finds no CUDA device here")
    for name, value in DEFAULTS[options.device].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    torch.set_num_threads(options.threads)
    machine = describe(torch.device(options.device), options.threads)
    folder = options.out or Path(__file__).parent / "results" / re.sub(
        r"\W+", "-", str(machine["device"]).lower()
    ).strip("-")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"--out {folder}: wanted a folder: {error.strerror}") from error
    print(", ".join(f"{name}: {value}" for name, value in machine.items()))
    for subcommand in options.subcommands or SUBCOMMANDS:
        print(f"\n## {subcommand}: {getattr(measure, subcommand).__doc__}\n")
        path = folder / f"{subcommand}.json"
        measured = []
        for row in getattr(measure, subcommand)(options):  # Each row is saved at once: a killed run loses one.
            measured.append(row)
            everything = report.merge(path, machine, [row])
            print(f"measured {row['size']}", flush=True)
        if measured:
            print("\n" + report.table(subcommand, measured))
            report.plot(subcommand, path.with_suffix(".png"), machine, everything)
    print(f"\nresults: {folder}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "subcommands",
        nargs="*",
        type=_subcommand,
        metavar="SUBCOMMAND",
        help=f"of {', '.join(SUBCOMMANDS)}; default all",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16", "float16"), default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=11, help="interleaved rounds whose median counts")
    parser.add_argument("--seconds", type=float, default=15, help="at most, for the rounds of one row")
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=list(PEERS), metavar="PEER", help=f"of {', '.join(PEERS)}"
    )
    parser.add_argument("--out", type=Path, help="folder of the results; default benchmarks/results/DEVICE")
    parser.add_argument("--sizes", nargs="+", help="loss: NxD, or N+KxD with K negatives and fixed keys")
    parser.add_argument("--unmixed", action="store_true", help="loss: without labels, plain InfoNCE")
    parser.add_argument("--simclr-sizes", nargs="+", help="simclr: NxD")
    parser.add_argument("--growth-sizes", nargs="+", help="growth: NxD")
    parser.add_argument("--memory-rows", nargs="+", type=int, help="memory: N")
    parser.add_argument("--memory-width", type=int, default=128, help="memory: D")
    parser.add_argument("--dense-rows", type=int, help="memory: the largest N at which the dense formula runs too")
    parser.add_argument("--argument-rows", type=int, default=32_768, help="arguments: N")
    parser.add_argument(
        "--arguments",
        nargs="+",
        choices=ARGUMENTS,
        default=list(ARGUMENTS),
        metavar="NAME",
        help="arguments, cost: which of them",
    )
    parser.add_argument("--cost-size", help="cost: NxD")
    parser.add_argument("--direction-sizes", nargs="+", help="directions: NxD")
    parser.add_argument("--megabytes", nargs="+", type=float, help="mix: size of the batch")
    parser.add_argument(
        "--models", nargs="+", help="step: NAME:BATCHxSIDE, NAME being mlp or one of torchvision's ResNets"
    )
    return parser


def _subcommand(text: str) -> str:
    if text not in SUBCOMMANDS:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(SUBCOMMANDS)}, got {text!r}")
    return text


if __name__ == "__main__":
    main()
