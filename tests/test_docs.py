"""Every Python block of the documentation runs, page by page, from the top to the bottom."""

import inspect
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
TUTORIAL = DOCS / "tutorial.md"
README = DOCS.parent / "README.md"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != TUTORIAL], ids=lambda page: str(page.relative_to(DOCS))
)
def test_code_blocks_run(page, monkeypatch):
    sybil = pytest.importorskip("sybil")
    from sybil.parsers.myst import PythonCodeBlockParser

    torch.manual_seed(0)
    monkeypatch.setenv("MPLBACKEND", "agg")
    examples = list(sybil.Sybil([PythonCodeBlockParser()]).parse(page))
    assert len(examples) >= page.read_text(encoding="utf-8").count("```python\n")
    for example in examples:
        try:
            example.evaluate()
        except ModuleNotFoundError as missing:
            if missing.name and missing.name.startswith("imix_aug"):
                raise
            pytest.skip(f"{missing.name} is not installed")


def test_the_readme_shows_the_lines_of_the_front_page():
    """These run as a block of the front page."""
    blocks = [
        re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
        for page in (README, DOCS / "index.md")
    ]
    assert len(blocks[0]) == 1
    assert blocks[0] == blocks[1]


@pytest.mark.parametrize("page", [README, *PAGES, *DOCS.parent.glob("*/README.md")], ids=lambda page: page.stem)
def test_no_page_names_a_path_of_the_machine_that_measured(page):
    """A page's tables are pasted from what scripts print, which once had the places of its pictures below it."""
    assert not re.search(r"^/|/(?:home|root|tmp|work|Users)/", page.read_text(encoding="utf-8"), re.MULTILINE)


CALL = re.compile(r"imix_(?:nce|ntxent|supcon|clip)_loss(\((?:[^()]|\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))*\))")


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.stem)
def test_every_line_that_replaces_a_loss_names_its_temperature(page):
    """The published losses have temperatures from 0.05 to 1; a default would be somebody else's."""
    text = re.sub(r"^[+-]", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    blocks = re.findall(r"^```(?:python|diff)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"^\|.*\|$", text, re.MULTILINE)
    calls = [call for block in blocks for call in CALL.findall(block) if "label" in call or "virtual" in call]
    assert [call for call in calls if "temperature=" not in call] == []


def test_every_loss_that_a_page_names_exists():
    import imix_aug

    named = {
        name for page in [README, *PAGES] for name in re.findall(r"\bimix_\w+_loss\b", page.read_text(encoding="utf-8"))
    }
    assert named <= set(imix_aug.__all__)


def test_the_readme_links_to_what_is_there():
    links = re.findall(r"\]\(([^)#]+)\)|(?:src|srcset)=\"([^\"]+)\"", README.read_text(encoding="utf-8"))
    local = [link for pair in links for link in pair if link and "://" not in link]
    assert len(local) > 5
    assert [link for link in local if not (README.parent / link).exists()] == []


NOTEBOOKS = runpy.run_path(str(DOCS / "notebook.py"))["notebooks"]()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_its_page_or_script(path):
    assert NOTEBOOKS[path] == path.read_text(encoding="utf-8"), "run `python docs/notebook.py`"


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path.parent.name == "notebooks"], ids=lambda path: path.stem
)
def test_a_domains_notebook_runs(path):
    """All cells in one namespace; the last with a single epoch in place of all."""
    pytest.importorskip("sklearn")
    cells = ["".join(each["source"]) for each in json.loads(NOTEBOOKS[path])["cells"] if each["cell_type"] == "code"]
    assert cells[-1] == "scores = main()"
    namespace: dict[str, object] = {"__name__": path.stem}
    for cell in [*cells[:-1], "scores = main(epochs=1)"]:
        exec(compile(cell, path.stem, "exec"), namespace)
    assert "with i-Mix" in namespace["scores"]


def test_the_notebook_prints_what_the_tutorial_shows(monkeypatch):
    """Training differs from machine to machine: accuracies may, by a few points of a hundred."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    page = TUTORIAL.read_text(encoding="utf-8")
    notebook = nbformat.read(TUTORIAL.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    shown = "".join(re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    percentage = r"[\d.]+(?=%)"
    assert re.sub(percentage, "", printed) == re.sub(percentage, "", shown)
    reached, promised = ([float(number) for number in re.findall(percentage, text)] for text in (printed, shown))
    assert reached == pytest.approx(promised, abs=5.0)
    plain, mixed = reached[2], reached[4]
    assert mixed > plain, "linear on 100 labels, without an augmentation"


def test_every_page_has_a_place_in_the_table_of_contents():
    entries = {DOCS / "index.md"}
    for page in PAGES:
        for block in page.read_text(encoding="utf-8").split("```{toctree}")[1:]:
            lines = (line.strip() for line in block.split("```")[0].splitlines())
            entries |= {page.parent / f"{line}.md" for line in lines if line and not line.startswith(":")}
    assert entries == set(PAGES)


def test_every_public_name_is_in_the_reference():
    import imix_aug

    reference = (DOCS / "api.md").read_text(encoding="utf-8")
    assert [name for name in imix_aug.__all__ if f":: {name}\n" not in reference] == []


def test_every_public_name_and_argument_is_in_the_page_for_assistants():
    import imix_aug

    page = (DOCS / "llms.txt").read_text(encoding="utf-8")
    for name in imix_aug.__all__:
        assert f"- {name}(" in page
        for argument in inspect.signature(getattr(imix_aug, name)).parameters:
            assert re.search(rf"\b{argument}\b", page), f"{name}({argument}=)"


@pytest.mark.parametrize("repository", ["", "https://example.org/me/"])
def test_one_line_gives_every_page_its_edit_link(repository, tmp_path):
    for needed in ("sphinx", "myst_parser", "furo", "sphinx_copybutton"):
        pytest.importorskip(needed)
    settings = (DOCS.parent / "pyproject.toml").read_text(encoding="utf-8")
    settings, lines = re.subn(r'^repository = "[^"]*"', f'repository = "{repository}"', settings, flags=re.MULTILINE)
    assert lines == 1
    (tmp_path / "pyproject.toml").write_text(settings, encoding="utf-8")
    docs = tmp_path / "docs"
    (docs / "below").mkdir(parents=True)
    for name in ("conf.py", "llms.txt"):
        shutil.copy(DOCS / name, docs)
    shutil.copytree(DOCS / "_static", docs / "_static")
    pages = {"index": "# Front\n\n```{toctree}\nbelow/page\n```\n", "below/page": "# Below\n"}
    for name, text in pages.items():
        (docs / f"{name}.md").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", str(docs), str(tmp_path / "html")]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    for name in pages:
        page = (tmp_path / "html" / f"{name}.html").read_text(encoding="utf-8")
        links = re.findall(r'href="([^"]*)" rel="edit"', page)
        assert links == ([f"https://example.org/me/edit/main/docs/{name}.md"] if repository else [])
