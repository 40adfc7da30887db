"""Find space files and read them as plain data.

Imports little, so that `--list` and the message about an unknown space come at once.
"""

from __future__ import annotations

from pathlib import Path

from lowrank.errors import InputError, show_value, unknown
from lowrank.utils import absolute_path
from sweeps.utils import MAX_BYTES, YamlError, load_yaml

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
        if not absolute_path(name, "--space").is_file():
            raise InputError(
                f"no space file {show_value(name)}; give a file that exists, or one of: {', '.join(available_spaces())}"
            )
        return path.expanduser()
    spaces = available_spaces()
    if name not in spaces:
        raise unknown("space", name, spaces)
    return spaces[name]


def read_yaml(path: Path) -> dict[str, object]:
    """Read a YAML file that holds a mapping of plain data, never objects.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        InputError: the file is not YAML of plain values, or its content is not a mapping.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode()
    except UnicodeDecodeError as error:
        problem = f"it is no UTF-8: {error.reason} at byte {error.start}"
        raise InputError(f"{show_value(str(path))} is not YAML of plain values: {problem}") from error
    try:
        content = load_yaml(text)
    except YamlError as error:
        raise InputError(f"{show_value(str(path))} is not YAML of plain values: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{show_value(str(path))} must be a mapping with the sections {', '.join(SECTIONS)}")
    return content
