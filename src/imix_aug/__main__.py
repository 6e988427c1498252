"""Versions, devices and backends, for bug reports, or the example loops: ``python -m imix_aug [examples DIR]``."""

import argparse
import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import imix_aug
from imix_aug import _examples
from imix_aug._backend import VARIABLE, chosen, why_not_triton

_PACKAGES = ("torch", "triton", "numpy", "typing_extensions")


def devices() -> list[torch.device]:
    """Return the CPU and every accelerator that PyTorch sees."""
    cards = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [torch.device("cpu"), *cards, *([torch.device("mps")] if torch.backends.mps.is_available() else [])]


def name(device: torch.device) -> str:
    """Return what is known of the device beyond its type."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
    return f"{platform.machine()}, {torch.get_num_threads()} threads" if device.type == "cpu" else platform.machine()


def backend(device: torch.device) -> str:
    """Return the implementation that rows on this device get, and why."""
    why_not = why_not_triton(device)
    if why_not is None:
        return "triton (Triton is installed and the card has the matrix units that the kernels are made for)"
    return f"torch, block by block ({why_not})"


def report() -> str:
    """Return the whole report."""
    lines = [f"imix_aug {imix_aug.__version__}", f"python {platform.python_version()}, {platform.platform()}"]
    for package in _PACKAGES:
        try:
            lines.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{package} not installed")
    lines.append(f"CUDA {torch.version.cuda or 'not built in'}, distributed {torch.distributed.is_available()}")
    lines.append(f"backend asked for: {chosen()} ({VARIABLE})")
    for device in devices():
        lines += [f"{device}: {name(device)}", f"  backend: {backend(device)}"]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the report, or copy the example loops."""
    parser = argparse.ArgumentParser("python -m imix_aug", description="Print versions, devices and backends.")
    command = parser.add_subparsers(dest="command", metavar="examples DIR")
    examples = command.add_parser("examples", help="copy the training loops into DIR instead")
    examples.add_argument("folder", metavar="DIR", type=Path)
    options = parser.parse_args(arguments)
    if options.command is None:
        print(report())
        return
    try:
        copies = _examples.copy(options.folder)
    except OSError as error:
        sys.exit(f"error: {f'{error.filename}: {error.strerror}' if error.filename else error}")
    for path in copies:
        print(path)
    print("They need scikit-learn, and speech.py more: pip install 'imix-aug[loops]'")


if __name__ == "__main__":
    main()
