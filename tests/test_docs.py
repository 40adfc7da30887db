"""The pages: links lead somewhere, paths exist, the reference is up to date."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import make_reference
from tests.support.pages import PAGES, ROOT, page_id, without_blocks

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE_PATH = re.compile(
    r"(?<![\w/.-])(?:lowrank|sweeps|analysis|tests|docs|benchmarks|search_spaces)/[\w/]+\.(?:py|md|yaml|json)\b"
)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = without_blocks(path)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", LINK.sub(lambda match: match[0], heading).lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(without_blocks(page)):
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


def test_the_reference_is_up_to_date(capsys) -> None:
    assert make_reference.main(["--check"]) == 0, capsys.readouterr().out


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
