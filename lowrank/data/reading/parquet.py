"""Images in Parquet files as Hugging Face lays them out: a column of encoded bytes and a column of labels.

A part's files are named by it (`train-00000-of-00002.parquet`), or lie in a folder that is named so
(`default/train/0000.parquet`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lowrank.data.reading.class_names import sorted_names
from lowrank.data.reading.image_folder import HIDDEN, Unused, hidden_files, is_hidden
from lowrank.data.reading.parquet_store import ParquetImages, ParquetStore
from lowrank.data.reading.part_names import HELD_OUT, PART_COLUMNS, PARTS, Part, check_one_name, part_of, part_of_file
from lowrank.data.reading.source import ImageListing
from lowrank.data.splits import Indices, Labels
from lowrank.errors import InputError, unknown
from lowrank.utils import one_line

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label", "labels")
_SHARD = re.compile(r"(.*?)(\d+)-of-(\d+)")  # such as train-00000-of-00002
_MOST_SHARDS = 10_000
_NAMED = 3  # files that a message names
NO_LABEL = -1  # what the hub writes where labels are secret


class _File:
    """One Parquet file: its schema, its columns and its labels."""

    def __init__(self, path: Path, part: Part, image: str | None, label: str | None) -> None:
        self.path = path
        try:
            self.schema = pq.read_schema(path)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        self.image = self._column("image", image, IMAGE_COLUMNS)
        # Only a part that can be held out instead may lack labels
        has_labels = part not in HELD_OUT or self._find_column(label, LABEL_COLUMNS) is not None
        self.label = self._column("label", label, LABEL_COLUMNS) if has_labels else None
        kind = self.schema.field(self.image).type
        if not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0) and not _is_binary(kind):
            raise InputError(
                f"{path}: column {self.image!r} must hold encoded images, or be a struct with `bytes`, but is {kind}"
            )
        self.has_texts = self._has_texts()
        self.values: Any = None  # labels as they are stored: integers, or an object array of texts
        self.part_column = next((name for name in self.schema.names if name.casefold() in PART_COLUMNS), None)

    def _has_texts(self) -> bool:
        if self.label is None:
            return False
        kind = self.schema.field(self.label).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return True
        if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind):
            return False
        raise InputError(f"{self.path}: column {self.label!r} must hold integers or texts, but is {kind}")

    def _unreadable(self, error: BaseException) -> InputError:
        return InputError(f"{self.path}: must be a whole, readable Parquet file, but {one_line(error)}")

    def _column(self, what: str, chosen: str | None, names: tuple[str, ...]) -> str:
        if chosen is not None:
            if chosen not in self.schema.names:
                raise unknown(f"column (`data.{what}`) of {self.path}", chosen, self.schema.names)
            return chosen
        present = self._find_column(None, names)
        if present is None:
            raise InputError(
                f"{self.path}: no {what} column; it must be one of {', '.join(names)}, or named by `data.{what}`, "
                f"but the columns are {', '.join(self.schema.names) or 'none'}"
            )
        return present

    def _find_column(self, chosen: str | None, names: tuple[str, ...]) -> str | None:
        """The column that is chosen, else the first of the usual names, in any case; None where there is none."""
        choices = (chosen,) if chosen is not None else names
        candidates = [(name, column) for name in choices for column in self.schema.names]
        exact = next((column for name, column in candidates if column == name), None)
        if exact is not None or chosen is not None:
            return exact
        return next((column for name, column in candidates if column.casefold() == name), None)

    def other_labels(self) -> list[str]:
        """Further columns that have a usual name of labels."""
        return [name for name in self.schema.names if name.casefold() in LABEL_COLUMNS and name != self.label]

    def _read_column(self, name: str) -> Any:
        try:
            with pq.ParquetFile(self.path) as file:
                column = file.read(columns=[name]).column(name)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column

    def read_parts(self) -> list[str]:
        """Read the column of parts, "" for a row without one."""
        assert self.part_column is not None
        values = self._read_column(self.part_column).to_pylist()
        return ["" if value is None else str(value).strip() for value in values]

    def has_label(self) -> NDArray[np.bool_]:
        """Tell which rows have a label."""
        if self.label is None:
            return np.zeros(len(self), bool)
        column = self._read_column(self.label)
        gaps = column.is_null(nan_is_null=True).to_pylist()
        values = zip(gaps, column.to_pylist(), strict=True)
        return np.array([not gap and value not in ("", NO_LABEL) for gap, value in values], bool)

    def __len__(self) -> int:
        return int(pq.read_metadata(self.path).num_rows)

    def read_labels(self, rows: Indices | None = None) -> None:
        """Read the labels, of some rows, into `values`; one that is missing is None or NO_LABEL."""
        if self.label is None:
            self.values = np.full(len(self), NO_LABEL)
            return
        column = self._read_column(self.label)
        column = column if rows is None else column.take(pa.array(rows))
        if self.has_texts:
            texts = [text if text is None else text.strip() for text in column.to_pylist()]
            self.values = np.array(texts, object)
            return
        gaps = int(pc.sum(column.is_null(nan_is_null=True)).as_py() or 0)
        if gaps not in (0, len(column)):
            raise InputError(f"{self.path}: column {self.label!r} must not have gaps, but got {gaps}")
        if gaps:
            self.values = np.full(len(column), NO_LABEL)
            return
        values = column.to_numpy()
        if values.dtype.kind == "f" and (broken := values[values != np.floor(values)]).size:
            raise InputError(f"{self.path}: column {self.label!r} must hold integers or texts, but holds {broken[0]:g}")
        self.values = values.astype(np.int64)  # pandas makes floats of integers where some are missing

    @property
    def is_unlabelled(self) -> bool:
        """Whether no image has a label."""
        return len(self.values) > 0 and all(value in (None, "", NO_LABEL) for value in self.values.tolist())

    def class_names(self) -> tuple[str, ...] | None:
        """Return the names that Hugging Face's library writes into the metadata, if there are any."""
        text = (self.schema.metadata or {}).get(b"huggingface")
        try:
            names = json.loads(text)["info"]["features"][self.label]["names"] if text and self.label else None
        except (ValueError, KeyError, TypeError):
            return None
        return tuple(str(name) for name in names) if names else None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def read_parquet(folder: Path, image: str | None, label: str | None) -> ImageListing:
    """Read the Parquet files of a set.

    Args:
        folder: where the files are: in it, in `data`, or in one folder for each part; or a single file.
        image: name of the column of images; None for one of the usual names.
        label: likewise of the labels.

    Returns:
        The images; the classes are those of the first training file's metadata, its texts, or numbers.

    Raises:
        InputError: a file is missing, damaged or laid out otherwise, or the files' classes do not fit together.
    """
    name, unused = f"parquet:{folder}", Unused()
    paths = _find(folder, name, unused)
    is_single = not paths  # a file that is named as no part
    if is_single:
        paths = {"training": [folder] if folder.is_file() else _parquet_files(folder)}
    files = {part: [_File(path, part, image, label) for path in paths.get(part, [])] for part in PARTS}
    rows = _divide(files["training"][0], unused) if is_single and files["training"][0].part_column else None
    order = None if rows is None else np.concatenate([rows[part] for part in PARTS])
    for part in PARTS:
        for file in files[part]:
            file.read_labels(order)
    for part in HELD_OUT:
        if files[part] and all(file.is_unlabelled for file in files[part] if len(file.values)):
            unused.add(f"files of a {part} part without labels", [file.path.name for file in files[part]])
            files[part] = []
    if label is None:
        unused.add("columns that may hold labels too", files["training"][0].other_labels())
    if not any(len(file.values) for file in files["training"]):
        raise InputError(f"{files['training'][0].path}: must have at least one row")
    classes, labels = _labels(files)
    images = [ParquetImages(file.path, file.image) for part in PARTS for file in files[part]]
    if not is_single:
        _check_parts(files)
    if rows is not None:
        ends = np.cumsum([len(rows[part]) for part in PARTS])[:-1]
        labels = dict(zip(PARTS, np.split(labels["training"], ends), strict=True))
    missing = _missing_shards(path for several in paths.values() for path in several)
    notes = [f"missing, by the names of the other files: {', '.join(missing)}"] if missing else []
    return ImageListing(
        name=name, classes=classes, labels=labels, store=ParquetStore(images, order), notes=(*notes, *unused.notes())
    )


