"""Each example loop stands alone, shows the two lines, runs, and learns at least as much with i-Mix."""

import ast
import functools
import importlib.util
from pathlib import Path

import pytest

LOOPS = sorted((Path(__file__).parents[2] / "examples" / "loops").glob("*.py"))
NAMES = [path.stem for path in LOOPS]


def load(path):
    spec = importlib.util.spec_from_file_location(f"loop_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_a_loop_for_each_domain_and_method():
    assert set(NAMES) == {"byol", "image", "moco", "simclr", "speech", "tabular", "timeseries"}


@pytest.mark.parametrize("path", LOOPS, ids=NAMES)
def test_a_loop_is_one_file_that_shows_the_product(path):
    text = path.read_text(encoding="utf-8")
    assert 60 <= len(text.splitlines()) <= 120
    assert "IMix(" in text
    assert "imix_" in text
    assert "_loss(" in text
    siblings = {each.stem for each in path.parent.glob("*.py")} | {"runner", "loops"}
    for node in ast.walk(ast.parse(text)):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [node.module]
        assert not {name.split(".")[0] for name in names} & siblings


@pytest.mark.parametrize("path", LOOPS, ids=NAMES)
def test_a_loop_runs(path, monkeypatch):
    loop = load(path)
    if path.stem == "speech":
        monkeypatch.setattr(loop, "say_digits", functools.partial(loop.say_digits, takes=1))
    scores = loop.main(epochs=1)
    assert len(scores) == 4
    assert "with i-Mix" in scores
    assert all(0 <= each <= 1 for pair in scores.values() for each in pair)


@pytest.mark.slow
@pytest.mark.parametrize("path", LOOPS, ids=NAMES)
def test_imix_is_not_worse(path):
    scores = load(path).main()
    assert sum(scores["with i-Mix"]) >= sum(scores["without i-Mix"])
