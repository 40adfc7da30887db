"""What people type into the log itself: it stands between two markers of an entry and is never overwritten.

The markers are comments, which no page shows. The last line of the file holds a checksum of all that the command wrote,
so that text which was typed elsewhere is noticed before it would be lost.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from analysis.research_log.markdown import missing_end
from lowrank.errors import InputError

HEAD = "head"  # key of the text that stands before all entries
SIGNATURE = "<!-- python -m analysis log wrote this file; what stands between two markers of an entry is yours -->"
_BLOCK = re.compile(
    r"^<!-- your text: (?P<key>\S+) -->[ \t]*\r?\n(?P<text>.*?)^<!-- end of your text: (?P=key) -->[ \t]*(?:\r?\n|\Z)",
    re.DOTALL | re.MULTILINE,
)
_MARKER = re.compile(r"^<!-- (?:end of )?your text: \S+ -->", re.MULTILINE)
_CHECKSUM = re.compile(r"^<!-- checksum of all but your text: (?P<checksum>[0-9a-f]{64}) -->\s*\Z", re.MULTILINE)
_TODO = re.compile(r"^\s*[-*+] \[ \] (?P<text>.*\S)", re.MULTILINE)
_TAKEAWAY = re.compile(r"^\s*(?:[-*+] )?takeaway: *(?P<text>.*\S)", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True)
class OldLog:
    """A log as it lies on the disk.

    Attributes:
        texts: what people typed, by key of the entry; only those where something was typed.
        changed: whether anything else was changed by hand.
    """

    texts: Mapping[str, str]
    changed: bool = False


def read_log(path: Path) -> OldLog:
    """Read what people have typed into a log.

    Args:
        path: of the file, which may be missing.

    Returns:
        The texts.

    Raises:
        InputError: the file is no log, or one of its markers has no partner.
    """
    if not path.exists():
        return OldLog({})
    try:
        content = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8: {error}") from error
    if SIGNATURE not in content:
        raise InputError(f"--out must be a new file or a log that this command wrote, but {path} is another file")
    texts: dict[str, str] = {}
    for match in _BLOCK.finditer(content):
        if match["text"].strip():
            texts[match["key"]] = texts.get(match["key"], "") + match["text"]
    generated = _BLOCK.sub(lambda match: block(match["key"]), content)
    without_blocks = _BLOCK.sub(lambda match: "\n" * match[0].count("\n"), content)
    alone = _MARKER.search(without_blocks)
    if alone is not None:
        number = without_blocks[: alone.start()].count("\n") + 1
        raise InputError(
            f"{path}: line {number}: the marker {alone[0]!r} has no partner, so it is not clear which text is yours; "
            "nothing was written"
        )
    checksum = _CHECKSUM.search(generated)
    changed = checksum is None or checksum["checksum"] != _checksum(generated[: checksum.start()])
    return OldLog(texts, changed)


def block(key: str, text: str = "") -> str:
    """Return the markers of an entry with a text between them.

    Args:
        key: of the entry.
        text: as it was read; "" for an empty line.

    Returns:
        Whole lines. Where the text leaves a block of code open, a line after the markers closes it.
    """
    last = f"<!-- end of your text: {key} -->\n"
    end = missing_end(f"{text}{last}") if text.strip() else ""
    closing = f"{end}\n" if end else ""
    return f"<!-- your text: {key} -->\n{text or chr(10)}{last}{closing}"


def sealed(content: str) -> str:
    """Add the line with the checksum.

    Args:
        content: of the log, with the texts of people.

    Returns:
        The whole file.
    """
    generated = _BLOCK.sub(lambda match: block(match["key"]), content)
    return f"{content}<!-- checksum of all but your text: {_checksum(generated)} -->\n"


def _checksum(generated: str) -> str:
    """Line ends are left out, for an editor may change all of them."""
    return hashlib.sha256("\n".join(generated.split()).encode()).hexdigest()


def typed_todos(text: str) -> list[str]:
    """Find the open boxes of a text that people typed.

    Args:
        text: of an entry.

    Returns:
        What stands behind `- [ ]`.
    """
    return [match["text"].strip() for match in _TODO.finditer(text)]


def typed_takeaways(text: str) -> list[str]:
    """Find the takeaways of a text that people typed.

    Args:
        text: of an entry.

    Returns:
        What stands behind `Takeaway:` at the beginning of a line.
    """
    return [match["text"].strip() for match in _TAKEAWAY.finditer(text)]