def _check_parts(files: dict[Part, list[_File]]) -> None:
    """Refuse files that are named as one part and have a column that says another."""
    for part in PARTS:
        for file in files[part]:
            texts = [] if file.part_column is None else file.read_parts()
            other = next((text for text in texts if part_of(text) not in (None, part)), None)
            if other is not None:
                raise InputError(
                    f"{file.path}: column {file.part_column!r} says {other}, but the file is named as the {part} part; "
                    f"name the file itself to use its column, such as parquet:{file.path}"
                )


def _divide(file: _File, unused: Unused) -> dict[Part, Indices]:
    """Divide the rows of a single file by its column of parts; those of a held-out part without labels are left out."""
    texts = np.array(file.read_parts(), object)
    of_text = {text: part_of(text) for text in dict.fromkeys(texts.tolist())}
    rows = {part: np.flatnonzero([of_text[text] == part for text in texts.tolist()]) for part in PARTS}
    for text, part in of_text.items():
        if part is None:
            names = [f"row {row}" for row in np.flatnonzero(texts == text).tolist()]
            unused.add(f"images of the part {text!r}" if text else "images without a part", names)
    if len(rows["training"]) == 0:
        raise InputError(
            f"{file.path}: column {file.part_column!r} must name a training part ({'|'.join(PARTS['training'])}), but "
            f"has {', '.join(list(of_text)[:5]) or 'no row'}"
        )
    has_label = file.has_label()
    for part in HELD_OUT:
        if len(rows[part]) and not has_label[rows[part]].any():
            unused.add(f"images of a {part} part without labels", [f"row {row}" for row in rows[part].tolist()])
            rows[part] = rows[part][:0]
    return rows


