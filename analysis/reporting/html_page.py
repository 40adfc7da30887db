"""Puts words, tables and pictures together as one HTML file that fetches nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import Executor, Future
from html import escape
from pathlib import Path

from analysis.reporting.render import DrawJob, Picture, make_picture
from analysis.reporting.style import CSS
from analysis.reporting.svg_theme import variables
from analysis.reporting.tables import Sheet

_UNIT = re.compile(r"(?<=\d) (?=%|points?\b|parameters\b|images\b)")  # where a line must not break
_NUMBER = re.compile(r"^[+≤-]?\s*[\d,.]+ ?(%|[GMk]|s|h|min)?( ± [\d.]+)?( \([^)]*\))?$")
SHOWN_ROWS = 40  # of a table; the CSV has all
LONG_WORDS = 20  # letters in a cell from which its column is kept wide on a phone
NO_BREAK = "\u00a0"


class Page:
    """Collects sections in order; `html` gives the whole file."""

    def __init__(self, title: str, folder: Path, executor: Executor, subtitle: str = ""):
        self.title, self.subtitle, self._folder, self._executor = title, subtitle, folder, executor
        self._head: list[str] = []
        self._parts: list[str | Future[Picture]] = []
        self._sections: list[tuple[str, str]] = []

    def section(self, heading: str) -> None:
        """Begin a section; it is listed at the top."""
        anchor = re.sub(r"[^a-z]+", "-", heading.lower()).strip("-")
        self._sections.append((anchor, heading))
        self._parts.append(f'<h2 id="{anchor}">{escape(heading)}</h2>')

    def heading(self, text: str) -> None:
        """A heading within a section."""
        self._parts.append(f"<h3>{escape(text)}</h3>")

    def text(self, text: str, kind: str = "") -> None:
        """A paragraph; `kind` is a class of the style sheet, e.g. note."""
        self._parts.append(f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>")

    def answer(self, paragraphs: Iterable[str]) -> None:
        """The answer, set apart; its first paragraph is the largest."""
        body = "".join(f"<p>{_UNIT.sub(NO_BREAK, escape(paragraph))}</p>" for paragraph in paragraphs)
        self._parts.append(f'<div class="answer">{body}</div>')

    def facts(self, found: Iterable[tuple[str, str]]) -> None:
        """Numbers side by side, each with what it is."""
        body = "".join(f"<div><b>{escape(value)}</b><span>{escape(label)}</span></div>" for value, label in found)
        self._parts.append(f'<div class="facts">{body}</div>')

    def details(self, summary: str, facts: Iterable[tuple[str, str]], link: tuple[str, str, str] | None = None) -> None:
        """Facts by name under the title, which open on request; `link` is one with an address ("" for none)."""
        rows = [(name, escape(value)) for name, value in facts]
        if link:
            name, words, address = link
            shown = f'<a href="{escape(address, quote=True)}">{escape(words)}</a>' if address else escape(words)
            rows.append((name, shown if address else f"<code>{shown}</code>"))
        body = "".join(f"<dt>{escape(name)}</dt><dd>{shown}</dd>" for name, shown in rows)
        self._head.append(f"<details><summary>{escape(summary)}</summary><dl>{body}</dl></details>")

    def picture(self, job: DrawJob) -> None:
        """A picture in both widths, drawn by the executor; the style sheet shows one."""
        self._parts.append(self._executor.submit(make_picture, job, self._folder))

    def table(self, sheet: Sheet) -> None:
        """A table for readers with a link to its CSV; of a long one the first rows."""
        headings = sheet.headings or sheet.columns
        numeric = [
            bool(sheet.words) and all(_NUMBER.match(row[index]) or not row[index] for row in sheet.words)
            for index in range(len(headings))
        ]
        long = [any(len(row[index]) >= LONG_WORDS for row in sheet.words) for index in range(len(headings))]
        kinds = [' class="n"' if number else ' class="l"' * wide for number, wide in zip(numeric, long, strict=True)]
        head = "".join(f"<th{kind}>{escape(text)}</th>" for kind, text in zip(kinds, headings, strict=True))
        body = "".join(
            "<tr>" + "".join(f"<td{kind}>{escape(text)}</td>" for kind, text in zip(kinds, row, strict=True)) + "</tr>"
            for row in sheet.words[:SHOWN_ROWS]
        )
        self._parts.append(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )
        self.file(f"{sheet.name}.csv", max(0, len(sheet.words) - SHOWN_ROWS))

    def file(self, name: str, more: int = 0) -> None:
        """A link to a file beside the page; `more` rows that only it holds."""
        rest = f" with {more:,} more rows" if more else ""
        self._parts.append(f'<p class="file"><a href="{escape(name, quote=True)}">{escape(name)}</a>{rest}</p>')

    def command(self, label: str, command: str) -> None:
        """A command to copy, under its label."""
        self.heading(label)
        self._parts.append(f"<pre>{escape(command)}</pre>")

    def html(self) -> str:
        """The file's content; raises what the drawing of a picture raised."""
        pictures = {index: part.result() for index, part in enumerate(self._parts) if not isinstance(part, str)}
        parts = [part if isinstance(part, str) else _figure(pictures[index]) for index, part in enumerate(self._parts)]
        colours = {colour for picture in pictures.values() for colour in picture.colours}
        head = "".join(self._head)
        links = "".join(f'<a href="#{anchor}">{escape(text)}</a>' for anchor, text in self._sections)
        meta = f'<p class="meta">{escape(self.subtitle)}</p>' if self.subtitle else ""
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{escape(self.title)}</title>\n<style>{CSS}{variables(colours)}</style>\n</head>\n"
            f"<body>\n<main>\n<h1>{escape(self.title)}</h1>\n{meta}\n{head}\n<nav>{links}</nav>\n"
            + "\n".join(parts)
            + "\n</main>\n</body>\n</html>\n"
        )


def _figure(picture: Picture) -> str:
    label = escape(picture.caption, quote=True)
    link = f'<a href="{escape(picture.png.name, quote=True)}">PNG</a>'
    return (
        f'<figure><div class="wide" role="img" aria-label="{label}">{picture.wide}</div>'
        f'<div class="narrow" role="img" aria-label="{label}">{picture.narrow}</div>'
        f"<figcaption>{escape(picture.caption)} {link}</figcaption></figure>"
    )
