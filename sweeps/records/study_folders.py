"""The folder of a study: its name and its file space.yaml."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from lowrank.errors import InputError
from lowrank.utils import nearest_existing, write_text
from sweeps.records.names import SPACE_FILE
from sweeps.space import read_yaml
from sweeps.utils import NAME_RULE, check_plain_name, is_uri

OPTIONS = "options"  # section of space.yaml for what is not part of the space: data folder, tracking address ...


def check_studies_folder(root: Path) -> Path:
    """Check that studies can be written to a folder.

    Args:
        root: the folder, which may be missing.

    Returns:
        Its absolute path.

    Raises:
        InputError: the folder can be neither written nor made.
    """
    root = root.resolve()
    nearest = nearest_existing(root)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"studies cannot be kept in {root}: {nearest} is not a folder that can be written")
    return root


def studies_root(storage: str | None, out: Path) -> Path:
    """Choose the folder of studies on this machine.

    Args:
        storage: the value of --storage, which is taken where it is a folder.
        out: the value of --out.

    Returns:
        The folder's absolute path.

    Raises:
        InputError: the folder can be neither written nor made.
    """
    return check_studies_folder(Path(storage) if storage and not is_uri(storage) else out)


def study_names(root: Path) -> str:
    """List the studies of a folder for a message."""
    return ", ".join(sorted(path.parent.name for path in root.glob(f"*/{SPACE_FILE}"))) or "none yet"


def new_study_folder(root: Path, name: str | None, space_name: str, taken: Collection[str] = ()) -> Path:
    """Choose the folder of a new study; it is not made.

    Args:
        root: the folder of studies.
        name: the value of --name; None takes the first free one of SPACE, SPACE_2, SPACE_3 ...
        space_name: the name of the space.
        taken: names of studies in the remote storage.

    Returns:
        The folder.

    Raises:
        InputError: the name has a character that it may not have, or a study has it already.
    """
    study_name = space_name if name is None else name
    check_plain_name(study_name, "--name")
    if name is not None:
        if (root / name).exists() or name in taken:
            location = root if (root / name).exists() else "the storage"
            raise InputError(f"the study {name!r} exists in {location}; --resume {name} continues it")
        return root / name
    number = 1
    while (folder := root / (study_name if number == 1 else f"{study_name}_{number}")).exists() or folder.name in taken:
        number += 1
    return folder


def find_study_folder(root: Path, name: str) -> Path:
    """Find the folder of a study.

    Args:
        root: the folder of studies.
        name: of the study.

    Returns:
        The folder.

    Raises:
        InputError: there is no such study; the text lists those there are.
    """
    if not re.fullmatch(NAME_RULE, name) or not (root / name / SPACE_FILE).is_file():
        raise InputError(f"no study {name!r} in {root}; choose from: {study_names(root)}")
    return root / name


def write_space_file(folder: Path, source: dict[str, Any], options: dict[str, Any]) -> None:
    """Write space.yaml, whole or not at all.

    Args:
        folder: of the study.
        source: the space, its overrides applied.
        options: what is not part of the space.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    text = yaml.safe_dump({**source, OPTIONS: options}, sort_keys=False, allow_unicode=True)
    write_text(folder / SPACE_FILE, text)


def read_space_file(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read space.yaml.

    Args:
        folder: of the study.

    Returns:
        The space and the options that `write_space_file` was given.

    Raises:
        InputError: the file is damaged.
    """
    content = read_yaml(folder / SPACE_FILE)
    options = content.pop(OPTIONS, None)
    if not isinstance(options, dict) or not {"space", "data_dir", "tracking_uri"} <= options.keys():
        raise InputError(f"{folder / SPACE_FILE} is damaged: its section `{OPTIONS}` is not whole")
    return content, options
