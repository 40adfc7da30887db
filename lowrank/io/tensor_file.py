"""Named tensors in one safetensors file, written atomically and verified by a checksum."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lowrank.errors import InputError
from lowrank.utils import atomic_path, free_name, sync

CHECKSUM = "crc32"  # of the tensors, a key of the metadata: safetensors itself does not notice a changed weight
UNUSABLE_SUFFIX = ".unusable"  # of a file that `set_aside` has renamed
METADATA_CHECKSUM = "crc32_metadata"  # of the other keys and their values


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, versions: int = 1, checksum: bool = True
) -> None:
    """Write tensors and metadata atomically.

    Tensors that share memory, such as those of a layer that stands in two places, are written under each name.
    Safetensors writes metadata in any order: equal contents give equal files only with at most one key, the checksum
    included.

    Args:
        path: the file; its folder is made if it is missing.
        tensors: by name.
        metadata: strings by key.
        versions: how many files stay, the new one and those of earlier calls: see `saved_versions`.
        checksum: add checksums of tensors and metadata, which depend on no order, to the metadata.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = _own_memory(tensors)
    strings = dict(metadata)
    if checksum:
        strings |= {CHECKSUM: _checksum(contiguous), METADATA_CHECKSUM: _metadata_checksum(metadata)}
    with atomic_path(path) as temporary:
        temporary.touch()  # its mode follows the umask; safetensors puts a file in its place that the user alone reads
        mode = temporary.stat().st_mode
        try:
            save_file(contiguous, temporary, strings)
        except SafetensorError as error:
            raise OSError(f"{path}: could not be written: {error}") from error
        temporary.chmod(mode)
        sync(temporary)  # a full disk may show only here, and then the older files stay where they are
        shift_versions(path, versions)


def shift_versions(path: Path, versions: int) -> None:
    """Rename each file to the name of the one before it, which frees `path`.

    Args:
        path: the newest file.
        versions: how many files stay, the new one among them; the oldest is replaced.

    Raises:
        OSError: a file cannot be renamed.
    """
    for age in range(versions - 1, 0, -1):
        if _version_path(path, age - 1).exists():
            _version_path(path, age - 1).replace(_version_path(path, age))


def _own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make each tensor contiguous, in memory that it shares with no other: safetensors refuses shared memory."""
    contiguous, used = {}, set()
    for name, tensor in tensors.items():
        value = tensor.detach().contiguous()
        storage = value.untyped_storage()
        if value.numel() and (storage.device, storage.data_ptr()) in used:
            value = value.clone()
        elif value.numel():
            used.add((storage.device, storage.data_ptr()))
        contiguous[name] = value
    return contiguous


def _version_path(path: Path, age: int) -> Path:
    """The file that was written `age` calls before the newest."""
    return path if age == 0 else path.with_name(f"{path.stem}.{age}{path.suffix}")


def saved_versions(path: Path) -> list[Path]:
    """List the files that `save_tensors` has written for `path`.

    Args:
        path: the newest file.

    Returns:
        Existing files, the newest first. A kill between two renames leaves no newest, and the one before it whole.
    """
    older = [file for file in path.parent.glob(f"{path.stem}.*{path.suffix}") if file.suffixes[0][1:].isdigit()]
    older.sort(key=lambda file: int(file.suffixes[0][1:]))
    return [file for file in (path, *older) if file.exists()]


def set_aside(path: Path) -> Path:
    """Rename a file that cannot be used, so that nothing reads or deletes it.

    Args:
        path: the file.

    Returns:
        Its new path, which ends in `.unusable`, or in `.unusable-2` and so on where there is one already.

    Raises:
        OSError: the file cannot be renamed.
    """
    target = free_name(path.with_name(path.name + UNUSABLE_SUFFIX))
    path.replace(target)
    return target


def remove_set_aside(path: Path) -> None:
    """Remove the files that `set_aside` has renamed for a path and its versions.

    Args:
        path: the newest file.

    Raises:
        OSError: a file cannot be removed.
    """
    for file in path.parent.glob(f"{path.stem}*{path.suffix}{UNUSABLE_SUFFIX}*"):
        file.unlink(missing_ok=True)


def load_tensors(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata; no code of the file is run.

    Args:
        path: the file. One that was written elsewhere may have no checksum.
        device: of the tensors.

    Returns:
        Tensors by name, and metadata without the checksums.

    Raises:
        InputError: the file is damaged.
        OSError: the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = _check_metadata(path, dict(file.metadata() or {}))
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    expected = metadata.pop(CHECKSUM, None)
    if expected is not None and expected != _checksum(tensors):
        raise InputError(f"{path} is damaged: its tensors do not have their checksum")
    return {name: tensor.to(device) for name, tensor in tensors.items()}, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a file, without its tensors.

    Args:
        path: a safetensors file, of whatever origin.

    Returns:
        Metadata without the checksums.

    Raises:
        InputError: the file is damaged.
        OSError: the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = _check_metadata(path, dict(file.metadata() or {}))
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    metadata.pop(CHECKSUM, None)
    return metadata


def _check_metadata(path: Path, metadata: dict[str, str]) -> dict[str, str]:
    """Return the metadata without their own checksum, which is compared."""
    expected = metadata.pop(METADATA_CHECKSUM, None)
    if expected is not None and expected != _metadata_checksum(metadata):
        raise InputError(f"{path} is damaged: its metadata do not have their checksum")
    return metadata


def _metadata_checksum(metadata: Mapping[str, str]) -> str:
    """CRC-32 over keys and values, in the order of the keys; without the checksum of the tensors."""
    pairs = sorted((key, value) for key, value in metadata.items() if key != CHECKSUM)
    return f"{zlib.crc32(repr(pairs).encode()):08x}"


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 over names and bytes, in the order of the names."""
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(tensors[name].cpu().reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"
