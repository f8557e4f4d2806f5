"""Pages from templates: every value escaped, nothing loaded from anywhere."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from fxplain.render.colours import number

if TYPE_CHECKING:
    from jinja2 import Environment


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fxplain.render", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment


def page(template: str, **values: Any) -> str:
    """Fill a template; every value is escaped for HTML."""
    text = _environment().get_template(template).render(**values)
    # half a surrogate pair, as broken tokens hold, cannot be written as UTF-8
    return text.encode("utf-8", errors="replace").decode("utf-8")
