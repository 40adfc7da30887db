"""Decoded images that the processes of a machine share: decoded by the first that wants them, mapped by the others.

A file is named by what it was decoded from, the encoded bytes themselves, and by the versions that decoded it; it is
there whole or not at all. The folder is the user's own, beside the system's temporary files.
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
from lowrank.utils.atomic_write import atomic_write

LEAST_BYTES = 20_000_000  # of decoded images; fewer are decoded faster than they are looked up


def folder() -> Path | None:
    """Where decoded images lie; None where there can be no folder of this user's alone."""
    path = Path(tempfile.gettempdir()) / f"decoded-images-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        about = path.lstat()
    except OSError:
        return None
    sound = path.is_dir() and not path.is_symlink() and about.st_uid == os.getuid() and not about.st_mode & 0o022
    return path if sound else None


def shared(sha: Any, decode: Callable[[], Pixels]) -> Pixels:
    """What `decode` gives, from the file of an earlier process where there is one; writing to it changes no file.

    `sha` is a hash object over all that `decode` depends on but the decoder. On a full disk nothing is kept.
    """
    sha.update(version("pillow").encode())
    place = folder()
    if place is None:
        return decode()
    path = place / f"{sha.hexdigest()[:32]}.npy"
    if not path.exists():
        pixels = decode()
        if not _kept(path, pixels):
            return pixels
    try:
        found: Pixels = np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:  # cleared away meanwhile
        return decode()
    return found


def _kept(path: Path, pixels: Pixels) -> bool:
    """Write a file, whole or not at all; whether there was room."""
    try:
        with atomic_write(path) as file:
            np.save(file, pixels, allow_pickle=False)
    except OSError:
        return False
    return True
