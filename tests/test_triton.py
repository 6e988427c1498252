"""Run the kernels' tests under Triton's interpreter, on a machine that has no card."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def test_kernels_under_the_interpreter():
    # Triton decides when it is imported whether it interprets, hence another process.
    cases = Path(__file__).with_name("triton_cases.py")
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:doctest", "-o", "addopts="]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", *options, str(cases)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cases.parent)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout
