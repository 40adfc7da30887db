"""Writes the log: one file in Markdown, the same as a page in HTML, and small pictures beside them."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from analysis.reporting import drawing_executor, render_png
from analysis.research_log import handwritten, markdown
from analysis.research_log.entries import STUDY, TEACHER, Entry, EntryNote, date_and_time
from analysis.research_log.handwritten import HEAD
from analysis.utils import silent
from lowrank.utils import Markdown, free_name, read_resource, render_template, write_text
from sweeps.records import NoteKind

PACKAGE = "analysis.research_log"
UNGROUPED = "Runs of no group"
PICTURES_SUFFIX = "_pictures"  # of the folder beside the file
_OWN_PICTURE = re.compile(rf"(?:{STUDY}|{TEACHER})-.+-\d{{8}}T\d{{6}}Z(?:-\d+)?-(?:front|curves)\.png")


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """Entries under one heading; the title is "" where no study is of a group."""

    title: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, kw_only=True)
class WrittenLog:
    """What was written.

    Attributes:
        path: of the Markdown file.
        page: of the HTML file.
        entries: how many there are.
        typed: how many texts of people were kept.
        saved: where the old file is, because something outside the markers had been changed by hand; None where
            nothing had.
    """

    path: Path
    page: Path
    entries: int
    typed: int
    saved: Path | None


def write_log(
    entries: Sequence[Entry], path: Path, command: str = "python -m analysis log",
    step: Callable[[str], None] = silent,
) -> WrittenLog:  # fmt: skip
    """Write a log, and keep what people have typed into it.

    Args:
        entries: oldest first.
        path: of the Markdown file; the page and the pictures lie beside it.
        command: that writes the log again.
        step: is called with the name of each step.

    Returns:
        What was written.

    Raises:
        InputError: the file is no log, or one of its markers has no partner.
        OSError: the disk is full or the folder cannot be written.
    """
    handwritten.read_log(path)  # a damaged file is refused before anything is drawn
    step("pictures")
    _draw(entries, path)
    step("text")
    old = handwritten.read_log(path)  # again: somebody may have saved the file while the pictures were drawn
    content = log_text(entries, path, old.texts, command)
    saved = _save_old(path) if old.changed else None
    write_text(path, content)
    write_text(path.with_suffix(".html"), log_page(content))
    _remove_pictures(entries, path)
    return WrittenLog(
        path=path, page=path.with_suffix(".html"), entries=len(entries), typed=len(old.texts), saved=saved
    )


def _save_old(path: Path) -> Path:
    saved = free_name(path.with_name(f"{path.stem}-changed-by-hand{path.suffix}"))
    shutil.copy2(path, saved)
    return saved


def _draw(entries: Sequence[Entry], path: Path) -> None:
    jobs = [job for entry in entries for job in entry.pictures]
    if not jobs:
        return
    folder = pictures_folder(path)
    folder.mkdir(exist_ok=True)
    with drawing_executor(len(jobs)) as executor:
        drawn = [executor.submit(render_png, job, folder / f"{job.name}.png") for job in jobs]
        for picture in drawn:
            picture.result()


def pictures_folder(path: Path) -> Path:
    """Return the folder of a log's pictures.

    Args:
        path: of the Markdown file.

    Returns:
        The folder, beside the file.
    """
    return path.with_name(f"{path.stem}{PICTURES_SUFFIX}")


def _remove_pictures(entries: Sequence[Entry], path: Path) -> None:
    """Remove pictures of studies whose entries have gone or have no front any more."""
    shown = {f"{job.name}.png" for entry in entries for job in entry.pictures}
    folder = pictures_folder(path)
    for picture in folder.iterdir() if folder.is_dir() else ():
        if _OWN_PICTURE.fullmatch(picture.name) and picture.name not in shown:
            picture.unlink()


def log_text(entries: Sequence[Entry], path: Path, texts: Mapping[str, str], command: str) -> str:
    """Put a log together.

    Args:
        entries: oldest first.
        path: of the file.
        texts: what people typed into it, by key of the entry.
        command: that writes the log again.

    Returns:
        The Markdown.
    """
    chapters = group_chapters(entries)
    links = _links(chapters)
    keys = {HEAD, *(entry.key for entry in entries)}
    content = render_template(
        PACKAGE, "templates/log.md.j2", signature=Markdown(handwritten.SIGNATURE),
        introduction=_introduction(entries, command), takeaways=list(_takeaways(entries, texts, links)),
        todos=list(_todos(entries, texts, links)), index=_index(entries, links), chapters=chapters,
        pictures=Markdown(quote(pictures_folder(path).name)), orphans=[key for key in texts if key not in keys],
        block=lambda key: Markdown(handwritten.block(key, texts.get(key, ""))), text=markdown.line,
        paragraph=markdown.lines, sentences=markdown.sentences, table=markdown.table, code=markdown.code_block,
        note_line=_note_line,
    )  # fmt: skip
    return handwritten.sealed(content)


def log_page(content: str) -> str:
    """Turn a log into a page.

    Args:
        content: its Markdown.

    Returns:
        The HTML, which fetches nothing but the pictures beside it.
    """
    style = read_resource("analysis.reporting", "templates/style.css")
    return render_template(
        PACKAGE, "templates/log.html.j2", title="Research log", style=style, content=markdown.to_html(content)
    )


def group_chapters(entries: Sequence[Entry]) -> list[Chapter]:
    """Divide entries into chapters: one for each group, in the order in which the groups began.

    Args:
        entries: oldest first.

    Returns:
        The chapters, last the entries of no group; a single one without a title where there is no group.
    """
    groups = list(dict.fromkeys(entry.group for entry in entries if entry.group))
    if not groups:
        return [Chapter(title="", entries=tuple(entries))]
    chapters = [
        Chapter(title=f"Group: {group}", entries=tuple(e for e in entries if e.group == group)) for group in groups
    ]
    ungrouped = tuple(entry for entry in entries if not entry.group)
    return [*chapters, Chapter(title=UNGROUPED, entries=ungrouped)] if ungrouped else chapters


def _links(chapters: Sequence[Chapter]) -> dict[str, str]:
    """The anchor of each entry's heading, by its key; headings count in the order in which they stand."""
    taken = {"research-log", "takeaways", "open-to-dos", "all-entries"}
    links = {}
    for chapter in chapters:
        if chapter.title:
            markdown.anchor(chapter.title, taken)
        for entry in chapter.entries:
            links[entry.key] = markdown.anchor(entry.heading, taken)
    return links


def _introduction(entries: Sequence[Entry], command: str) -> Markdown:
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    count = f"{len(entries):,} {'entry' if len(entries) == 1 else 'entries'}"
    return Markdown(
        f"{count}, written on {today} by\n\n{markdown.code_block(command)}\n\n"
        "Times are UTC. Text between the markers of an entry (comments in the Markdown file) is yours and stays; the "
        "rest is written anew. Lines that begin with `Takeaway:` or `- [ ]` there are listed below too."
    )


def _entry_link(entry: Entry, links: Mapping[str, str]) -> str:
    return f"[{markdown.line(entry.heading)}](#{links[entry.key]})"


def _takeaways(entries: Sequence[Entry], texts: Mapping[str, str], links: Mapping[str, str]) -> list[Markdown]:
    bullets = [f"- {markdown.line(text)}" for text in handwritten.typed_takeaways(texts.get(HEAD, ""))]
    for entry in entries:
        noted = [_about(note) for note in entry.notes if note.kind is NoteKind.TAKEAWAY]
        for text in (*noted, *handwritten.typed_takeaways(texts.get(entry.key, ""))):
            bullets.append(f"- {markdown.line(text)} ({_entry_link(entry, links)})")
    return [Markdown(bullet) for bullet in bullets]


def _todos(entries: Sequence[Entry], texts: Mapping[str, str], links: Mapping[str, str]) -> list[Markdown]:
    bullets = [f"- [ ] {markdown.line(text)}" for text in handwritten.typed_todos(texts.get(HEAD, ""))]
    for entry in entries:
        link = _entry_link(entry, links)
        for note in entry.notes:
            if note.kind is NoteKind.TODO and note.open:
                close = f"python -m analysis note {shlex.quote(entry.folder)} --done {note.note_id}"
                bullets.append(f"- [ ] {markdown.line(_about(note))} ({link}; when done: {markdown.line(close)})")
        for text in handwritten.typed_todos(texts.get(entry.key, "")):
            bullets.append(f"- [ ] {markdown.line(text)} ({link})")
    return [Markdown(bullet) for bullet in bullets]


def _about(note: EntryNote) -> str:
    return f"trial {note.trial}: {note.text}" if note.trial else note.text


def _note_line(note: EntryNote) -> Markdown:
    when = f"{date_and_time(note.time)}, " if note.time is not None else ""
    kind = {NoteKind.TAKEAWAY: "takeaway, ", NoteKind.TODO: "to do, " if note.open else "done, "}.get(note.kind, "")
    trial = f", trial {note.trial}" if note.trial else ""
    return Markdown(f"*{markdown.line(f'{when}{kind}{note.source}{trial}')}*: {markdown.lines(note.text, '  ')}")


def _index(entries: Sequence[Entry], links: Mapping[str, str]) -> Markdown:
    grouped = any(entry.group for entry in entries)
    headings = ("entry", *["group"] * grouped, "outcome")
    rows = [(Markdown(_entry_link(e, links)), *[e.group] * grouped, e.outcome) for e in entries]
    return markdown.table(headings, rows)
