"""Machines that lack something, simulated in a process of their own: Triton, or torch's distributed part."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

TRAIN = """
import torch
from imix_aug import IMix, NegativeQueue, imix_nce_loss, imix_ntxent_loss, imix_supcon_loss, imix_byol_loss

query, key = torch.randn(2, 6, 4).requires_grad_().unbind()
mixed, labels = IMix()(query)
queue = NegativeQueue(size=8, dim=4)
queue.enqueue(key, gather_distributed=True)
for gathered in (False, True):
    losses = [
        imix_nce_loss(mixed, key, labels, negatives=queue.negatives, gather_distributed=gathered),
        imix_ntxent_loss(mixed, mixed, key, key, labels, gather_distributed=gathered),
        imix_supcon_loss(mixed, key, torch.arange(6) // 2, labels, gather_distributed=gathered),
        imix_byol_loss(mixed, key, labels),
    ]
    sum(losses).backward(retain_graph=True)
    print(*(round(loss.item(), 5) for loss in losses))
"""


def run(*arguments):
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    finished = subprocess.run(
        [sys.executable, *arguments], capture_output=True, encoding="utf-8", env=environment, cwd=TESTS.parent
    )
    assert finished.returncode == 0, (finished.stdout + finished.stderr)[-4000:]
    return finished.stdout


def test_trains_and_reports_on_a_torch_without_distributed():
    """With the numbers of any other torch, and as one rank where ranks are asked for."""
    seeded = f"import torch; torch.manual_seed(3)\n{TRAIN}"
    report = "import runpy; runpy.run_module('imix_aug', run_name='__main__')"
    once, gathered, *reported = run("-c", f"import without_distributed\n{seeded}{report}").splitlines()
    assert [once, gathered] == run("-c", seeded).splitlines()
    assert once == gathered
    assert any("distributed False" in line for line in reported)


def test_pytest_starts_without_triton():
    """Doctest collection imports every module of the package, the kernels too."""
    options = ("-m", "pytest", "-q", "-p", "without_triton", "-p", "no:cacheprovider", "--collect-only")
    listed = run(*options, "src", "tests/test_triton.py")
    assert "imix_aug.imix_nce_loss" in listed
    assert "error" not in listed


def calls(path):
    return (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))


def is_text_of_unsaid_encoding(call):
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    modes = [each.value for each in (*call.args, *(k.value for k in call.keywords)) if isinstance(each, ast.Constant)]
    is_text = name in ("read_text", "write_text") and isinstance(call.func, ast.Attribute)
    is_text |= name in ("open", "fdopen") and any(
        mode in ("r", "w", "a", "x", "rt", "wt", "at", "xt") for mode in modes
    )
    is_text |= isinstance(call.func, ast.Name) and name == "open" and not any("b" in str(mode) for mode in modes)
    return is_text and "encoding" not in {keyword.arg for keyword in call.keywords}


@pytest.mark.parametrize("folder", ["src", "examples", "tests", "docs", "benchmarks"])
def test_every_file_is_read_and_written_in_an_encoding_that_is_said(folder):
    """Where it is not, the machine's own is taken, on Windows not UTF-8."""
    files = sorted((TESTS.parent / folder).rglob("*.py"))
    assert len(files) > 3
    unsaid = [f"{path}:{call.lineno}" for path in files for call in calls(path) if is_text_of_unsaid_encoding(call)]
    assert not unsaid


@pytest.mark.parametrize(
    ("line", "unsaid"),
    [
        ("path.read_text()", True),
        ("path.write_text('a')", True),
        ("open(path)", True),
        ("open(path, 'w')", True),
        ("path.open('w')", True),
        ("gzip.open(path, mode='wt')", True),
        ("path.read_text(encoding='utf-8')", False),
        ("write_text(path, 'a')", False),
        ("open(path, 'rb')", False),
        ("path.open('wb')", False),
        ("Image.open(path)", False),
        ("tarfile.open(path, 'w:gz')", False),
    ],
)
def test_an_encoding_that_is_not_said_is_seen(line, unsaid):
    assert is_text_of_unsaid_encoding(ast.parse(line, mode="eval").body) == unsaid


def test_operators_have_their_types_at_run_time():
    """torch 2.4 reads an operator's schema off its annotations as they are, and knows no strings."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in (TESTS.parent / "src").rglob("*.py")}
    of_operators = {
        name: text for name, text in texts.items() if "torch.library.custom_op(" in text or " Node(" in text
    }
    assert len(of_operators) > 2
    assert not [name for name, text in of_operators.items() if "from __future__ import annotations" in text]


WORKFLOWS = sorted((TESTS.parent / ".github" / "workflows").glob("*.yml"))


@pytest.mark.skipif(not WORKFLOWS, reason="a source distribution holds no workflows")
def test_the_workflows_run_every_session_and_pin_every_action():
    text = "\n".join(path.read_text(encoding="utf-8") for path in WORKFLOWS)
    used = re.findall(r"uses: (.*)", text)
    assert len(used) > 8
    for each in used:
        assert each.startswith("./") or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each), each
    (listed,) = re.findall(r"session: \[(.*)\]", text)
    names = {
        f"{node.name}-{each.value}" if isinstance(python, ast.List) else node.name
        for node in ast.parse((TESTS.parent / "noxfile.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.decorator_list
        for python in [next(word.value for word in node.decorator_list[0].keywords if word.arg == "python")]
        for each in getattr(python, "elts", [python])
    }
    assert set(listed.split(", ")) == names


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_yaml(path):
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
