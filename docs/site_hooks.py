"""What the site needs beside the pages of this folder: the README as its first page, notebooks as pages, and
plain names."""

from __future__ import annotations

import json
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
    for path in sorted((ROOT / "docs" / "tutorials").glob("*.ipynb")):
        files.append(File.generated(config, f"tutorials/{path.stem}.md", content=notebook_page(path)))
    return files


def notebook_page(path: Path) -> str:
    """A notebook with what it printed and drew, as a page."""
    found = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        found.append(source if cell["cell_type"] == "markdown" else _code(source, cell["outputs"]))
    return "\n\n".join([*found, f"[This page as a notebook]({path.name})"])


def _code(source: str, outputs: list[Any]) -> str:
    command = source.startswith("!")
    parts = [f"```{'console' if command else 'python'}\n{'$ ' + source[1:] if command else source}\n```"]
    for one in outputs:
        data = one.get("data", {})
        if "image/png" in data:
            parts.append(f"![a figure](data:image/png;base64,{data['image/png']})")
        else:
            text = "".join(one.get("text") or data.get("text/plain", []))
            parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to notebooks lead to their pages."""
    return re.sub(r"(\]\(tutorials/[\w-]+)\.ipynb\)", r"\1.md)", markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Docstrings mark names in Sphinx's way; show the name alone."""
    return _ROLE.sub(r"<code>\1</code>", html)


class Examples(Extension):
    """Docstrings say ``Example:`` where the reader of Google's style knows ``Examples:`` as code."""

    def on_instance(self, *, obj: Any, **kwargs: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^( *)Example:$", r"\1Examples:", obj.docstring.value)
