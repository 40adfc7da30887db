"""Writes plain text so that Markdown shows it as it is, and turns the log's Markdown into HTML.

Text that people typed (questions, notes, reasons, commands) may hold anything; none of it may become a heading, a
table, a link that hides its address, or HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any

from lowrank.utils import Markdown

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

_ADDRESS = re.compile(r"https?://[^\s<>\\`|]+")
_SPECIAL = re.compile(r"[\\`*\[\]|~$]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|(?<!\w)_|_(?!\w)")
_LINE_START = re.compile(r"^(#+|[-+=:>]|\d+(?=[.)](?:\s|$)))")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_CLOSING = ("</pre>", "</script>", "</style>", "</textarea>", "?>", "]]>")  # of blocks that do not end by themselves
_PROBE = "end of the text"


def line(text: object) -> Markdown:
    """Escape text that is shown on one line, such as a heading, a cell or an entry of a list.

    Args:
        text: any; line breaks become blanks.

    Returns:
        Its Markdown.
    """
    return Markdown(_escape_line(" ".join(_printable(str(text)).split())))


def lines(text: object, indent: str = "") -> Markdown:
    """Escape text whose line breaks are kept.

    Args:
        text: any.
        indent: is put before each line but the first, such as that of the list in which it stands.

    Returns:
        Its Markdown, one paragraph.
    """
    parts = [_escape_line(part.strip()) for part in _printable(str(text)).splitlines() if part.strip()]
    return Markdown(f"\\\n{indent}".join(parts))


def sentences(text: object) -> Markdown:
    """Escape sentences of this project, in which a command stands between backticks.

    Args:
        text: any; where backticks are not in pairs none stands for code.

    Returns:
        Its Markdown, one paragraph.
    """
    parts = _printable(str(text)).split("`")
    if len(parts) % 2 == 0:
        return lines(text)
    shown = (f"`{part}`" if number % 2 else _escape_line(part) for number, part in enumerate(parts))
    return Markdown("".join(shown))


def code_block(text: str) -> Markdown:
    """Show text as code.

    It is indented, not fenced: no line of the text can end the block, and none begins with a marker of the log.

    Args:
        text: any.

    Returns:
        Its Markdown; a blank line must stand before it.
    """
    return Markdown("\n".join(f"    {part}" for part in _printable(text).splitlines()))


def table(headings: Sequence[object], rows: Iterable[Sequence[object]]) -> Markdown:
    """Write a table.

    Args:
        headings: of the columns.
        rows: of cells as plain text; those that are `Markdown` already stay as they are.

    Returns:
        Its Markdown.
    """
    body = [[cell if isinstance(cell, Markdown) else line(cell) for cell in row] for row in (headings, *rows)]
    text = [f"| {' | '.join(row)} |" for row in body]
    return Markdown("\n".join([text[0], f"|{' --- |' * len(headings)}", *text[1:]]))


def _printable(text: str) -> str:
    """Characters that no page shows, among them those that turn the direction of writing, become a visible sign."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else "\ufffd" for sign in text.replace("\r\n", "\n"))


def _escape_line(text: str) -> str:
    parts, position = [], 0
    for match in _ADDRESS.finditer(text):
        address = match[0].rstrip(".,;:!?)'\"")
        parts += [_escape(text[position : match.start()]), f"<{address}>"]
        position = match.start() + len(address)
    parts.append(_escape(text[position:]))
    return _LINE_START.sub(_escape_start, "".join(parts))


def _escape(text: str) -> str:
    return _SPECIAL.sub(lambda match: f"\\{match[0]}", text)


def _escape_start(match: re.Match[str]) -> str:
    """A number before a full stop would begin a list: there the stop is escaped, for digits cannot be."""
    return f"{match[0]}\\" if match[0].isdigit() else f"\\{match[0]}"


def anchor(heading: str, taken: set[str]) -> str:
    """Return the name that GitHub gives a heading, so that links work there and on the page.

    Args:
        heading: as shown.
        taken: names of the headings before it; the new one is added.

    Returns:
        The name, with a number where several headings are equal.
    """
    name = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
    unique, number = name, 0
    while unique in taken:
        number += 1
        unique = f"{name}-{number}"
    taken.add(unique)
    return unique


def to_html(text: str) -> str:
    """Render Markdown as HTML that runs nothing: HTML within the text is shown, not used.

    Args:
        text: the Markdown.

    Returns:
        The HTML. Headings have the names of `anchor`, comments are left out.
    """
    parser = _parser()
    tokens = parser.parse(text)
    taken: set[str] = set()
    for index, token in enumerate(tokens):
        if token.type == "heading_open":
            shown = "".join(child.content for child in tokens[index + 1].children or [])
            token.attrSet("id", anchor(shown, taken))
        if token.type == "inline" and index > 1 and tokens[index - 2].type == "list_item_open":
            _show_box(token)
    return str(parser.renderer.render(tokens, parser.options, {}))


def _show_box(token: Token) -> None:
    """GitHub shows `[ ]` at the beginning of a list's entry as a box; so does the page."""
    boxes = {"[ ] ": "\u2610 ", "[x] ": "\u2611 ", "[X] ": "\u2611 "}
    for first in (token.children or [])[:1]:
        if first.content[:4] in boxes:
            first.content = boxes[first.content[:4]] + first.content[4:]


def missing_end(text: str) -> str:
    """Find what must follow text so that it leaves nothing open, such as a block of code.

    Args:
        text: Markdown that somebody typed, with the comment that stands after it.

    Returns:
        The line that closes it; "" where nothing is open.
    """
    fences = [match[0] for match in re.finditer(r"`{3,}|~{3,}", text)]
    for end in ("", *dict.fromkeys(fences), *_CLOSING):
        tokens = _parser().parse(f"{text}\n{end}\n\n{_PROBE}\n")
        if len(tokens) >= 3 and tokens[-1].type == "paragraph_close" and tokens[-2].content == _PROBE:
            return end
    raise ValueError("a text leaves something open that no line closes")


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    parser.add_render_rule("html_block", _show_markup)
    parser.add_render_rule("html_inline", _show_markup)
    parser.add_render_rule("table_open", _open_table)
    parser.add_render_rule("table_close", _close_table)
    return parser


def _open_table(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return '<div class="scroll"><table>\n'


def _close_table(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return "</table></div>\n"


def _show_markup(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return escape(_COMMENT.sub("", tokens[index].content))
