"""What goes wrong with files and machines ends with one line, and what was there before is still there."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import runner.steps
import tabular
import torch
from conftest import EXAMPLES
from runner.errors import Refused
from runner.report.results import read_results
from runner.state.files import write_tensors, write_text
from runner.state.place import hold

SHORT = ("--no-controls", "--mix", "mixup", "--epochs", 2, "--batch-size", 128, "--seeds", 1, "--width", 1)
CHECKPOINT = "runs/npair-mixup-seed0/checkpoint.pt"


@contextlib.contextmanager
def files_no_larger_than(size):
    """What a full disk does to a write, asked of the kernel."""
    resource = pytest.importorskip("resource", reason="Windows limits no file")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with one finished run."""
    out = tmp_path_factory.mktemp("finished") / "out"
    tabular.main([*map(str, SHORT), "--device", "cpu", "--out", str(out)])
    return out


@pytest.fixture
def trained(finished, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(finished, tmp_path / "out")


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(runner.steps.Steps, "__iter__", lambda _: pytest.fail("trained"))


def test_out_that_is_a_file(tmp_path, refusal, no_training):
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    for out in (tmp_path / "taken", tmp_path / "taken" / "below"):
        assert f"--out {out}: wanted a folder" in refusal(tabular, *SHORT, out=out)
    assert (tmp_path / "taken").read_text(encoding="utf-8") == "mine"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="wants a folder that even root cannot write to")
def test_out_that_cannot_be_written(refusal, no_training):
    assert "--out /proc/nowhere: wanted a folder" in refusal(tabular, *SHORT, out="/proc/nowhere")
    assert "/proc/self" in refusal(tabular, *SHORT, out="/proc/self")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no way to ask for room")
@pytest.mark.parametrize("room", [1000, 100_000])  # not even the results fit; the results do, and no checkpoint
def test_a_full_disk_is_said_before_the_training(tmp_path, refusal, no_training, room):
    with files_no_larger_than(room):
        line = refusal(tabular, *SHORT)
    assert re.search(r"no file of 0\.\d MB can be written there", line)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_disk_that_fills_up_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    write_tensors(path, {"weights": torch.zeros(10)})
    with files_no_larger_than(5000), pytest.raises(Refused, match=r"cannot be written: .*; the old one is as it was"):
        write_tensors(path, {"weights": torch.zeros(100_000)})
    assert torch.load(path, weights_only=True)["weights"].shape == (10,)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="no lock on a folder")
def test_a_second_process_is_refused_and_the_first_keeps_its_place(tmp_path, refusal, runs, no_training):
    with hold(tmp_path / "out"):
        assert "another process is writing there" in refusal(tabular, *SHORT)
    assert list((tmp_path / "out").iterdir()) == []


def test_what_a_killed_process_left_is_tidied_up(tmp_path):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    left = [tmp_path / ".results.json.1.part", tmp_path / "runs" / "one" / ".checkpoint.pt.1.part"]
    for path in left:
        path.touch()
    with hold(tmp_path):
        assert not any(path.exists() for path in left)


