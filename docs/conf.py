"""Sphinx configuration: builds the pages of pt_docs without PyTerrier's site, offline.

    make docs

PyTerrier's site copies the pages and builds them with the same theme and extensions. The directives that exist only there
come from ``stand_ins.py``.
"""

import sys
from importlib.metadata import version as read_version
from pathlib import Path

import pyterrier as pt

sys.path.insert(0, str(Path(__file__).parent))
# Drawing a schematic would download the list of PyTerrier's pages; without it, schematics have no links.
pt.documentation._cached_objects_inv = {}

project = "pyterrier-hypencoder"
author = "The pyterrier_hypencoder maintainers"
version = release = read_version(project)
html_title = f"{project} {release}"
html_theme = "furo"
html_show_copyright = False

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_design",
    "sphinx_tabs.tabs",
    "sphinx_togglebutton",
    "stand_ins",
]
autoclass_content = "both"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Show attributes as fields, because autodoc documents the same attributes as members.
napoleon_use_ivar = True

# Report every reference that leads nowhere, except those to other packages, which only PyTerrier's site can resolve.
nitpicky = True
# References to the public names must be right. Docstrings may also name modules that the API page does not list.
nitpick_ignore_regex = [("py:.*", r"(?!pyterrier_hypencoder\.).*"), ("py:.*", r"pyterrier_hypencoder\.[a-z_]+\..*")]
