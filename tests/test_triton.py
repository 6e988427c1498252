"""Run the kernels' tests under Triton's interpreter, and compile them, on a machine that has no card."""

import importlib
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


SWEEP = {"n": "i32", "m": "i32", "d": "i32", "query_stride": "i32", "key_stride": "i32", "splits": "i32"}
TILE = {"KEPT": 128, "SWEPT": 64, "WIDTH": 128, "SHIFT": 0, "EXCLUDED": 2, "PART_WIDTH": True}
STRIDES = {"query_stride": "i32", "key_stride": "i32", "softmax_stride": "i32", "sums_stride": "i32"}
KERNELS = {
    "_cross_entropy.triton_sweep._sweep_keys": (
        {"query": "*bf16", "key": "*bf16", "more": "*bf16", "excluded": "*i64", "lse": "*fp32", "grad": "*fp32"}
        | SWEEP
        | {"k": "i32", "more_stride": "i32"},
        TILE | {"PART_KEYS": True, "PART_MORE": False},
    ),
    "_cross_entropy.triton_sweep._sweep_queries": (
        {"query": "*fp16", "key": "*fp16", "excluded": "*i64", "lse": "*fp32", "grad": "*fp32"} | SWEEP,
        TILE | {"PART_ROWS": True, "weight": None, "scale": None},
    ),
    "_cross_entropy.triton_blocks._logits_tile": (
        {"query": "*bf16", "key": "*bf16", "excluded": "*i64", "lse": "*fp32", "softmax": "*bf16"}
        | {"n": "i32", "m": "i32", "d": "i32", "first": "i32"}
        | STRIDES,
        {"weight": None, "sums": None, "ROWS": 64, "COLUMNS": 64, "DEPTH": 32, "PART_DEPTH": True, "EXCLUDED": 1},
    ),
    "_mixing.triton._paste_block": (
        {"x": "*bf16", "partner": "*i64", "taken": "*i64", "given": "*i64", "result": "*bf16"}
        | {"lines": "i32", "lines_a_row": "i32", "height": "i32", "between": "i32", "line": "i32"},
        {"LINES": 8, "COLUMNS": 256, "INNER": 3, "AXES": 2, "BOXES": True},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_compile_for_real_cards(kernel, capability):
    """The interpreter accepts what the compiler may not; Triton brings all that compiling needs but the card."""
    triton = pytest.importorskip("triton", minversion="3.3")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, _, name = kernel.rpartition(".")
    function = getattr(importlib.import_module(f"imix_aug.{module}"), name)
    types, constants = KERNELS[kernel]
    assert types.keys() | constants.keys() == set(function.arg_names)
    source = ASTSource(
        function,
        {name: types.get(name, "constexpr") for name in function.arg_names},
        {(function.arg_names.index(name),): value for name, value in constants.items()},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
    assert compiled.asm["cubin"]
    assert ("wgmma" in compiled.asm["ptx"]) == (capability == 90 and "paste" not in kernel)
