"""How Sphinx builds the documentation: `sphinx-build -W docs docs/_build/html`."""

from importlib.metadata import version as _version

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
