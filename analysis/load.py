"""What the commands of this room read: studies, and their names for readers."""

from __future__ import annotations

from pathlib import Path

from sweeps.records.load import STUDIES, find_study, find_trial, is_study, list_studies, load_study

__all__ = ["STUDIES", "data_label", "find_study", "find_trial", "is_study", "list_studies", "load_study"]


def data_label(name: str) -> str:
    """A data set's name for readers: of a folder of images its last part, e.g. `parquet:/data/flowers` -> `flowers`."""
    kind, colon, folder = name.partition(":")
    return Path(folder).name if colon and kind in ("parquet", "folder") else name
