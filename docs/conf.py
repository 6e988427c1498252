"""How Sphinx builds the documentation: `sphinx-build -W docs docs/_build/html`."""

import sys as _sys
from importlib.metadata import version as _version
from pathlib import Path as _Path

if _sys.version_info >= (3, 11):
    import tomllib as _toml
else:
    import tomli as _toml  # Sphinx's own there

project = "imix-aug"
author = "The imix-aug developers"
copyright = author  # the name that Sphinx asks for
release = version = _version("imix-aug")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "figures"]
nitpicky = False

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "attrs_block"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False

pygments_dark_style = "github-dark"  # furo's own underlines names as if they were links

html_theme = "furo"
html_title = f"imix-aug {release}"
html_static_path = ["_static"]
html_extra_path = ["llms.txt"]
html_favicon = "_static/favicon.svg"
html_css_files = ["custom.css"]

_settings = _toml.loads((_Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
_repository = _settings["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"].rstrip("/")
if _repository:  # without it no page says where to edit it
    html_theme_options = {"source_edit_link": f"{_repository}/edit/main/docs/{{filename}}"}
