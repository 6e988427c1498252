"""Make the notebooks: the tutorial's out of its page, the domains' out of their loops: `python docs/notebook.py`."""

import ast
import json
import re
from pathlib import Path

PAGE = Path(__file__).parent / "tutorial.md"
LOOPS = PAGE.parents[1] / "examples" / "loops"
DOMAINS = ("image", "speech", "tabular", "timeseries")

_BLOCK = re.compile(r"^```(\S+)[^\n]*\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
_ROLE = re.compile(r"\{\w+\}`~?([^`<]+)`")


def cells(page: str) -> list[tuple[str, str]]:
    """Return kind and text of each cell. Directives and printed results are for the page alone."""
    found, end = [], 0
    for block in _BLOCK.finditer(page):
        language, code = block.groups()
        if language == "console":
            continue
        found.append(("markdown", page[end : block.start()]))
        if language == "python":
            found.append(("code", code))
        end = block.end()
    found.append(("markdown", page[end:]))
    return [(kind, _plain(text) if kind == "markdown" else text.strip()) for kind, text in found if text.strip()]


def cells_of_loop(source: str) -> list[tuple[str, str]]:
    """Return kind and text of each cell of a script: what its functions say, their code, and the call of the last."""
    module = ast.parse(source)
    head, _, about = (ast.get_docstring(module) or "").partition("\n\n")
    about = "\n\n".join(part for part in about.split("\n\n") if not part.startswith("    "))
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    lines = source.splitlines()
    first = module.body[1].lineno - 1
    before = "\n".join(lines[first : _first_line(functions[0]) - 1]).strip()
    found = [
        ("markdown", f"# {head.rstrip('.')}\n\n{about}".strip()),
        ("code", before.replace("import argparse\n", "").strip()),
    ]
    for each in functions:
        found.append(("markdown", ast.get_docstring(each) or ""))
        found.append(("code", "\n".join(lines[_first_line(each) - 1 : each.end_lineno])))
    return [*found, ("code", "scores = main()")]


def _first_line(function: ast.FunctionDef) -> int:
    return min([function.lineno, *(each.lineno for each in function.decorator_list)])


def notebooks() -> dict[Path, str]:
    """Return all notebooks, without outputs, by their files."""
    made = {PAGE.with_suffix(".ipynb"): notebook(cells(PAGE.read_text(encoding="utf-8")))}
    for name in DOMAINS:
        source = (LOOPS / f"{name}.py").read_text(encoding="utf-8")
        made[PAGE.parent / "notebooks" / f"{name}.ipynb"] = notebook(cells_of_loop(source))
    return made


def notebook(found: list[tuple[str, str]]) -> str:
    """Return the notebook of some cells as the text of its file."""
    content = {
        "cells": [_cell(number, kind, text) for number, (kind, text) in enumerate(found)],
        "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _plain(text: str) -> str:
    """Turn Sphinx's roles, which a notebook does not know, into code."""
    return _ROLE.sub(lambda role: f"`{role[1].removeprefix('imix_aug.')}`", text).strip()


def _cell(number: int, kind: str, text: str) -> dict[str, object]:
    cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


if __name__ == "__main__":
    for path, text in notebooks().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)
