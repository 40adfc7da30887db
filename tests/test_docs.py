"""The pages: links lead somewhere, paths exist, the reference is up to date."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from docs import make_reference
from tests.support.pages import PAGES, ROOT, page_id, without_blocks

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE_PATH = re.compile(
    r"(?<![\w/.-])(?:lowrank|sweeps|analysis|tests|docs|benchmarks|search_spaces)/[\w/]+\.(?:py|md|yaml|json)\b"
)
LINKED_NAME = re.compile(r"\[`([\w/]+)\.py`\]\([^)]+\)\s+`(\w[\w.]*)`")
DOTTED_NAME = re.compile(r"`((?:lowrank|sweeps|analysis)(?:\.[a-zA-Z]\w*)+)(?=[`(])")


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = without_blocks(path)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", LINK.sub(lambda match: match[0], heading).lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    assert "[](" not in without_blocks(page), f"{page_id(page)} has a link without words"
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


@pytest.mark.parametrize("page", [page for page in PAGES if "results" not in page.parts], ids=page_id)
def test_names_of_code_exist(page: Path) -> None:
    """A link to a module with a name behind it, and every dotted name of this project's packages."""
    text = page.read_text()
    missing = [name for module, name in LINKED_NAME.findall(text) if name not in defined_names(ROOT / f"{module}.py")]
    missing += [name for name in DOTTED_NAME.findall(text) if not exists(name)]
    assert not missing, f"{page_id(page)} names {missing}"


def defined_names(path: Path) -> set[str]:
    """The names that a module binds, and those of the methods of its classes, without importing it."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    module, _, rest = name.partition(".")
    value: object = import_module(module)
    for word in rest.split("."):
        module = f"{module}.{word}"
        if isinstance(value, ModuleType) and hasattr(value, "__path__") and find_spec(module):
            value = import_module(module)
        elif hasattr(value, word):
            value = getattr(value, word)
        else:
            return False
    return True


def test_the_pages_lead_to_the_code_in_three_clicks() -> None:
    """README -> page -> module: where a budget is solved, a killed worker's trial goes on, a method is added."""
    linked = {target.partition("#")[0] for target in LINK.findall((ROOT / "README.md").read_text())}
    assert {"docs/architecture.md", "docs/guides/adding.md"} <= linked
    named = {
        name
        for page in ("architecture.md", "guides/adding.md")
        for _, name in LINKED_NAME.findall((ROOT / "docs" / page).read_text())
    }
    assert {"Resolver.resolve", "solve", "RetryPolicy.may_retry", "CheckpointLocation.download", "METHODS"} <= named


@pytest.mark.parametrize("name", ["guides/gpu.md", "guides/cluster.md", "background/engine.md"])
def test_measured_speeds_stand_in_the_results(name: str) -> None:
    """A figure that a guide repeats is one of docs/results, so that both change together."""
    folder = ROOT / "docs" / "results"
    results = "".join(path.read_text() for path in sorted(folder.iterdir()) if path.suffix in (".md", ".txt", ".json"))
    figures = re.findall(r"(?<![\d,])(\d{2,3},\d{3}|\d\.\d\d)(?: times| images/s)", (ROOT / "docs" / name).read_text())
    assert [figure for figure in figures if figure not in results] == []


def test_the_reference_is_up_to_date(capsys) -> None:
    assert make_reference.main(["--check"]) == 0, capsys.readouterr().out


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
