"""Make the tutorial's notebook out of its page: `python docs/notebook.py`."""

import json
import re
from pathlib import Path

PAGE = Path(__file__).parent / "tutorial.md"
NOTEBOOK = PAGE.with_suffix(".ipynb")

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


def notebook(page: str) -> str:
    """Return the notebook, without outputs, as the text of its file."""
    content = {
        "cells": [_cell(number, kind, text) for number, (kind, text) in enumerate(cells(page))],
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
    NOTEBOOK.write_text(notebook(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(NOTEBOOK)
