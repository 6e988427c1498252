"""A run that was killed goes on as if nothing had happened; another configuration may not go on in its place."""

import multiprocessing
import random
import signal
import time

import pandas as pd
import pytest
import tabular
import torch
from runner.errors import Refused
from runner.state.files import write_atomically
from runner.steps import Steps

SHORT = ("--mix", "mixup", "--epochs", "4", "--batch-size", "128", "--seeds", "1", "--width", "1")

KILLED = -getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows knows one way to end a process


def train(out, *options):
    torch.set_num_threads(1)
    tabular.main([*SHORT, "--device", "cpu", "--out", str(out), *options])


def final_state(out, method):
    return torch.load(out / "runs" / f"{method}-mixup-seed0" / "checkpoint.pt", weights_only=True)


def assert_same(a, b):
    """Equal to the bit, all the way down, wall-clock time aside."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            if key != "pace":
                assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("times", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_ends_with_the_same_bits(tmp_path, runs, times):
    method = "moco"  # it has all there is: a momentum copy, a queue
    options = ("--method", method, "--queue", "500", "--checkpoint-every", "0")
    undisturbed = runs(tabular, *SHORT, *options, out=tmp_path / "undisturbed")

    # The server imports torch once; every child is a fork of it, and dies without a chance to tidy up.
    has_server = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if has_server else "spawn")
    context.set_forkserver_preload(["tabular", "pytest"])
    draw = random.Random(times)
    steps, kills = [], 0
    checkpoint = tmp_path / "killed" / "runs" / f"{method}-mixup-seed0" / "checkpoint.pt"
    while kills < times:
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        child = context.Process(target=train, args=(tmp_path / "killed", *options))
        child.start()
        while child.is_alive() and not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before):
            time.sleep(0.002)  # until it has made some progress
        time.sleep(draw.uniform(0, 0.1))
        child.kill()
        child.join()
        assert child.exitcode in (KILLED, 0)  # 0: the end came first
        kills += 1
        steps.append(torch.load(checkpoint, weights_only=True)["progress"]["step"])
    assert 0 < steps[0] < 44  # 4 epochs of 11 batches
    resumed = runs(tabular, *SHORT, *options, out=tmp_path / "killed")
    assert resumed[0]["metrics"] == undisturbed[0]["metrics"]
    assert_same(final_state(tmp_path / "killed", method), final_state(tmp_path / "undisturbed", method))


def test_a_finished_run_is_not_trained_again(tmp_path, runs, monkeypatch):
    first = runs(tabular, *SHORT)
    monkeypatch.setattr(Steps, "record", lambda *_: pytest.fail("trained a step"))
    again = runs(tabular, *SHORT)
    assert again[0]["metrics"] == first[0]["metrics"]
    assert again[0]["seconds"] == first[0]["seconds"]


def test_another_configuration_is_refused_with_the_differences(runs, refusal):
    runs(tabular, *SHORT)
    line = refusal(tabular, *SHORT, "--alpha", 2, "--epochs", 5)
    assert "alpha 1.0 there and 2.0 here" in line
    assert "epochs 4 there and 5 here" in line
    assert "batch_size" not in line
    assert runs(tabular, *SHORT, "--alpha", 2, "--no-resume")[0]["config"]["alpha"] == 2


def test_a_broken_checkpoint_is_named(tmp_path, runs, refusal):
    runs(tabular, *SHORT)
    checkpoint = tmp_path / "out" / "runs" / "npair-mixup-seed0" / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    for broken in (whole[:1000], b"", b"abc", b"\x80\x02}q\x00."):
        checkpoint.write_bytes(broken)
        assert "checkpoint.pt" in refusal(tabular, *SHORT)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the ne")
        raise OSError("disk full")

    with pytest.raises(Refused, match="disk full; the old one is as it was"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_runs_of_earlier_commands_stay_in_the_results(runs):
    first = runs(tabular, *SHORT)
    both = runs(tabular, *SHORT, "--mix", "none")
    assert [run["mix"] for run in both] == ["none", "mixup"]
    assert both[1] == first[0]
    three = runs(tabular, *SHORT, "--mix", "none", "--seeds", 2)
    assert [(run["mix"], run["seed"]) for run in three] == [("none", 0), ("none", 1), ("mixup", 0)]
    assert runs(tabular, *SHORT, "--no-resume")[0]["metrics"] == first[0]["metrics"]


def test_data_that_changed_under_the_same_name_are_noticed(tmp_path, runs, refusal):
    table = pd.DataFrame({"a": range(40), "b": [i * i % 7 for i in range(40)], "kind": ["x", "y"] * 20})
    table.to_csv(tmp_path / "t.csv", index=False)
    options = ("--data", tmp_path / "t.csv", "--label", "kind", "--epochs", 1, "--batch-size", 16, "--seeds", 1)
    runs(tabular, *options)
    table.loc[7, "b"] += 1
    table.to_csv(tmp_path / "t.csv", index=False)
    assert "fingerprint" in refusal(tabular, *options)
