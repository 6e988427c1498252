"""The machines that the metadata promises, a session each: ``nox -s oldest``, or ``nox`` for all of them.

What stands after ``--`` goes to pytest. ``record`` there also writes the session's row of docs/guarantees.md:
``nox -s oldest -- record --ignore tests/examples``.
"""

import json
import xml.etree.ElementTree
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False

PAGE = Path(__file__).parent / "docs" / "guarantees.md"
VERSIONS = """
import importlib.metadata, json, platform
found = {each.metadata["Name"].lower(): each.version for each in importlib.metadata.distributions()}
print(json.dumps([platform.python_version(), *(found.get(name, "none") for name in ("torch", "triton", "numpy"))]))
"""


def suite(session: nox.Session, *options: str, **environment: str) -> None:
    """Run the ordinary suite, and count."""
    results = Path(session.create_tmp()).resolve() / "results.xml"
    arguments = [argument for argument in session.posargs if argument != "record"]
    command = ("python", "-m", "pytest", f"--junitxml={results}", *options, *arguments)
    try:
        session.run(*command, env={"OMP_NUM_THREADS": "1", **environment})
    finally:
        if results.exists():
            show(session, results, [*options, *arguments])


def show(session: nox.Session, results: Path, arguments: list[str]) -> None:
    """Print the row of the table, and write it where that was asked for."""
    python, torch, triton, numpy = json.loads(session.run("python", "-c", VERSIONS, silent=True, log=False))
    triton = "hidden" if "without_triton" in arguments else triton
    counts = xml.etree.ElementTree.parse(results).getroot()[0].attrib
    failed = int(counts["failures"]) + int(counts["errors"])
    passed = int(counts["tests"]) - failed - int(counts["skipped"])
    numbers = [passed, counts["skipped"], failed]
    cells = [f"`{session.name}`", python, torch, triton, numpy, *numbers, f"`{' '.join(arguments)}`"]
    row = f"| {' | '.join(map(str, cells))} |".replace("``", "all")
    session.log(row)
    if "record" in session.posargs:
        lines = PAGE.read_text(encoding="utf-8").splitlines()
        (place,) = (number for number, line in enumerate(lines) if line.startswith(f"| {cells[0]} |"))
        lines[place] = row
        PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


@nox.session(python="3.10")
def oldest(session: nox.Session) -> None:
    """The oldest Python and torch."""
    session.install("-e", ".[test]", "torch==2.4.*", "numpy==1.*")
    suite(session)


@nox.session(python="3.12")
def middle(session: nox.Session) -> None:
    """What many people have."""
    # NumPy of its time: the interpreter of Triton 3.4 cannot take a newer one.
    session.install("-e", ".[test]", "torch==2.8.*", "numpy==2.2.*")
    suite(session)


@nox.session(python=["3.11", "3.13", "3.14"])
def newest(session: nox.Session) -> None:
    """The newest of everything."""
    session.install("--upgrade", "-e", ".[test]")
    suite(session)


@nox.session(python="3.12")
def without_triton(session: nox.Session) -> None:
    """Triton is not there, as on macOS, on Windows and beside the CPU's wheels of torch."""
    session.install("-e", ".[test]")
    suite(session, "-p", "without_triton", PYTHONPATH="tests")


@nox.session(python="3.12")
def without_distributed(session: nox.Session) -> None:
    """A torch that was built without its distributed part, simulated."""
    session.install("-e", ".[test]")
    only_the_package = ("--ignore=tests/examples", "--ignore=tests/integrations", "--ignore=tests/test_docs.py")
    suite(session, "-p", "without_distributed", *only_the_package, PYTHONPATH="tests")


@nox.session(python="3.10", venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """The lowest version of every dependency that pyproject.toml names; uv alone can resolve so."""
    session.install("--resolution", "lowest-direct", "-e", ".[test]")
    suite(session)
