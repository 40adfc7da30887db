"""Numbers and names as readers see them."""

from __future__ import annotations

from pathlib import Path


def data_label(name: str) -> str:
    """Return a data set's name for readers.

    Args:
        name: as recorded, e.g. `digits` or `parquet:/data/flowers`.

    Returns:
        The last part of a folder of images, e.g. `flowers`; any other name unchanged.
    """
    kind, colon, folder = name.partition(":")
    return Path(folder).name if colon and kind in ("parquet", "folder") else name
