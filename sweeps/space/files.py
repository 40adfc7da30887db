"""Find space files and read them as plain data.

Imports little, so that `--list` and the message about an unknown space come at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from lowrank.errors import InputError, unknown

SPACES_FOLDER = Path(__file__).resolve().parents[2] / "search_spaces"
SECTIONS = (
    "question", "data", "network", "teacher", "train", "method", "budget", "start", "references", "search", "resources",
    "answer",
)  # fmt: skip


def available_spaces() -> dict[str, Path]:
    """List the space files that the repository carries.

    Returns:
        Their paths by name, sorted.
    """
    return {path.stem: path for path in sorted(SPACES_FOLDER.glob("*.yaml"))}


def find_space(name: str) -> Path:
    """Find the file of a space.

    Args:
        name: the name of a space that the repository carries, or a path that ends in .yaml or .yml.

    Returns:
        The file's path.

    Raises:
        InputError: there is no such space or file; the message lists the spaces.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(
                f"no space file {name!r}; give a file that exists, or one of: {', '.join(available_spaces())}"
            )
        return path
    spaces = available_spaces()
    if name not in spaces:
        raise unknown("space", name, spaces)
    return spaces[name]


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping of plain data, never objects.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        InputError: the file is not YAML of plain values, or its content is not a mapping.
    """
    try:
        content = check_no_cycles(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise InputError(f"{path} is not YAML of plain values: {detail}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must be a mapping with the sections {', '.join(SECTIONS)}")
    return content


def check_no_cycles(content: Any) -> Any:
    """Check that no mapping or list of YAML content contains itself.

    Anchors and aliases can write that (`&a [*a]`), and code that walks through such content would never end.

    Args:
        content: what YAML gives: mappings, lists, numbers, texts, dates.

    Returns:
        The same content.

    Raises:
        ValueError: a mapping or list contains itself.
    """
    json.dumps(content, default=str)  # raises ValueError at a cycle; `str` is for dates, which JSON has not
    return content
