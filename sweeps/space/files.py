"""Find and read space files as plain data; loads quickly, for commands that only list spaces or name a wrong one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from lowrank.errors import InputError, unknown

SPACES_FOLDER = Path(__file__).resolve().parents[2] / "search_spaces"
SECTIONS = (
    "question", "data", "network", "teacher", "train", "method", "budget", "start", "references", "search", "resources",
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
        InputError: there is no such space; the text lists those there are.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"no space file {name!r}; choose from: {', '.join(available_spaces())}, or give a file")
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
        InputError: the file is not YAML of plain values, or no mapping.
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
    """Check that YAML content does not refer to itself.

    Args:
        content: what YAML gives: mappings, lists, numbers, texts, dates.

    Returns:
        The same content.

    Raises:
        ValueError: it refers to itself.
    """
    json.dumps(content, default=str)
    return content
