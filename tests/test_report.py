"""`python -m imix_aug`, which bug reports begin with."""

import importlib.metadata
import os
import subprocess
import sys
import warnings

import pytest
import torch

import imix_aug
from imix_aug import __main__ as main
from imix_aug import _backend, use_backend


def test_report_names_versions_devices_and_backends():
    run = subprocess.run([sys.executable, "-m", "imix_aug"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"imix_aug {imix_aug.__version__}\n")
    assert f"torch {torch.__version__.partition('+')[0]}" in run.stdout
    assert "\ncpu: " in run.stdout
    assert "  backend: torch, block by block (only CUDA has kernels)" in run.stdout


CARD = torch.device("cuda", 0)


@pytest.fixture
def _no_failure(monkeypatch):
    monkeypatch.setattr(_backend, "_failure", None)
    monkeypatch.setattr(_backend, "_import_error", lambda: None)
    monkeypatch.setattr(_backend, "capability", lambda device: (9, 0))


@pytest.mark.usefixtures("_no_failure")
def test_what_keeps_a_card_from_the_kernels_is_said(monkeypatch):
    assert main.backend(CARD).startswith("triton (")
    with use_backend("torch"):
        assert main.backend(CARD) == 'torch, block by block ("torch" was chosen, by use_backend or IMIX_AUG_BACKEND)'
    monkeypatch.setenv("IMIX_AUG_BACKEND", "torch")
    assert "was chosen" in main.backend(CARD)
    with use_backend("auto"):  # nearer than the environment
        assert main.backend(CARD).startswith("triton (")
    monkeypatch.setenv("IMIX_AUG_BACKEND", "cuda")
    with pytest.raises(ValueError, match="IMIX_AUG_BACKEND must be one of auto, torch, triton, got 'cuda'"):
        main.backend(CARD)
    monkeypatch.delenv("IMIX_AUG_BACKEND")
    monkeypatch.setattr(_backend, "capability", lambda device: (7, 5))
    assert "compute capability 8.0 or higher" in main.backend(CARD)
    monkeypatch.setattr(_backend, "_import_error", lambda: "it is not installed")
    assert "Triton cannot be imported: it is not installed" in main.backend(CARD)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "NVIDIA's matrix units" in main.backend(CARD)
    assert "only CUDA has kernels" in main.backend(torch.device("mps"))
    with (
        pytest.raises(ValueError, match="name must be one of 'auto', 'torch', 'triton', got 'gpu'"),
        use_backend("gpu"),
    ):
        pass


@pytest.mark.usefixtures("_no_failure")
def test_a_kernel_that_fails_warns_once_and_plain_torch_goes_on(monkeypatch):
    calls = []

    def fail():
        calls.append("kernels")
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    with use_backend("triton"), pytest.raises(RuntimeError, match="C compiler"):
        _backend.with_kernels(CARD, fail, lambda: "plain")
    assert _backend._failure is None
    with pytest.warns(
        RuntimeWarning, match=r"fail here and plain torch takes .* Failed to find C compiler\.\. Set IMIX"
    ):
        assert _backend.with_kernels(CARD, fail, lambda: "plain") == "plain"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _backend.with_kernels(CARD, fail, lambda: "plain") == "plain"
    assert calls == ["kernels"] * 2
    assert "a kernel failed before: RuntimeError: Failed to find C compiler." in main.backend(CARD)


@pytest.mark.usefixtures("_no_failure")
@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("no memory"), RuntimeError("CUDA error: lost")])
def test_a_lost_card_or_full_memory_is_no_reason_to_go_on(error):
    def fail():
        raise error

    with pytest.raises(type(error)):
        _backend.with_kernels(CARD, fail, lambda: "plain")
    assert _backend._failure is None


def test_a_triton_that_cannot_be_imported_is_no_triton(tmp_path):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("import setuptools_that_is_not_there", encoding="utf-8")
    code = "from imix_aug import _backend; print(_backend._import_error())"
    path = os.pathsep.join([str(tmp_path), *(each for each in sys.path if each)])
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert run.stdout.strip() == "ModuleNotFoundError: No module named 'setuptools_that_is_not_there'"


def test_a_package_that_is_missing_is_named(monkeypatch):
    def no_version(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", no_version)
    assert "\nnumpy not installed\n" in main.report()
