"""What the site needs beside the pages of this folder: the README as its first page, and plain names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from griffe import Extension

ROOT = Path(__file__).parent.parent
_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):<code>~?(?:[\w.]+\.)?(\w+)</code>")
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(((?!https?:|docs/|#)[^)]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the README, with its links as seen from ``docs/``; what lies outside of the site loses its link."""
    from mkdocs.structure.files import File

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = _OUTSIDE.sub(r"\1", text).replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Docstrings mark names in Sphinx's way; show the name alone."""
    return _ROLE.sub(r"<code>\1</code>", html)


class Examples(Extension):
    """Docstrings say ``Example:`` where the reader of Google's style knows ``Examples:`` as code."""

    def on_instance(self, *, obj: Any, **kwargs: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^( *)Example:$", r"\1Examples:", obj.docstring.value)
