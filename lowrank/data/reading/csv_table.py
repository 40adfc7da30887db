"""Images as files beside a table in CSV: a column of file names, one of labels, and perhaps one of parts.

`csv:FILE`, or `csv:DIR` where DIR holds one table, or one for each part (`train.csv`, `test.csv`). File names are
relative to the table's folder.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowrank.data.reading.class_names import sorted_names
from lowrank.data.reading.image_codec import image_suffixes
from lowrank.data.reading.image_folder import HIDDEN, FolderStore, Unused, hidden_files, is_hidden
from lowrank.data.reading.part_names import PART_NAMES, PARTS, Part, check_one_name, part_of, part_of_file
from lowrank.data.reading.source import ImageListing
from lowrank.errors import InputError, unknown
from lowrank.utils import one_line

FILE_COLUMNS = ("file", "filename", "file_name", "path", "image", "img", "id")
LABEL_COLUMNS = ("label", "class", "category", "target", "labels")
PART_COLUMNS = ("split", "part", "subset", "set")
_SUFFIXES = (".csv", ".tsv")
_DELIMITERS = ",;\t"
_NO_LABEL = ("", "-1")


@dataclass(frozen=True)
class _Row:
    file: str
    label: str
    part: Part
    line: int


@dataclass(frozen=True)
class _Columns:
    """Positions of the columns in a table."""

    file: int
    label: int
    part: int | None


def read_csv(path: Path, image: str | None, label: str | None) -> ImageListing:
    """Read the tables of a set.

    Args:
        path: the table, or the folder that holds it.
        image: name of the column of file names; None for one of the usual names.
        label: likewise of the labels.

    Returns:
        The images; the classes are the labels of training, in the order of their numbers or alphabetical.

    Raises:
        InputError: a table or an image is missing, or a row makes no sense.
    """
    name, unused = f"csv:{path}", Unused()
    tables = _find_tables(path, name, unused)
    root = next(iter(tables)).parent
    rows: dict[Part, list[_Row]] = {part: [] for part in PARTS}
    for table, part in tables.items():
        for row in _read_table(table, part, image, label, unused):
            rows[row.part].append(row)
    _check_files(rows, root, name)
    trained = {row.label for row in rows["training"]}
    if rows["test"] and all(row.label in _NO_LABEL and row.label not in trained for row in rows["test"]):
        unused.add("images of a test part without labels", [row.file for row in rows["test"]])
        rows["test"] = []
    for part in PARTS:
        if unlabelled := [row for row in rows[part] if not row.label]:
            raise InputError(
                f"data set {name!r}: each row must have a label, but {len(unlabelled):,} of {part} have none, such as "
                f"{unlabelled[0].file}"
            )
    classes = sorted_names(trained) + sorted_names({row.label for part in PARTS for row in rows[part]} - trained)
    numbers = {text: index for index, text in enumerate(classes)}
    listed = {row.file for part in PARTS for row in rows[part]}
    in_table = {os.path.normpath(os.path.relpath(root / file, root)) for file in listed | unused.names()}
    unused.add("images that no table lists", _unlisted(root, in_table))
    hidden = [file for file in hidden_files(root) if Path(file).suffix.lower() in (*_SUFFIXES, *image_suffixes())]
    unused.add(HIDDEN, [file for file in hidden if file not in in_table and root / file not in tables])
    return ImageListing(
        name=name,
        classes=classes,
        labels={part: np.array([numbers[row.label] for row in rows[part]], np.int64) for part in PARTS},
        store=FolderStore(root, [row.file for part in PARTS for row in rows[part]]),
        notes=tuple(unused.notes()),
    )


def _find_tables(path: Path, name: str, unused: Unused) -> dict[Path, Part | None]:
    """Return the tables, each with its part; None for a table that may have a column of parts."""
    if path.is_file():
        return {path: None}
    if not path.is_dir():
        raise InputError(f"data set {name!r}: there is no such file or folder")
    present = [entry for entry in sorted(path.iterdir()) if entry.suffix.lower() in _SUFFIXES and entry.is_file()]
    tables = [entry for entry in present if not is_hidden(entry.name)]
    of_parts = {table: part for table in tables if (part := part_of_file(table.stem)) is not None}
    for part in PARTS:
        check_one_name(f"data set {name!r}", [table.name for table, value in of_parts.items() if value == part], part)
    if "training" in of_parts.values():
        unused.add("tables that are named as no part", [table.name for table in tables if table not in of_parts])
        return {
            table: of_parts[table] for table in sorted(of_parts, key=lambda table: list(PARTS).index(of_parts[table]))
        }
    if len(tables) == 1:
        return {tables[0]: None}
    raise InputError(
        f"data set {name!r}: the folder must hold one table (.csv), or one for each part ({PART_NAMES}), but it holds "
        f"{', '.join(table.name for table in tables[:5]) or 'none'}"
    )


def _read_table(table: Path, part: Part | None, image: str | None, label: str | None, unused: Unused) -> list[_Row]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(_DELIMITERS, key=first.count)
            lines = list(csv.reader(file, delimiter=delimiter, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: must be a readable table in UTF-8, but {one_line(error)}") from error
    header = [text.strip() for text in lines[0]] if lines else []
    columns = _Columns(
        _column(table, header, "image", image, FILE_COLUMNS),
        _column(table, header, "label", label, LABEL_COLUMNS),
        None if part else next((header.index(text) for text in header if text.casefold() in PART_COLUMNS), None),
    )
    rows, other_parts = [], dict[str, list[str]]()
    for number, fields in enumerate(lines[1:], 2):
        if not any(text.strip() for text in fields):
            continue
        if len(fields) != len(header):
            raise InputError(f"{table}, row {number}: must have {len(header)} fields, but has {len(fields)}")
        text = "train" if columns.part is None else fields[columns.part]
        row_part = part or part_of(text)
        file_name = fields[columns.file].strip()
        if "\\" in file_name and not (table.parent / file_name).exists():  # written on Windows
            file_name = file_name.replace("\\", "/")
        if not file_name:
            raise InputError(f"{table}, row {number}: must name an image, but column {header[columns.file]!r} is empty")
        if row_part is None:
            other_parts.setdefault(text.strip(), []).append(file_name)
        else:
            rows.append(_Row(file_name, fields[columns.label].strip(), row_part, number))
    for text, names in other_parts.items():
        unused.add(f"images of the part {text!r}", names)
    if not rows:
        raise InputError(f"{table}: must list at least one image of a part ({PART_NAMES}), but lists none")
    return rows


def _column(table: Path, header: list[str], what: str, chosen: str | None, names: tuple[str, ...]) -> int:
    if chosen is not None:
        if chosen not in header:
            raise unknown(f"column (`data.{what}`) of {table}", chosen, header)
        return header.index(chosen)
    present = [name for name in names if name in [text.casefold() for text in header]]
    if not present:
        raise InputError(
            f"{table}: no {what} column; it must be one of {', '.join(names)}, or named by `data.{what}`, but the "
            f"columns are {', '.join(header) or 'none'}"
        )
    return [text.casefold() for text in header].index(present[0])


def _check_files(rows: dict[Part, list[_Row]], root: Path, name: str) -> None:
    """Refuse images that are missing, and ones that are listed with two labels."""
    labels: dict[str, set[str]] = {}
    for part in PARTS:
        for row in rows[part]:
            labels.setdefault(row.file, set()).add(row.label)
    outside = [file for file in labels if not (root / file).resolve().is_relative_to(root.resolve())]
    if outside:
        raise InputError(f"data set {name!r}: images must lie in {root} or below, but the table lists {outside[0]}")
    missing = [file for file in labels if not (root / file).is_file()]
    if missing:
        bare = "" if any(Path(file).suffix.lower() in image_suffixes() for file in missing) else _suffix_advice(root)
        raise InputError(
            f"data set {name!r}: {len(missing):,} of {len(labels):,} images are missing, such as {root / missing[0]}; "
            f"names must be relative to {root}{bare}"
        )
    several = [file for file, texts in labels.items() if len(texts) > 1]
    if several:
        texts = " and ".join(sorted(labels[several[0]]))
        raise InputError(
            f"data set {name!r}: {len(several):,} images have several labels, such as {several[0]}: {texts}"
        )


def _suffix_advice(root: Path) -> str:
    suffixes = Counter(path.suffix for path in root.rglob("*") if path.suffix.lower() in image_suffixes())
    return f" and have a suffix such as {suffixes.most_common(1)[0][0]}" if suffixes else ""


def _unlisted(root: Path, in_table: set[str]) -> list[str]:
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(inner for inner in folders if not is_hidden(inner))
        for file in sorted(file for file in files if not is_hidden(file)):
            path = os.path.relpath(os.path.join(folder, file), root)
            if os.path.splitext(file)[1].lower() in image_suffixes() and os.path.normpath(path) not in in_table:
                names.append(Path(path).as_posix())
    return names
