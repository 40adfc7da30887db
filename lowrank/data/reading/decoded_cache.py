"""Decoded images that the processes of a machine share: the first one decodes them, the others map them into memory.

A file is named by the hash of the encoded bytes that it was decoded from and of the decoder's version. The folder
belongs to the user and lies beside the system's temporary files.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from lowrank.data.reading.image_codec import Pixels
from lowrank.utils import atomic_write

MIN_BYTES = 20_000_000  # of decoded images; fewer are decoded faster than they are looked up


def cache_folder() -> Path | None:
    """Return the folder of decoded images.

    Returns:
        The folder; None where there can be none that only this user can write.
    """
    path = Path(tempfile.gettempdir()) / f"decoded-images-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError:
        return None
    private = path.is_dir() and not path.is_symlink() and status.st_uid == os.getuid() and not status.st_mode & 0o022
    return path if private else None


def load_or_decode(sha: Any, decode: Callable[[], Pixels]) -> Pixels:
    """Load decoded images from the file of an earlier process, or decode them and write the file.

    On a full disk no file is written. Writing to the result changes no file.

    Args:
        sha: a hash object over everything that the result depends on but the decoder's version.
        decode: decodes the images.

    Returns:
        What `decode` returns.
    """
    sha.update(version("pillow").encode())
    folder = cache_folder()
    if folder is None:
        return decode()
    path = folder / f"{sha.hexdigest()[:32]}.npy"
    if not path.exists():
        pixels = decode()
        if not _write(path, pixels):
            return pixels
    try:
        cached: Pixels = np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:  # removed in the meantime
        return decode()
    return cached


def _write(path: Path, pixels: Pixels) -> bool:
    """Write a file; whether the disk took it."""
    try:
        with atomic_write(path) as file:
            np.save(file, pixels, allow_pickle=False)
    except OSError:
        return False
    return True
