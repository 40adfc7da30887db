"""Images in Parquet files as Hugging Face lays them out: a column of encoded bytes and a column of labels.

A part's files are named by it (`train-00000-of-00002.parquet`), or lie in a folder that is named so
(`default/train/0000.parquet`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lowrank.data.reading.class_names import sorted_names
from lowrank.data.reading.image_folder import HIDDEN, Unused, hidden_files, is_hidden
from lowrank.data.reading.parquet_store import ParquetImages, ParquetStore
from lowrank.data.reading.part_names import PARTS, Part, check_one_name, part_of, part_of_file
from lowrank.data.reading.source import ImageListing
from lowrank.data.splits import Labels
from lowrank.errors import InputError, unknown
from lowrank.utils import one_line

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label", "labels")
NO_LABEL = -1  # what the hub writes where labels are secret


class _File:
    """One Parquet file: its schema, its columns and its labels."""

    def __init__(self, path: Path, image: str | None, label: str | None) -> None:
        self.path = path
        try:
            self.schema = pq.read_schema(path)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        self.image = self._column("image", image, IMAGE_COLUMNS)
        self.label = self._column("label", label, LABEL_COLUMNS)
        kind = self.schema.field(self.image).type
        if not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0) and not _is_binary(kind):
            raise InputError(
                f"{path}: column {self.image!r} must hold encoded images, or be a struct with `bytes`, but is {kind}"
            )
        self.has_texts = self._has_texts()
        self.values: Any = None  # labels as they are stored: integers, or an object array of texts

    def _has_texts(self) -> bool:
        kind = self.schema.field(self.label).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return True
        if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            return False
        raise InputError(f"{self.path}: column {self.label!r} must hold integers or texts, but is {kind}")

    def _unreadable(self, error: BaseException) -> InputError:
        return InputError(f"{self.path}: must be a whole, readable Parquet file, but {one_line(error)}")

    def _column(self, what: str, chosen: str | None, names: tuple[str, ...]) -> str:
        if chosen is not None:
            if chosen not in self.schema.names:
                raise unknown(f"column (`data.{what}`) of {self.path}", chosen, self.schema.names)
            return chosen
        present = [name for name in names if name in self.schema.names]
        if not present:
            raise InputError(
                f"{self.path}: no {what} column; it must be one of {', '.join(names)}, or named by `data.{what}`, "
                f"but the columns are {', '.join(self.schema.names) or 'none'}"
            )
        return present[0]

    def read_labels(self) -> None:
        """Read the labels into `values`; one that is missing is None or NO_LABEL."""
        try:
            with pq.ParquetFile(self.path) as file:
                column = file.read(columns=[self.label]).column(self.label)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if self.has_texts:
            texts = [text if text is None else text.strip() for text in column.to_pylist()]
            self.values = np.array(texts, object)
            return
        if column.null_count not in (0, len(column)):
            raise InputError(f"{self.path}: column {self.label!r} must not have gaps, but got {column.null_count}")
        if column.null_count:
            self.values = np.full(len(column), NO_LABEL)
        else:
            self.values = np.asarray(column.cast(pa.int64()).to_numpy(), dtype=np.int64)

    @property
    def is_unlabelled(self) -> bool:
        """Whether no image has a label."""
        return len(self.values) > 0 and all(value in (None, "", NO_LABEL) for value in self.values.tolist())

    def class_names(self) -> tuple[str, ...] | None:
        """Return the names that Hugging Face's library writes into the metadata, if there are any."""
        text = (self.schema.metadata or {}).get(b"huggingface")
        try:
            names = json.loads(text)["info"]["features"][self.label]["names"] if text else None
        except (ValueError, KeyError, TypeError):
            return None
        return tuple(str(name) for name in names) if names else None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def read_parquet(folder: Path, image: str | None, label: str | None) -> ImageListing:
    """Read the Parquet files of a set.

    Args:
        folder: where the files are: in it, in `data`, or in one folder for each part.
        image: name of the column of images; None for one of the usual names.
        label: likewise of the labels.

    Returns:
        The images; the classes are those of the first training file's metadata, its texts, or numbers.

    Raises:
        InputError: a file is missing, damaged or laid out otherwise, or the files' classes do not fit together.
    """
    name, unused = f"parquet:{folder}", Unused()
    paths = _find(folder, name, unused)
    files = {part: [_File(path, image, label) for path in paths.get(part, [])] for part in PARTS}
    for part in PARTS:
        for file in files[part]:
            file.read_labels()
    if files["test"] and all(file.is_unlabelled for file in files["test"] if len(file.values)):
        unused.add("files of a test part without labels", [file.path.name for file in files["test"]])
        files["test"] = []
    if not any(len(file.values) for file in files["training"]):
        raise InputError(f"{files['training'][0].path}: must have at least one row")
    classes, labels = _labels(files)
    images = [ParquetImages(file.path, file.image) for part in PARTS for file in files[part]]
    return ImageListing(
        name=name, classes=classes, labels=labels, store=ParquetStore(images), notes=tuple(unused.notes())
    )


