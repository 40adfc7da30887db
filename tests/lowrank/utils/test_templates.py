from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from lowrank.utils import templates
from lowrank.utils.templates import read_resource, render_template


@pytest.fixture
def source(monkeypatch):
    """Sets the text of the template that is rendered next."""
    texts: list[str] = []
    monkeypatch.setattr(templates, "read_resource", lambda package, name: texts[-1])
    templates._environment.cache_clear()
    yield texts.append
    templates._environment.cache_clear()


def test_html_is_escaped_in_full(source):
    source("<p>{{ text }}</p>")
    assert render_template("p", "page.html.j2", text="<b> & 'c'") == "<p>&lt;b&gt; &amp; &#39;c&#39;</p>"


def test_markdown_keeps_quotes_so_that_commands_can_be_copied(source):
    source("* {{ text }}, {{ number }}\n")
    assert render_template("p", "card.md.j2", text="<b> & 'c'", number=3) == "* &lt;b&gt; &amp; 'c', 3\n"


def test_a_value_that_is_missing_is_an_error(source):
    source("{{ absent }}")
    with pytest.raises(UndefinedError, match="'absent' is undefined"):
        render_template("p", "page.html.j2")


def test_a_missing_file_is_an_error():
    with pytest.raises(FileNotFoundError):
        read_resource("analysis.reporting", "templates/absent.css")
