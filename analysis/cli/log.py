"""`python -m analysis log [STUDY ...] --out LOG.md`: a research log that writes itself.

An entry for each run of the driver over each study, for each teacher and each network that `lowrank.compress` made, in
order of time. Written anew, the log keeps what people typed between the markers of an entry.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

from analysis.cli.arguments import add_stores, open_page, refuse_script
from analysis.utils import steps
from lowrank.errors import InputError
from lowrank.utils import redact_arguments

DEFAULT_OUT = Path("LOG.md")
TEACHERS_FOLDER = Path("teachers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `log`.

    Args:
        parser: receives them.
    """
    parser.add_argument(
        "names", nargs="*", metavar="STUDY",
        help="studies, or folders of teachers and of compressed networks (default: all there are)",
    )  # fmt: skip
    add_stores(parser, tracking="read notes that were typed in MLflow from this store (default: that of each study)")
    parser.add_argument(
        "--teachers", type=Path, default=TEACHERS_FOLDER, metavar="DIR", help="folder of teachers (teachers/)"
    )
    parser.add_argument("--since", metavar="DATE", help="only entries from this day on (2026-11-29, UTC)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="FILE", help="Markdown file (LOG.md)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")


def run(arguments: argparse.Namespace) -> int:
    """Write the log and print where it is.

    Args:
        arguments: as `add_arguments` declares them.

    Returns:
        The exit code, 0.

    Raises:
        InputError: a name is no study, teacher or compressed network, a record is damaged, `--since` is no date, or
            `--out` is another file, one whose markers are damaged, or one that cannot be written.
    """
    from analysis.research_log import collect_entries, find_sources, write_log

    since, out = _since(arguments.since), _checked_out(arguments.out)
    sources = find_sources(arguments.names, arguments.studies, arguments.teachers)
    total = len(sources.studies) + len(sources.teachers) + len(sources.compressed)
    with steps("log", total + 2) as step:
        entries = collect_entries(sources, since, arguments.tracking_uri, step)
        command = f"python -m analysis {shlex.join(redact_arguments(_words(arguments)))}"
        written = write_log(entries, out, command, step)
    if written.saved is not None:
        print(
            f"{out} had been changed outside the markers; the old file is {written.saved}, move your text from there "
            "between two markers"
        )
    count = f"{written.entries:,} {'entry' if written.entries == 1 else 'entries'}"
    typed = f", {written.typed:,} texts of yours kept" if written.typed else ""
    print(f"{out}: {count}{typed}; the same as a page: {written.page}")
    if arguments.open:
        open_page(written.page)
    return 0


def _since(text: str | None) -> float:
    if text is None:
        return -math.inf
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise InputError(f"--since must be a day such as 2026-11-29, but got {text!r}") from error


def _checked_out(path: Path) -> Path:
    if path.suffix.lower() not in (".md", ".markdown"):
        raise InputError(f"--out must be a Markdown file such as LOG.md, but got {path}")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"--out must be a file in a folder that exists, but got {path}")
    return path


def _words(arguments: argparse.Namespace) -> list[str]:
    """The command line that writes the log again; the store's address is left out where the records have it."""
    words = ["log", *arguments.names]
    named = {
        "--studies": str(arguments.studies), "--teachers": str(arguments.teachers), "--since": arguments.since,
        "--tracking-uri": arguments.tracking_uri, "--out": str(arguments.out),
    }  # fmt: skip
    defaults = {"--studies": "studies", "--teachers": str(TEACHERS_FOLDER)}
    for flag, value in named.items():
        words += [flag, value] if value not in (None, defaults.get(flag)) else []
    return words


if __name__ == "__main__":
    sys.exit(refuse_script("log"))
