"""The pages: links lead somewhere, paths exist, commands have the options that they are shown with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from analysis.__main__ import COMMANDS
from docs import make_reference
from docs.make_reference import PARSERS
from lowrank.utils import OneLineParser

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "search_spaces" / "README.md", *(ROOT / "docs").rglob("*.md")]
)  # fmt: skip
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE_PATH = re.compile(
    r"(?<![\w/.-])(?:lowrank|sweeps|analysis|tests|docs|benchmarks|search_spaces)/[\w/]+\.(?:py|md|yaml|json)\b"
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = FENCE.sub("", path.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", LINK.sub(lambda match: match[0], heading).lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue  # another site, which a test without network cannot ask
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{page_id(page)} links to {target}"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{page_id(page)} links to {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if "results" not in page.parts], ids=page_id)
def test_paths_that_pages_name_exist(page: Path) -> None:
    missing = [path for path in CODE_PATH.findall(page.read_text()) if not (ROOT / path).exists()]
    assert not missing, f"{page_id(page)} names {missing}"


def shown_commands(page: Path) -> Iterator[list[str]]:
    """The commands of this project in a page's shell blocks, as words."""
    for language, block in FENCE.findall(page.read_text()):
        if language != "sh":
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["python"]:
                yield words[1:]


def parser_of(words: list[str]) -> tuple[OneLineParser | None, list[str]]:
    """The parser of a command and the words that it gets; None for a command of somebody else."""
    options = 2 if words[0] == "-m" else 1
    name, rest, command = words[options - 1], words[options:], f"python {' '.join(words[:options])}"
    if command in PARSERS:
        return import_module(PARSERS[command]).make_parser(), rest
    if name == "analysis" or name.startswith("analysis/"):
        command, *rest = rest if name == "analysis" else [Path(name).stem, *rest]
        parser = OneLineParser(prog=command)
        import_module(COMMANDS[command][0]).add_arguments(parser)
        return parser, rest
    return None, rest


@pytest.mark.parametrize("page", [page for page in PAGES if "results" not in page.parts], ids=page_id)
def test_commands_have_the_options_that_they_are_shown_with(page: Path) -> None:
    for words in shown_commands(page):
        parser, rest = parser_of(words)
        if parser is not None and "..." not in rest:
            try:
                parser.parse_args(rest)
            except SystemExit:
                pytest.fail(f"{page_id(page)}: python {' '.join(words)}")


def test_the_reference_is_up_to_date(capsys) -> None:
    assert make_reference.main(["--check"]) == 0, capsys.readouterr().out


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
