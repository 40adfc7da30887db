"""Reads the pages: README, guides and results, with their blocks of code and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

from analysis.__main__ import COMMANDS
from docs.make_reference import PARSERS
from lowrank.utils import OneLineParser

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "search_spaces" / "README.md", *(ROOT / "docs").rglob("*.md")]
)  # fmt: skip
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^ {4,}((?:PYTHONPATH=\S+ )?(?:\.venv/bin/)?python (?:.*\\\n)*.*)$", re.MULTILINE)
INLINE = re.compile(r"`(python [^`]+)`")
NESTED = re.compile(r"\bpython (sweeps/|analysis/|-m )")
SHELL = (">", "|", "&&", ";", "&")
PROJECT = ("analysis", "benchmarks", "lowrank", "sweeps", "tests")


def page_id(path: Path) -> str:
    """Return the path of a page in the repository."""
    return str(path.relative_to(ROOT))


def without_blocks(page: Path) -> str:
    """Return a page's text without its fenced blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language on a page."""
    return [text for _, name, text in FENCE.findall(page.read_text(encoding="utf-8")) if name == language]


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the Python commands that stand in blocks of a page, as words after `python`.

    A command within another, as in `ray exec`, counts. Those with "..." are no whole commands.
    """
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    lines += [text.replace("\\\n", " ") for text in INDENTED.findall(without_blocks(page))]
    yield from _words(lines)


def commands_in_sentences(page: Path) -> Iterator[list[str]]:
    """Yield the Python commands that stand in the sentences of a page, often without what they need."""
    yield from _words([" ".join(text.split()) for text in INLINE.findall(without_blocks(page))])


def _words(lines: list[str]) -> Iterator[list[str]]:
    for line in lines:
        for words in _python_words(shlex.split(line, comments=True)):
            if len(words) > 1 and "..." not in words:
                yield list(takewhile(lambda word: word not in SHELL, words))


def _python_words(words: list[str]) -> Iterator[list[str]]:
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if words and Path(words[0]).name == "python":
        yield words[1:]
        return
    for word in words:  # a command of another program, which runs ours
        if match := NESTED.search(word):
            yield from _python_words(shlex.split(word[match.start() :]))


def parser_of(words: list[str]) -> tuple[OneLineParser | None, list[str]]:
    """Return the parser of a command and the words that it gets; None for a command of somebody else.

    Args:
        words: those after `python`.

    Returns:
        The parser, or None, and its words.

    Raises:
        AssertionError: the command is named like one of this project, but there is none.
    """
    options = 2 if words[0] == "-m" else 1
    name, rest, command = words[options - 1], words[options:], f"python {' '.join(words[:options])}"
    if command in PARSERS:
        return import_module(PARSERS[command]).make_parser(), rest
    if name == "analysis" or name.startswith("analysis/"):
        command, *rest = rest if name == "analysis" else [Path(name).stem, *rest]
        parser = OneLineParser(prog=command)
        import_module(COMMANDS[command][0]).add_arguments(parser)
        return parser, rest
    if options == 2 and name.split(".")[0] in PROJECT:
        spec = find_spec(name)
        assert spec, f"there is no module {name}"
        if name.startswith("benchmarks.gpu.kernel"):
            return None, rest  # it imports Triton, which a machine without a GPU lacks
        module = import_module(name if spec.submodule_search_locations is None else f"{name}.__main__")
        return (module.make_parser(), rest) if hasattr(module, "make_parser") else (None, rest)
    if options == 1 and name.split("/")[0] in (*PROJECT, "docs"):
        assert (ROOT / name).is_file(), f"there is no file {name}"
    return None, rest
