"""Renders the Jinja2 templates that lie in the packages as package data."""

from __future__ import annotations

from functools import cache
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

MARKDOWN = ".md.j2"


class Markdown(str):
    """Text that is Markdown already, and stays as it is in a Markdown template."""


def render_template(package: str, name: str, **values: Any) -> str:
    """Render a template that lies in a package.

    Values are escaped: for HTML, or for Markdown where the template's name ends in `.md.j2`. In Markdown quotes stay
    as they are, so that commands can be copied from the file, and so does `Markdown`.

    Args:
        package: the package, e.g. `analysis.reporting`.
        name: the template's path within it, e.g. `templates/page.html.j2`.
        values: what the template reads, by name.

    Returns:
        The text.

    Raises:
        jinja2.UndefinedError: the template reads a value that was not given.
    """
    return _environment(package, name.endswith(MARKDOWN)).get_template(name).render(values)


def read_resource(package: str, name: str) -> str:
    """Read a text file that lies in a package.

    Args:
        package: the package, e.g. `analysis.reporting`.
        name: the file's path within it, e.g. `templates/style.css`.

    Returns:
        The text.

    Raises:
        FileNotFoundError: there is no such file.
    """
    return files(package).joinpath(name).read_text(encoding="utf-8")


@cache
def _environment(package: str, markdown: bool) -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined  # commands that render nothing start without it

    return Environment(
        loader=FunctionLoader(lambda name: read_resource(package, name)), undefined=StrictUndefined,
        autoescape=not markdown, finalize=_escape_markdown if markdown else None, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip


def _escape_markdown(value: Any) -> Any:
    return escape(value, quote=False) if isinstance(value, str) and not isinstance(value, Markdown) else value
