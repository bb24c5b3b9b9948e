"""Sphinx configuration: `make docs` builds offline, with warnings as errors."""

import os
import re

from featprop_sklearn.version import __version__

project = "featprop_sklearn"
author = "The featprop_sklearn developers"
project_copyright = f"2026, {author}"
version = release = __version__


def _switched_on(variable):
    return os.environ.get(variable, "0") == "1"


extensions = [
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "myst_parser",  # the pages that the benchmarks write
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
suppress_warnings = ["ref.ref"]  # docstrings inherited from scikit-learn refer to its own guide

if _switched_on("DOCS_INTERSPHINX"):  # needs the network
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }

autosummary_generate = True
numpydoc_class_members_toctree = False
numpydoc_show_inherited_class_members = False

_SHOWN = r"(quickstart|scale_out|plot_\w+)\.py$"
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": rf"/{_SHOWN}",
    "ignore_pattern": rf"^(?!{_SHOWN}).*\.py$",
    "plot_gallery": _switched_on("DOCS_RUN_GALLERY"),
    "abort_on_example_error": True,
    "show_memory": False,
}

html_theme = "pydata_sphinx_theme"
html_title = project
html_show_sourcelink = False


def _escape_starred_shapes(app, what, name, obj, options, lines):
    """Keep ``(n_samples, *in_shape)`` from being read as the start of an emphasis."""
    for i, line in enumerate(lines):
        if "``" not in line:
            lines[i] = re.sub(r"(?<=[(\s])\*(?=\w+[,)])", r"\*", line)


def setup(app):
    # before numpydoc, which formats the sections at the default priority of 500
    app.connect("autodoc-process-docstring", _escape_starred_shapes, priority=400)
