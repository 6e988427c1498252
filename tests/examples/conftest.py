"""The examples are scripts beside the package: put their folder where they find it when they are run."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
# multiprocessing's fork server imports what it preloads by this alone, and where it fails says nothing.
os.environ["PYTHONPATH"] = os.pathsep.join([str(EXAMPLES), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def runs(tmp_path):
    """Run a script's main on the CPU and read what it wrote."""

    def call(script, *options, out=tmp_path / "out"):
        controls = [] if "--controls" in options else ["--no-controls"]  # three evaluations instead of one
        script.main([*map(str, options), *controls, "--device", "cpu", "--out", str(out)])
        return json.loads((out / "results.json").read_text(encoding="utf-8"))["runs"]

    return call


@pytest.fixture
def refusal(runs, capsys):
    """The one line with which a script ends."""

    def call(script, *options, **keywords):
        with pytest.raises(SystemExit) as end:
            runs(script, *options, **keywords)
        line = end.value.code
        if not isinstance(line, str):  # argparse prints its own
            line = capsys.readouterr().err.strip().splitlines()[-1]
        assert "\n" not in line
        return line

    return call
