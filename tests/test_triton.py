"""Run the kernels' tests under Triton's interpreter, and compile them, on a machine that has no card."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.mark.parametrize("kept", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels_under_the_interpreter(kept):
    # Triton decides when it is imported whether it interprets, hence another process.
    cases = Path(__file__).with_name("triton_cases.py")
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:doctest", "-o", "addopts=", "-m", kept]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", *options, str(cases)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cases.parent)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout


# The most shared memory that a program can have.
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
UNIT = {80: "mma.sync", 86: "mma.sync", 89: "mma.sync", 90: "wgmma", 100: "tcgen05.mma", 120: "mma.sync"}

# Instructions for a logit, on a step that masks nothing, that no kernel may pass: a good tenth more than were needed.
CEILING = {
    ("_sweep_keys", "bfloat16 64"): {80: 11.2, 90: 6.4, 100: 8.5},
    ("_sweep_keys", "bfloat16 128"): {80: 14.7, 90: 7.2, 100: 9.4},
    ("_sweep_keys", "bfloat16 256"): {80: 22.2, 90: 11.2, 100: 11.4},
    ("_sweep_queries", "bfloat16 64"): {80: 11.2, 90: 7.3, 100: 7.1},
    ("_sweep_queries", "bfloat16 128"): {80: 16.6, 90: 8.0, 100: 7.5},
    ("_sweep_queries", "bfloat16 256"): {80: 25.2, 90: 12.3, 100: 10.4},
}


def compiled(*arguments):
    """Compile in processes of their own, two at a time: a driver that stands for a card is a process's only one."""
    pytest.importorskip("triton", minversion="3.3")
    script = Path(__file__).with_name("compiled_kernels.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    runs = [
        subprocess.Popen(
            [sys.executable, str(script), *cards, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for cards in (["80", "86", "100"], ["89", "120", "90"])
    ]
    facts = []
    for run in runs:
        output, errors = run.communicate()
        assert run.returncode == 0, errors[-4000:]
        facts += [json.loads(line) for line in output.splitlines()]
    return facts


@pytest.fixture(scope="module")
def ordinary():
    return compiled()


@pytest.fixture(scope="module")
def rarer():
    return compiled("--rarer")


@pytest.mark.parametrize("card", SHARED)
def test_kernels_fit_the_card(card, ordinary):
    check_fit(card, ordinary, spilled=0)


@pytest.mark.slow
@pytest.mark.parametrize("card", SHARED)
def test_rarer_kernels_fit_the_card(card, rarer):
    check_fit(card, rarer, spilled=32)  # a few registers, where a smaller tile would cost more


def is_tuned_for():
    """Tell whether this Triton is one that tiles were chosen by: older ones keep more in registers, and spill."""
    import triton

    return tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8)


def check_fit(card, facts, spilled):
    """Nothing spills, the tile preferred fits, and products go through the matrix units."""
    kernels = [fact for fact in facts if fact["capability"] == card and "kernel" in fact]
    assert {"_sweep_keys", "_sweep_queries", "_merge"} <= {fact["kernel"] for fact in kernels}
    for fact in kernels:
        assert fact["stack"] <= spilled or not is_tuned_for(), fact
        assert fact["shared"] <= SHARED[card] * 1024, fact
        if fact["kernel"] in ("_sweep_keys", "_sweep_queries", "_logits_tile"):
            assert fact["unit"] == UNIT[card], fact


@pytest.mark.parametrize("kernel", ["_sweep_keys", "_sweep_queries"])
@pytest.mark.parametrize("case", ["bfloat16 64", "bfloat16 128", "bfloat16 256"])
def test_a_logit_costs_few_instructions(kernel, case, ordinary):
    if not is_tuned_for():
        pytest.skip("counted for Triton 3.8 and newer")
    found = {fact["capability"]: fact for fact in ordinary if fact.get("kernel") == kernel and fact["case"] == case}
    assert found.keys() == SHARED.keys()
    for card, ceiling in CEILING[kernel, case].items():
        kept, swept, warps, _ = found[card]["tile"]
        fewest, most = found[card]["step"]
        assert fewest < most  # what masks is a branch
        assert fewest * 32 * warps / (kept * swept) <= ceiling, found[card]


def test_few_kernels_serve_many_batch_sizes(ordinary):
    batches = [fact["batches"] for fact in ordinary if "batches" in fact]
    assert batches == [["_merge", "_sweep_keys", "_sweep_queries"]] * 2
