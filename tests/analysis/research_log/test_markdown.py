"""Plain text stays text in the log's Markdown, and nothing of it becomes HTML on the page."""

from __future__ import annotations

import re
from html import unescape

import pytest
from hypothesis import example, given, strategies as st

from analysis.research_log import handwritten, markdown

TRICKY = st.text(st.sampled_from("ab1 .)#*_`~[]()<>!|\\&;$-+=:/\n\t\u202e\x00"), max_size=40)


def shown(html: str) -> str:
    """The text of a piece of HTML."""
    return unescape(re.sub(r"<[^>]*>", "", html))


def plain(text: str) -> str:
    """A text as a page may show it: blanks count once, signs that cannot be printed are replaced."""
    return " ".join("".join(s if s.isprintable() or s.isspace() else "\ufffd" for s in text).split())


@example("<script>alert(1)</script>")
@example("[a](javascript:alert(1)) ![b](http://x/y.png) &amp; &#60;b&#62;")
@example("1. a\n# b\n- c\n===\n| d | e |\n|---|---|")
@given(TRICKY)
def test_a_line_is_shown_as_it_was_typed(text):
    html = markdown.to_html(f"- x {markdown.line(text)}\n\nend\n")
    assert " ".join(shown(html).split()) == f"x {plain(text)} end".replace("  ", " ")
    assert set(re.findall(r"<(/?\w+)", html)) <= {"ul", "/ul", "li", "/li", "p", "/p", "a", "/a"}


@given(TRICKY)
def test_a_line_at_the_beginning_of_a_paragraph_is_no_heading_and_no_list(text):
    html = markdown.to_html(f"{markdown.line(text)}\n\n{markdown.lines(text)}\n")
    assert set(re.findall(r"<(/?\w+)", html)) <= {"p", "/p", "a", "/a", "br"}


@given(TRICKY)
def test_a_cell_stays_in_its_table(text):
    html = markdown.to_html(markdown.table(("a", "b"), [(text, "last")]))
    assert html.count("<tr>") == 2
    assert html.count("<td>") == 2
    assert "<td>last</td>" in html


@given(TRICKY)
def test_code_keeps_its_lines_and_has_no_marker(text):
    block = markdown.code_block(f"<!-- your text: head -->\n```\n{text}")
    assert not any(line.startswith("<!--") for line in block.splitlines())
    assert set(re.findall(r"<(/?\w+)", markdown.to_html(f"a\n\n{block}\n\nb"))) <= {
        "p",
        "/p",
        "pre",
        "/pre",
        "code",
        "/code",
    }


def test_an_address_is_a_link():
    html = markdown.to_html(markdown.line("see https://example.org/a_b_c?d=1&e=2."))
    assert '<a href="https://example.org/a_b_c?d=1&amp;e=2">' in html


@pytest.mark.parametrize(
    ("heading", "name"),
    [("2026-11-29 22:23 first_look, run 1", "2026-11-29-2223-first_look-run-1"), ("What's new?", "whats-new")],
)
def test_headings_have_the_names_that_github_gives(heading, name):
    taken: set[str] = set()
    assert markdown.anchor(heading, taken) == name
    assert markdown.anchor(heading, taken) == f"{name}-1"
    html = markdown.to_html(f"### {markdown.line(heading)}\n\n### {markdown.line(heading)}\n")
    assert re.findall(r'id="([^"]+)"', html) == [name, f"{name}-1"]


def test_boxes_are_shown_and_comments_are_not():
    html = markdown.to_html("- [ ] open\n- [x] done\n\n<!-- hidden -->\n\n<img src=x onerror=alert(1)>\n")
    assert "\u2610 open" in html
    assert "\u2611 done" in html
    assert "hidden" not in html
    assert "<img" not in html


OPEN_TEXTS = [
    "```sh\ncode\n", "~~~~\ncode\n", "<pre>\n", "<script>\n", "<?php\n", "<![CDATA[\n", "<!-- no end\n",
    "- ```\n  code\n", "> ```\n", "| a |\n| --- |\n", "    indented\n", "<details>\n", "[a]: <b\n", "text\n---\n",
]  # fmt: skip


@pytest.mark.parametrize("text", OPEN_TEXTS)
def test_what_people_leave_open_is_closed_after_their_text(text):
    block = handwritten.block("key", text)
    assert text in block
    assert "<h2" in markdown.to_html(f"{block}\n## Next\n")


@given(st.lists(st.sampled_from([*OPEN_TEXTS, "```\n", "~~~\n", "text\n", "\n", "</pre>\n"]), max_size=5).map("".join))
def test_no_text_swallows_the_next_heading(text):
    assert "next</h2>" in markdown.to_html(f"{handwritten.block('key', text)}\n## next\n")


def test_a_command_within_sentences_is_code():
    html = markdown.to_html(markdown.sentences("More seeds would: `python sweeps/run.py --resume a_b`, 3 *trainings*."))
    assert "<code>python sweeps/run.py --resume a_b</code>" in html
    assert "3 *trainings*." in html
    assert "<code>" not in markdown.to_html(markdown.sentences("one ` alone"))
