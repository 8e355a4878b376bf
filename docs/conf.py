"""Sphinx configuration: MyST Markdown, one theme, warnings are errors (dev.py docs)."""

from __future__ import annotations

from importlib.metadata import version as installed_version

project = "aioqemu"
author = "The aioqemu developers"
release = version = installed_version("aioqemu")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["changes/*"]
myst_heading_anchors = 3
html_theme = "furo"
