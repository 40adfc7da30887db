"""Puts words, tables and pictures together as one HTML file that fetches nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from analysis.reporting.render import DrawJob, Picture, render_picture
from analysis.reporting.svg_theme import colour_variables
from analysis.reporting.tables import ReportTable
from lowrank.utils import read_resource, render_template

PACKAGE, TEMPLATE, STYLE = "analysis.reporting", "templates/page.html.j2", "templates/style.css"
SHOWN_ROWS = 40  # of a table; the CSV has all
LONG_CELL = 20  # characters in a cell from which its column is kept wide on a phone
NO_BREAK = "\u00a0"
_UNIT = re.compile(r"(?<=\d) (?=%|points?\b|parameters\b|images\b)")  # where a line must not break
_NUMBER = re.compile(r"^[+≤-]?\s*[\d,.]+ ?(%|[GMk]|s|h|min)?( ± [\d.]+)?( \([^)]*\))?$")


class Page:
    """Collects the blocks of a page; `html` renders the template with them.

    Each block is a dictionary whose `kind` the template knows. All text is escaped there.
    """

    def __init__(self, title: str, folder: Path, executor: Executor, subtitle: str = ""):
        self.title, self.subtitle, self._folder, self._executor = title, subtitle, folder, executor
        self._head: list[dict[str, object]] = []
        self._blocks: list[dict[str, object]] = []
        self._pictures: list[Future[Picture]] = []

    def _add(self, kind: str, **values: Any) -> None:
        self._blocks.append({"kind": kind, **values})

    def section(self, heading: str) -> None:
        """Begin a section; it is listed at the top."""
        self._add("section", text=heading, anchor=re.sub(r"[^a-z]+", "-", heading.lower()).strip("-"))

    def heading(self, text: str) -> None:
        """Add a heading within a section."""
        self._add("heading", text=text)

    def text(self, text: str, style: str = "") -> None:
        """Add a paragraph; `style` is a class of the style sheet, e.g. note."""
        self._add("paragraph", text=text, style=style)

    def answer(self, paragraphs: Iterable[str]) -> None:
        """Add the answer, set apart; its first paragraph is the largest."""
        texts = (_UNIT.sub(NO_BREAK, paragraph) for paragraph in paragraphs)
        self._add("answer", paragraphs=[text.split("`") for text in texts])  # each second part is a command

    def facts(self, facts: Iterable[tuple[str, str]]) -> None:
        """Add numbers side by side, each a pair of its value and what it is."""
        self._add("facts", facts=list(facts))

    def details(self, summary: str, facts: Iterable[tuple[str, str]], link: tuple[str, str, str] | None = None) -> None:
        """Add named facts under the title, which open on request.

        Args:
            summary: the line that is always shown.
            facts: pairs of a name and a value.
            link: name, text and address of one more; with "" as the address the text is shown as code.
        """
        self._head.append({"summary": summary, "facts": list(facts), "link": link})

    def picture(self, job: DrawJob) -> None:
        """Add a picture in both widths, drawn by the executor; the style sheet shows one."""
        future = self._executor.submit(render_picture, job, self._folder)
        self._pictures.append(future)
        self._add("picture", picture=future)

    def table(self, table: ReportTable) -> None:
        """Add a table for readers with a link to its CSV; of a long one the first rows."""
        headings = table.headings or table.columns
        classes = [_column_class([row[index] for row in table.texts]) for index in range(len(headings))]
        self._add("table", headings=headings, classes=classes, rows=table.texts[:SHOWN_ROWS])
        self.file(f"{table.name}.csv", max(0, len(table.texts) - SHOWN_ROWS))

    def file(self, name: str, more_rows: int = 0) -> None:
        """Add a link to a file beside the page, which holds `more_rows` than are shown."""
        self._add("file", name=name, more_rows=more_rows)

    def command(self, label: str, command: str) -> None:
        """Add a command to copy, under its label."""
        self.heading(label)
        self._add("command", text=command)

    def html(self) -> str:
        """Render the page.

        Returns:
            The file's content.

        Raises:
            Exception: what the drawing of a picture raised.
        """
        blocks = [
            {**block, "picture": future.result()} if isinstance(future := block.get("picture"), Future) else block
            for block in self._blocks
        ]
        colours = {colour for future in self._pictures for colour in future.result().colours}
        return render_template(
            PACKAGE, TEMPLATE, title=self.title, subtitle=self.subtitle, head=self._head, blocks=blocks,
            style=read_resource(PACKAGE, STYLE), colours=colour_variables(colours),
        )  # fmt: skip


def _column_class(cells: list[str]) -> str:
    """The class of the style sheet for a column: numbers stand to the right, long texts get a least width."""
    if cells and all(_NUMBER.match(cell) or not cell for cell in cells):
        return "number"
    return "long" if any(len(cell) >= LONG_CELL for cell in cells) else ""