def _find(folder: Path, name: str, unused: Unused) -> dict[Part, list[Path]]:
    """Return the files of each part, sorted by name; none where there is a single file that is named as no part."""
    if folder.is_file():
        return {}
    if not folder.is_dir():
        raise InputError(f"data set {name!r}: there is no such file or folder")
    present = _parquet_files(folder)
    by_root: dict[Path, dict[Part, list[Path]]] = {}
    for path in present:
        root, part = path.parent, part_of_file(path.stem)
        if part is None and root != folder:
            root, part = root.parent, part_of(root.name.removesuffix(".parquet"))  # Spark writes folders named so
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
    unused.add(HIDDEN, [file for file in hidden_files(folder) if _is_parquet(file)])
    if len(present) == 1 and not by_root:
        return {}
    if chosen is None:
        others = sorted(path.name for path in folder.iterdir())[:5]
        raise InputError(
            f"data set {name!r}: the folder, or `data` in it, must hold train.parquet or train-NUMBER.parquet, "
            f"or a folder train with Parquet files, or a single Parquet file, but it begins with: "
            f"{', '.join(others) or 'nothing'}"
        )
    parts = by_root[chosen]
    for part, paths in parts.items():
        labels = [path.parent.name if path.parent != chosen else _part_text(path.stem) for path in paths]
        check_one_name(f"data set {name!r}", [text.casefold() for text in labels], part)
    used = {path for paths in parts.values() for path in paths}
    unused.add("Parquet files", [str(path.relative_to(folder)) for path in present if path not in used])
    return parts


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(".parquet")


def _missing_shards(paths: Iterable[Path]) -> list[str]:
    """The files that a number of files after `of` promises and that are not there."""
    stems = {(path.parent, path.stem) for path in paths}
    matches = [(folder, match) for folder, stem in stems if (match := _SHARD.fullmatch(stem))]
    series = {(folder, match[1], len(match[2]), match[3]) for folder, match in matches}
    missing = set[str]()
    for folder, start, digits, count in series:
        shards = (f"{start}{number:0{digits}}-of-{count}" for number in range(min(int(count), _MOST_SHARDS)))
        missing.update(shard for shard in shards if (folder, shard) not in stems)
    names = [f"{name}.parquet" for name in sorted(missing)]
    return [*names[:_NAMED], *([f"{len(names) - _NAMED:,} more"] if len(names) > _NAMED else [])]


def _parquet_files(folder: Path) -> list[Path]:
    """List the Parquet files below a folder, sorted, without hidden ones; folders may be links."""
    paths, visited = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [inner for inner in folders if not is_hidden(inner)]
        if (real := os.path.realpath(parent)) in visited:
            folders.clear()  # links may lead in a circle
            continue
        visited.add(real)
        paths += [Path(parent, file) for file in files if _is_parquet(file) and not is_hidden(file)]
    return sorted(paths)


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
    wrong = file.values[(file.values < 0) | (names is not None and file.values >= len(names or ()))]
    if len(wrong):
        raise InputError(
            f"{file.path}: labels must be {'at least 0' if names is None else f'from 0 to {len(names) - 1}'}, but got "
            f"{wrong[0]} in {len(wrong):,} of {len(file.values):,} rows"
        )


def _class_names(first: _File, files: list[_File]) -> tuple[str, ...]:
    """The names of the first training file, of any other that has some, or numbers."""
    names = first.class_names() or next((names for file in files if (names := file.class_names())), None)
    if names:
        return names
    images = sum(len(file.values) for file in files)
    for file in files:
        if (highest := int(file.values.max(initial=-1))) >= images:  # no network has an output for each such number
            raise InputError(
                f"{file.path}: labels must count classes from 0, below the {images:,} images that there are, but got "
                f"{highest:,}"
            )
    return tuple(str(label) for label in range(max(int(file.values.max(initial=-1)) for file in files) + 1))


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
