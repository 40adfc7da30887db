"""The folder of a study: its name, and the question kept in it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from lowrank.errors import InputError
from lowrank.utils.atomic_write import write_text
from sweeps.records.names import SPACE_FILE
from sweeps.space.files import read_yaml
from sweeps.utils.uris import is_uri

OPTIONS = "options"  # where space.yaml keeps what is not part of the question: data folder, tracking address
NAME_RULE = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"  # plain in every file system, in MLflow's filters and in a shell


def check_studies_folder(root: Path) -> Path:
    """The absolute folder of studies; raises InputError when it can be neither used nor made."""
    root = root.resolve()
    nearest = next(path for path in (root, *root.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"studies cannot be kept in {root}: {nearest} is not a folder that can be written")
    return root


def studies_root(storage: str | None, out: Path) -> Path:
    """The folder of studies on this machine: --storage where that is a folder, else --out; raises InputError."""
    return check_studies_folder(Path(storage) if storage and not is_uri(storage) else out)


def study_names(root: Path) -> str:
    """The studies of a folder, for messages."""
    return ", ".join(sorted(path.parent.name for path in root.glob(f"*/{SPACE_FILE}"))) or "none yet"


def new_study_folder(root: Path, name: str | None, space_name: str, taken: Collection[str] = ()) -> Path:
    """The folder of a new study: the given name, or the first free one of space, space_2, space_3 ...

    `taken` are names of studies that are kept elsewhere.
    """
    wanted = space_name if name is None else name
    if not re.fullmatch(NAME_RULE, wanted):
        raise InputError(
            "--name must be up to 80 letters, digits, `_`, `-` or `.`, and not begin with `-` or `.`, "
            f"but got {wanted!r}"
        )
    if name is not None:
        if (root / name).exists() or name in taken:
            where = root if (root / name).exists() else "the storage"
            raise InputError(f"the study {name!r} exists in {where}; --resume {name} goes on with it")
        return root / name
    number = 1
    while (folder := root / (wanted if number == 1 else f"{wanted}_{number}")).exists() or folder.name in taken:
        number += 1
    return folder


def find_study_folder(root: Path, name: str) -> Path:
    """The folder of a study that exists; raises InputError that lists those there are."""
    if not re.fullmatch(NAME_RULE, name) or not (root / name / SPACE_FILE).is_file():
        raise InputError(f"no study {name!r} in {root}; choose from: {study_names(root)}")
    return root / name


def write_space_file(folder: Path, source: dict[str, Any], options: dict[str, Any]) -> None:
    """Keep the space as it was asked, whole or not at all."""
    text = yaml.safe_dump({**source, OPTIONS: options}, sort_keys=False, allow_unicode=True)
    write_text(folder / SPACE_FILE, text)


def read_space_file(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The space and the options of a study; raises InputError for a damaged file."""
    content = read_yaml(folder / SPACE_FILE)
    options = content.pop(OPTIONS, None)
    if not isinstance(options, dict) or not {"space", "data_dir", "tracking_uri"} <= options.keys():
        raise InputError(f"{folder / SPACE_FILE} is damaged: its section `{OPTIONS}` is not whole")
    return content, options
