"""Named tensors in one safetensors file, written so that a kill leaves the old file or the new one, never half."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lowrank.errors import InputError
from lowrank.utils.atomic_write import atomic_path, sync

CHECKSUM = "crc32"  # among the strings beside the tensors: safetensors itself does not notice a changed weight


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str], *, keep: int = 1, checked: bool = True
) -> None:
    """Write `tensors` with the strings `about` beside them, synced and atomically. Raises OSError on a full disk.

    With `keep` above 1 the files of earlier calls stay beside the new one: see `saved_versions`. `checked` adds a
    checksum. Safetensors writes the strings in any order: equal contents are equal files where there is one at most.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    metadata = {**about, CHECKSUM: _checksum(whole)} if checked else dict(about)
    with atomic_path(path) as temporary:
        try:
            save_file(whole, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"{path}: could not be written: {error}") from error
        sync(temporary)  # a full disk may show only here, and then the older files stay where they are
        for age in range(keep - 1, 0, -1):
            if _aged(path, age - 1).exists():
                _aged(path, age - 1).replace(_aged(path, age))


def _aged(path: Path, age: int) -> Path:
    """The file that was written `age` writes before the newest."""
    return path if age == 0 else path.with_name(f"{path.stem}.{age}{path.suffix}")


def saved_versions(path: Path) -> list[Path]:
    """What `save_tensors` has kept under `path`, the newest first.

    A kill between two renames leaves no newest, and the one before it whole.
    """
    older = (found for found in path.parent.glob(f"{path.stem}.*{path.suffix}") if found.suffixes[0][1:].isdigit())
    return [found for found in (path, *sorted(older, key=lambda each: int(each.suffixes[0][1:]))) if found.exists()]


def load_tensors(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file and the strings beside them; runs no code. Raises InputError for a damaged file.

    A file that others have made carries no checksum, and is taken as it is.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = dict(file.metadata() or {})
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    expected = about.pop(CHECKSUM, None)
    if expected is not None and expected != _checksum(tensors):
        raise InputError(f"{path} is damaged: its tensors do not have their checksum")
    return {name: tensor.to(device) for name, tensor in tensors.items()}, about


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Over names and bytes, whatever their order."""
    found = 0
    for name in sorted(tensors):
        found = zlib.crc32(name.encode(), found)
        found = zlib.crc32(tensors[name].cpu().reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"
