"""`python -m imix_aug`, which bug reports begin with."""

import importlib.metadata
import importlib.util
import subprocess
import sys

import torch

import imix_aug
from imix_aug import __main__ as main


def test_report_names_versions_devices_and_backends():
    run = subprocess.run([sys.executable, "-m", "imix_aug"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"imix_aug {imix_aug.__version__}\n")
    assert f"torch {torch.__version__.partition('+')[0]}" in run.stdout
    assert "\ncpu: " in run.stdout
    assert "  backend: blocked (plain torch" in run.stdout


def test_backend_of_a_card_without_triton_says_so(monkeypatch):
    monkeypatch.setattr(main.sweeps, "implementation", lambda device: main.sweeps.blocked)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main.backend(torch.device("cuda", 0)).startswith("blocked (Triton is not installed")


def test_a_package_that_is_missing_and_an_older_card_are_named(monkeypatch):
    def no_version(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", no_version)
    assert "\nnumpy not installed\n" in main.report()
    monkeypatch.setattr(main.sweeps, "implementation", lambda device: main.sweeps.blocked)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert main.backend(torch.device("cuda", 0)).startswith("blocked (the kernels want compute capability 8.0")
