"""What the package index shows: whole links, once pyproject.toml says in one line where the sources are."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = r"(?!https?:|#)"


def absolute(page: str, repository: str, tag: str) -> str:
    """Give every link and picture of a page that lies at the repository's root its whole address."""
    page = re.sub(rf'((?:srcset|src)="|!\[[^]]*\]\(){RELATIVE}', rf"\g<1>{repository}/raw/{tag}/", page)
    return re.sub(rf"(?<!!)(\[[^]]*\]\(){RELATIVE}", rf"\g<1>{repository}/blob/{tag}/", page)


class Metadata(MetadataHookInterface):
    """The readme and the URLs."""

    def update(self, metadata: dict) -> None:
        """Fill both in."""
        page = Path(self.root, "README.md").read_text(encoding="utf-8")
        urls = {"Paper": "https://arxiv.org/abs/2010.08887"}
        repository = self.config["repository"].rstrip("/")
        if repository:
            page = absolute(page, repository, f"v{metadata['version']}")
            urls["Repository"] = repository
            urls["Documentation"] = f"{repository}/blob/main/docs/index.md"
            urls["Changelog"] = f"{repository}/blob/main/CHANGELOG.md"
            urls["Issues"] = f"{repository}/issues"
        metadata["readme"] = {"content-type": "text/markdown", "text": page}
        metadata["urls"] = urls
