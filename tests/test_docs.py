"""Every Python block of the documentation runs, page by page, from the top to the bottom."""

from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_code_blocks_run(page, monkeypatch):
    sybil = pytest.importorskip("sybil")
    from sybil.parsers.myst import PythonCodeBlockParser

    torch.manual_seed(0)
    monkeypatch.setenv("MPLBACKEND", "agg")
    examples = list(sybil.Sybil([PythonCodeBlockParser()]).parse(page))
    assert len(examples) >= page.read_text().count("```python\n")
    for example in examples:
        try:
            example.evaluate()
        except ModuleNotFoundError as missing:
            if missing.name and missing.name.startswith("imix_aug"):
                raise
            pytest.skip(f"{missing.name} is not installed")


def test_every_page_has_a_place_in_the_table_of_contents():
    entries = {DOCS / "index.md"}
    for index in (DOCS / "index.md", DOCS / "integrations" / "index.md"):
        for block in index.read_text().split("```{toctree}")[1:]:
            lines = (line.strip() for line in block.split("```")[0].splitlines())
            entries |= {index.parent / f"{line}.md" for line in lines if line and not line.startswith(":")}
    assert entries == set(PAGES)


def test_every_public_name_is_in_the_reference():
    import imix_aug

    reference = (DOCS / "api.md").read_text()
    assert [name for name in imix_aug.__all__ if f":: {name}\n" not in reference] == []