@pytest.mark.skipif(sys.platform == "win32", reason="a signal ends a process of Windows unheard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_no_scratch_file(tmp_path, number, runs):
    long = [*map(str, SHORT), "--epochs", "600", "--device", "cpu", "--out", str(tmp_path / "out")]
    command = [sys.executable, str(EXAMPLES / "tabular.py"), *long]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert "step" in process.stderr.readline()  # a tenth of the way
    process.send_signal(number)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number
    assert rest.splitlines()[-1] == "interrupted; the same command continues from the last checkpoint"
    assert "Traceback" not in rest
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert files == [tmp_path / "out" / CHECKPOINT]
    assert torch.load(files[0], weights_only=True)["progress"]["step"] >= 660


def damage(**changes):
    """Change one value deep inside a checkpoint; the key says where."""

    def change(path):
        state = torch.load(path, weights_only=True)
        for place, value in changes.items():
            inside = state
            *folders, last = place.split("__")
            for key in folders:
                inside = inside[int(key) if isinstance(inside, list) or key == "0" else key]
            if value is None:
                del inside[last]
            else:
                inside[last] = value(inside[last]) if callable(value) else value
        torch.save(state, path)

    return change


class Evil:
    """Pickles to a call of ``os.system``."""

    def __reduce__(self):
        return os.system, ("touch evil",)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "text": lambda path: path.write_text("hello", encoding="utf-8"),
    "a list": lambda path: torch.save([1, 2], path),
    "code": lambda path: torch.save({"config": Evil()}, path),
    "another version": damage(format=99),
    "no version": damage(format=None),
    "no pace": damage(progress__pace=None),
    "a negative pace": damage(progress__pace__seconds=-1.0),
    "a pace of NaN": damage(progress__pace__rows=math.nan),
    "a negative step": damage(progress__step=-3),
    "a huge step": damage(progress__step=10**12),
    "a step that is no number": damage(progress__step="7"),
    "a step of another run": damage(progress__step=5),
    "no losses": damage(progress__losses=lambda _: []),
    "other steps": damage(progress__steps=lambda steps: steps + 1),
    "NaN weights": damage(**{"parts__method__encoder.layer1.0.weight": lambda w: w * math.nan}),
    "other sizes": damage(**{"parts__method__encoder.layer1.0.weight": lambda w: w[:, :5]}),
    "other types": damage(**{"parts__method__encoder.layer1.0.weight": "a"}),
    "a weight less": damage(**{"parts__method__encoder.layer1.0.weight": None}),
    "no optimizer": damage(parts__optimizer=None),
    "momentum of other sizes": damage(parts__optimizer__state__0__momentum_buffer=lambda m: m[:3]),
    "momentum of NaN": damage(parts__optimizer__state__0__momentum_buffer=lambda m: m * math.nan),
    "another rate": damage(parts__schedule__last_epoch=1),
    "no random state": damage(random=lambda _: []),
    "a short random state": damage(random=lambda _: [{"cpu": torch.zeros(3, dtype=torch.uint8), "cuda": None}]),
    "a configuration that is none": damage(config=[1]),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_checkpoint_that_is_not_what_it_should_be(trained, refusal, kind, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    DAMAGES[kind](trained / CHECKPOINT)
    line = refusal(tabular, *SHORT)
    assert f"{CHECKPOINT}: damaged, incomplete or of another version" in line
    assert not (tmp_path / "evil").exists()


RESULTS = {
    "empty": lambda _: "",
    "no JSON": lambda text: text[:-20],
    "no runs": lambda _: "{}",
    "a list": lambda _: "[]",
    "deep": lambda _: "[" * 100_000,
    "no metrics": lambda text: text.replace("probe_accuracy", "else"),
    "NaN": lambda text: text.replace('"probe_accuracy": ', '"probe_accuracy": NaN, "x": '),
    "above one": lambda text: text.replace('"probe_accuracy": ', '"probe_accuracy": 3.5, "x": '),
    "an unknown mix": lambda text: text.replace('"mix": "mixup"', '"mix": "blend"'),
    "a seed that is none": lambda text: text.replace('"seed": 0', '"seed": "0"'),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_results_that_are_not_what_they_should_be(trained, refusal, kind):
    path = trained / "results.json"
    changed = RESULTS[kind](path.read_text(encoding="utf-8"))
    assert changed != path.read_text(encoding="utf-8")
    path.write_text(changed, encoding="utf-8")
    assert "results.json: damaged, incomplete or of another version" in refusal(tabular, *SHORT)
    assert path.read_text(encoding="utf-8") == changed
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(Refused, match=r"results\.json"):
        read_results(path)


def test_a_terminal_that_lacks_a_character(tmp_path):
    """A finished run prints its table, whatever the data are called."""
    table = tmp_path / "größe ☃ $x$.csv"
    rows = "\n".join(f"{i},{i * i % 7},{'ab'[i % 2]}" for i in range(60))
    table.write_text(f"a,b,kind\n{rows}\n", encoding="utf-8")
    command = [sys.executable, str(EXAMPLES / "tabular.py"), "--data", str(table), "--label", "kind", "--epochs", "1",
               "--seeds", "1", "--device", "cpu", "--width", "1", "--out", str(tmp_path / "☃")]  # fmt: skip
    surroundings = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "OMP_NUM_THREADS": "1"}
    end = subprocess.run(command, capture_output=True, env=surroundings, timeout=100)
    assert end.returncode == 0, end.stderr
    assert b"gr\\xf6\\xdfe" in end.stdout
    assert len(json.loads((tmp_path / "☃" / "results.json").read_text(encoding="utf-8"))["runs"]) == 2


def test_text_that_no_encoding_has(tmp_path):
    write_text(tmp_path / "report.md", "b\udcffd")
    assert (tmp_path / "report.md").read_bytes() == b"b\\udcffd"
