"""Sphinx: `make docs` builds these pages, with those that generate.py makes, into docs/built."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import generate

project = "nxmiformer"
release = re.findall(r"^version = (.+)$", (generate.ROOT / "setup.cfg").read_text(encoding="utf-8"), re.MULTILINE)[0]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["built"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
toc_object_entries = False  # of a thousand members, on every page
default_role = "code"  # of what stands between single backticks in a docstring
autosummary_generate = False  # the pages of the modules have it all
napoleon_use_ivar = True
html_theme = "furo"
html_static_path, html_css_files = ["static"], ["narrow.css"]
html_title = f"nxmiformer {release}"
html_show_sourcelink = html_show_copyright = False
suppress_warnings = ["misc.highlighting_failure"]
LEADS = {  # links that leave this directory, as a reader of the repository follows them, and the pages made of them
    r"experiments/(\w+)/README\.md": r"/made/studies/\1.md",
    r"conf/config\.yaml": "/made/options.md",
    r"CONTRIBUTING\.md": "/made/contributing.md",
    r"CHANGELOG\.md": "/made/changelog.md",
}


def setup(app):
    """Make what is made before anything is read."""
    generate.main(Path(app.srcdir))
    app.connect("source-read", _lead)
    app.connect("autodoc-process-docstring", _plain, priority=400)  # before napoleon's


def _lead(app, name, source):
    for left, page in LEADS.items():
        source[0] = re.sub(rf"\]\((?:\.\./)+{left}\)", rf"]({page})", source[0])


def _plain(app, what, name, made, options, lines):
    """Docstrings are plain text: a bar is a bar, and "rows, cols: sizes" says the same of each of the two."""
    found = []
    for line in lines:
        line = "`".join(each.replace("|", "\\|") if n % 2 == 0 else each for n, each in enumerate(line.split("`")))
        named = re.fullmatch(r" {4}(\w+(?:, \w+)+): (.*)", line)
        found += [f"    {each}: {named[2]}" for each in named[1].split(", ")] if named else [line]
    lines[:] = found