def _find(folder: Path, name: str, unused: Unused) -> dict[Part, list[Path]]:
    """Return the files of each part, sorted by name."""
    if not folder.is_dir():
        raise InputError(f"data set {name!r}: there is no such folder")
    present = sorted(
        path for path in folder.rglob("*.parquet")
        if not any(is_hidden(text) for text in path.relative_to(folder).parts)
    )  # fmt: skip
    by_root: dict[Path, dict[Part, list[Path]]] = {}
    for path in present:
        root, part = path.parent, part_of_file(path.stem)
        if part is None and root != folder:
            root, part = root.parent, part_of(root.name)
        if part is not None:
            by_root.setdefault(root, {}).setdefault(part, []).append(path)
    trained = [root for root in by_root if "training" in by_root[root]]
    chosen = next((root for root in (folder, folder / "data") if root in trained), None)
    if chosen is None and len(trained) > 1:
        names = ", ".join(str(root.relative_to(folder)) for root in trained)
        raise InputError(
            f"data set {name!r}: the folder holds several sets ({names}); name one, such as parquet:{trained[0]}"
        )
    chosen = chosen or next(iter(trained), None)
    if chosen is None:
        others = sorted(path.name for path in folder.iterdir())[:5]
        raise InputError(
            f"data set {name!r}: the folder, or `data` in it, must hold train.parquet or train-NUMBER.parquet, "
            f"or a folder train with Parquet files, but it begins with: {', '.join(others) or 'nothing'}"
        )
    parts = by_root[chosen]
    for part, paths in parts.items():
        labels = [path.parent.name if path.parent != chosen else _part_text(path.stem) for path in paths]
        check_one_name(f"data set {name!r}", [text.casefold() for text in labels], part)
    used = {path for paths in parts.values() for path in paths}
    unused.add("Parquet files", [str(path.relative_to(folder)) for path in present if path not in used])
    unused.add(HIDDEN, [file for file in hidden_files(folder) if file.endswith(".parquet")])
    return parts


def _part_text(stem: str) -> str:
    """The part's name at the start of a file's name."""
    letters = len(stem) - len(stem.lstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    return stem[:letters]


def _labels(files: dict[Part, list[_File]]) -> tuple[tuple[str, ...], dict[Part, Labels]]:
    """Bring the labels of all files to one list of classes: names decide, wherever a file has them."""
    everything = [file for part in PARTS for file in files[part]]
    first = files["training"][0]
    kinds = {file.has_texts for file in everything}
    if len(kinds) > 1:
        other = next(file for file in everything if file.has_texts != first.has_texts)
        raise InputError(
            f"{other.path}: column {other.label!r} must hold {'texts' if first.has_texts else 'integers'} as in "
            f"{first.path}, but holds {'texts' if other.has_texts else 'integers'}"
        )
    for file in everything:
        _check_labels(file)
    if first.has_texts:
        trained = {text for file in files["training"] for text in file.values.tolist()}
        texts = {text for file in everything for text in file.values.tolist()}
        classes = sorted_names(trained) + sorted_names(texts - trained)
        numbers = {text: index for index, text in enumerate(classes)}
        labels = {
            part: [np.array([numbers[text] for text in file.values.tolist()], np.int64) for file in files[part]]
            for part in PARTS
        }
    else:
        classes = _class_names(first, everything)
        labels = {part: [_by_name(file, first, classes) for file in files[part]] for part in PARTS}
    return classes, {part: np.concatenate([np.empty(0, np.int64), *labels[part]]) for part in PARTS}


def _check_labels(file: _File) -> None:
    if file.has_texts:
        gaps = sum(value in (None, "") for value in file.values.tolist())
        if gaps:
            raise InputError(f"{file.path}: column {file.label!r} must not have gaps, but got {gaps}")
        return
    names = file.class_names()
    highest = int(file.values.max(initial=0)) if names is None else len(names) - 1
    wrong = file.values[(file.values < 0) | (file.values > highest)]
    if len(wrong):
        raise InputError(
            f"{file.path}: labels must be from 0 to {highest}, but got {wrong[0]} in {len(wrong):,} of "
            f"{len(file.values):,} rows"
        )


def _class_names(first: _File, files: list[_File]) -> tuple[str, ...]:
    """The names of the first training file, of any other that has some, or numbers."""
    names = first.class_names() or next((names for file in files if (names := file.class_names())), None)
    return names or tuple(str(label) for label in range(max(int(file.values.max(initial=-1)) for file in files) + 1))


def _by_name(file: _File, first: _File, classes: tuple[str, ...]) -> Labels:
    """The labels of a file as indices into `classes`, whatever the order of the file's own names."""
    names = file.class_names()
    if names is None:
        highest = int(file.values.max(initial=-1))
        if highest >= len(classes):
            raise InputError(
                f"{file.path}: labels must be from 0 to {len(classes) - 1} as named elsewhere, but got {highest}"
            )
        return np.asarray(file.values, np.int64)
    if names == classes:
        return np.asarray(file.values, np.int64)
    numbers = {name: index for index, name in enumerate(classes)}
    if len(numbers) < len(classes):
        raise InputError(f"{file.path}: its classes must be named in the order of {first.path}, for some share a name")
    unnamed = [names[label] for label in np.unique(file.values).tolist() if names[label] not in numbers]
    if unnamed:
        raise InputError(
            f"{file.path}: its class {unnamed[0]!r} must be one of those of {first.path}, but they are "
            f"{', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}"
        )
    positions = np.array([numbers.get(name, -1) for name in names], np.int64)
    return positions[file.values]
