"""Hooks of the site: what MkDocs shows beside docs, and how griffe reads our docstrings."""

import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = ["README.md", "CONTRIBUTING.md", "CITATION.cff"]
OUTSIDE += [f"examples/*.{kind}" for kind in ("py", "json", "ipynb", "sh")]

ROLE = re.compile(r":\w+:(`[^`]*`)")
GROUP = re.compile(r"^( +)(\w+(?:, \w+)+)(: .*(?:\n\1 +.*)*)$", re.M)
"""Names that share a line of a docstring's section: ``low, high: Range, both included.``"""


class Docstrings(Extension):
    """Gives each name of a group a line, so that it is checked, and turns roles into code."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = GROUP.sub(_split, ROLE.sub(r"\1", obj.docstring.value))


def _split(group: re.Match[str]) -> str:
    return "\n".join(f"{group[1]}{name}{group[3]}" for name in group[2].split(", "))


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds pages and files of the folder above."""
    for source in (source for pattern in OUTSIDE for source in ROOT.glob(pattern)):
        name = source.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(source)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between docs and the folder above, which are one folder in the site."""
    return markdown.replace("](docs/", "](").replace("](../", "](")
