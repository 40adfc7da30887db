"""Docstrings of what packages give, and of commands, agree with the signatures: arguments, what is returned or raised.

The names are those that the `__init__` of a package imports from its modules for type checkers (tests/test_packages.py
holds that these are the names it gives), and the public functions and classes of commands.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lowrank", "sweeps", "analysis")
SCRIPTS = (
    "lowrank/count.py", "sweeps/run.py", "sweeps/teacher.py", "sweeps/spot.py", "analysis/report.py",
    "analysis/compare.py", "analysis/export.py", "analysis/collate.py",
)  # fmt: skip
SECTION = re.compile(r"^(Args|Returns|Yields|Raises):$", re.MULTILINE)
ENTRY = re.compile(r"^    (\*{0,2}\w[\w.]*)(?: \([^)]*\))?:", re.MULTILINE)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def definitions() -> Iterator[tuple[str, ast.AST]]:
    """Every public function and class, with a name for the test."""
    for package in PACKAGES:
        for init in sorted((ROOT / package).rglob("__init__.py")):
            for module, name in exported_names(init):
                node = definition(ROOT.joinpath(*module.split(".")).with_suffix(".py"), name)
                if node is not None:
                    yield f"{module}.{name}", node
    for path in command_files():
        for node in tree(path).body:
            if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
                yield f"{path.relative_to(ROOT)}:{node.name}", node


def exported_names(init: Path) -> Iterator[tuple[str, str]]:
    """The module and name of each import `from module import name as name` of a package."""
    for node in ast.walk(tree(init)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
            yield from ((node.module, alias.name) for alias in node.names if alias.asname == alias.name)


def command_files() -> list[Path]:
    mains = [path for package in PACKAGES for path in (ROOT / package).rglob("__main__.py")]
    commands = [path for path in (ROOT / "analysis" / "cli").glob("*.py") if path.name != "__init__.py"]
    return sorted({*(ROOT / name for name in SCRIPTS), *mains, *commands})


def definition(path: Path, name: str) -> ast.AST | None:
    """The function or class of that name; None for a constant or a module."""
    if not path.exists():
        return None
    named = (node for node in tree(path).body if isinstance(node, Function | ast.ClassDef))
    return next((node for node in named if node.name == name), None)


def sections(docstring: str) -> dict[str, str]:
    """The text of each section of a docstring, by its heading."""
    parts = SECTION.split(docstring)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def entries(section: str) -> list[str]:
    """The names that begin the entries of a section."""
    return [name.lstrip("*") for name in ENTRY.findall(section)]


def parameters(function: Function) -> list[str]:
    arguments = function.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    names += [each.arg for each in (arguments.vararg, arguments.kwarg) if each is not None]
    return [name for name in names if name not in ("self", "cls") and not name.startswith("_")]


def own_nodes(function: Function) -> Iterator[ast.AST]:
    """The nodes of a function whose errors leave it: not those of functions inside it, nor what a `try` catches."""
    stack: list[ast.AST] = list(function.body)
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, ast.Try) and node.handlers:
            stack.extend([*node.handlers, *node.orelse, *node.finalbody])
        elif not isinstance(node, Function | ast.ClassDef | ast.Lambda):
            stack.extend(ast.iter_child_nodes(node))


def raised(function: Function) -> set[str]:
    """The classes that a function itself raises, or "" for an error that another function has made."""
    names = set()
    for node in own_nodes(function):
        if isinstance(node, ast.Raise) and node.exc is not None:
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = error.attr if isinstance(error, ast.Attribute) else getattr(error, "id", "")
            names.add(name if name[:1].isupper() else "")
    return names


def gives_something(function: Function) -> bool:
    returns = function.returns
    return returns is not None and not (
        (isinstance(returns, ast.Constant) and returns.value is None)
        or (isinstance(returns, ast.Name) and returns.id in ("NoReturn", "Never"))
    )


def problems(node: ast.AST) -> list[str]:
    """What a docstring lacks or has too much."""
    assert isinstance(node, Function | ast.ClassDef)
    docstring = ast.get_docstring(node) or ""
    function: Function | None = node if isinstance(node, Function) else None
    if isinstance(node, ast.ClassDef):
        function = next((each for each in node.body if isinstance(each, Function) and each.name == "__init__"), None)
        docstring += "\n\n" + (ast.get_docstring(function) or "" if function else "")
    found = sections(docstring)
    lacking = [] if docstring.strip() else ["a docstring"]
    summary = docstring.strip().partition("\n")[0]
    if len(summary) > 80:
        lacking.append(f"a summary of at most 80 characters, not {len(summary)}")
    if function is None:
        return lacking
    described, names = entries(found.get("Args", "")), parameters(function)
    lacking += [f"Args: {name}" for name in names if name not in described]
    lacking += [f"no entry for {name}, which is no parameter" for name in described if name not in names]
    if function is node and gives_something(function) and not found.keys() & {"Returns", "Yields"}:
        lacking.append("Returns")
    errors = raised(function)
    if errors and "Raises" not in found:
        lacking.append(f"Raises: {', '.join(sorted(errors - {''}))}")
    lacking += [f"Raises: {name}" for name in errors - {""} if "Raises" in found and name not in found["Raises"]]
    return lacking


def test_docstrings_agree_with_signatures() -> None:
    checked = dict(definitions())
    assert len(checked) > 500
    lacking = {name: text for name, node in checked.items() if (text := problems(node))}
    if lacking:
        pytest.fail("\n".join(f"{name} lacks {'; '.join(text)}" for name, text in sorted(lacking.items())))
