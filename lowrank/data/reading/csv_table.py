"""Images as files beside a table in CSV: a column of file names, one of labels, and perhaps one of parts.

`csv:FILE`, or `csv:DIR` where DIR holds one table, or one for each part (`train.csv`, `test.csv`). File names are
relative to the table's folder.
"""

from __future__ import annotations

import csv
import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from lowrank.data.reading.class_names import sorted_names
from lowrank.data.reading.image_codec import image_suffixes
from lowrank.data.reading.image_folder import HIDDEN, FolderStore, Unused, hidden_files, is_hidden
from lowrank.data.reading.image_scan import count_images
from lowrank.data.reading.part_names import (
    HELD_OUT,
    PART_COLUMNS,
    PART_NAMES,
    PARTS,
    Part,
    check_one_name,
    part_of,
    part_of_file,
)
from lowrank.data.reading.source import ImageListing
from lowrank.errors import InputError, unknown
from lowrank.utils import one_line

FILE_COLUMNS = ("file", "filename", "file_name", "path", "image", "img", "id", "image_id", "image_path", "filepath")
LABEL_COLUMNS = ("label", "class", "category", "target", "labels")
_SUFFIXES = (".csv", ".tsv")
_DELIMITERS = ",;\t|"
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
    label: int | None
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
    name, unused, notes = f"csv:{path}", Unused(), list[str]()
    tables = _find_tables(path, name, unused)
    root = path.parent if path.is_file() else path
    rows: dict[Part, list[_Row]] = {part: [] for part in PARTS}
    for table, part in tables.items():
        for row in _find_images(table, part, _read_table(table, part, image, label, unused), notes):
            file = (
                posixpath.join(table.parent.relative_to(root).as_posix(), row.file)
                if table.parent != root
                else row.file
            )
            rows[row.part].append(replace(row, file=file))
    trained = {row.label for row in rows["training"]}
    for part in HELD_OUT:
        if rows[part] and all(row.label in _NO_LABEL and row.label not in trained for row in rows[part]):
            unused.add(f"images of a {part} part without labels", [row.file for row in rows[part]])
            rows[part] = []
    _check_files(rows, root, name)
    for part in PARTS:
        rows[part] = _without_repetitions(rows[part], unused)
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
        notes=(*notes, *unused.notes()),
    )


def _without_repetitions(rows: list[_Row], unused: Unused) -> list[_Row]:
    """Leave out rows that list an image of the same part again."""
    first = {row.file: row for row in reversed(rows)}
    unused.add("rows that list an image again", [row.file for row in rows if first[row.file] is not row])
    return [row for row in rows if first[row.file] is row]


def _find_images(table: Path, part: Part | None, rows: list[_Row], notes: list[str]) -> list[_Row]:
    """Complete file names that lack a folder or a suffix, if all of a table lack the same and no other one fits.

    Such names are usual: a table lies beside the folder that has its images, and its `id` is a name without suffix.
    """
    root = table.parent
    if any((root / row.file).is_file() for row in rows):
        return rows
    first, ways = rows[0].file, set[tuple[str, str]]()
    for file in _image_files(root):
        for suffix in ("", Path(file).suffix):
            if f"/{file}".endswith(f"/{first}{suffix}"):
                ways.add((file[: len(file) - len(first) - len(suffix)], suffix))
    fitting = sorted(way for way in ways if all((root / f"{way[0]}{row.file}{way[1]}").is_file() for row in rows))
    named = [way for way in fitting if part is not None and part_of(way[0].rstrip("/")) == part]
    fitting = named or fitting
    if len(fitting) != 1:
        return rows
    before, after = fitting[0]
    notes.append(f"names in {table.name} are completed: {first} is {before}{first}{after}, and likewise all others")
    return [replace(row, file=f"{before}{row.file}{after}") for row in rows]


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
    below = [] if tables else _tables_below(path)
    in_parts = {table: part for table in below if (part := part_of(table.parent.name)) and table.parent.parent == path}
    if sorted(in_parts.values()) == sorted(set(in_parts.values())) and "training" in in_parts.values():
        unused.add(
            "tables in other folders", [table.relative_to(path).as_posix() for table in below if table not in in_parts]
        )
        return dict(in_parts)
    holds = [table.relative_to(path).as_posix() for table in tables or below]
    advice = f"; name the one that is meant, such as csv:{path / holds[0]}" if holds else ""
    raise InputError(
        f"data set {name!r}: the folder must hold one table (.csv), or one for each part ({PART_NAMES}), but it holds "
        f"{', '.join(holds[:5]) or 'none'}{advice}"
    )


def _tables_below(path: Path) -> list[Path]:
    """List the tables in the folders of a folder, sorted."""
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    return [
        entry for folder in folders for entry in sorted(folder.iterdir())
        if entry.suffix.lower() in _SUFFIXES and entry.is_file() and not is_hidden(entry.name)
    ]  # fmt: skip


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
    columns = _find_columns(table, part, header, (image, label), unused)
    rows, other_parts = [], dict[str, list[str]]()
    for number, fields in enumerate(lines[1:], 2):
        if not any(text.strip() for text in fields):
            continue
        if len(fields) != len(header):
            raise InputError(f"{table}, row {number}: must have {len(header)} fields, but has {len(fields)}")
        text = "train" if columns.part is None else fields[columns.part]
        row_part = part_of(text)
        if part is not None:
            if columns.part is not None and row_part not in (None, part):
                raise InputError(
                    f"{table}, row {number}: column {header[columns.part]!r} says {text.strip()}, but the table is "
                    f"named as the {part} part; give the table another name to use its column"
                )
            row_part = part
        file_name = fields[columns.file].strip()
        if "\\" in file_name and not (table.parent / file_name).exists():  # written on Windows
            file_name = file_name.replace("\\", "/")
        if not file_name:
            raise InputError(f"{table}, row {number}: must name an image, but column {header[columns.file]!r} is empty")
        if row_part is None:
            other_parts.setdefault(text.strip(), []).append(file_name)
        else:
            text = "" if columns.label is None else fields[columns.label].strip()
            is_plain = ".." not in PurePosixPath(file_name).parts  # else a link may be on the way
            rows.append(_Row(posixpath.normpath(file_name) if is_plain else file_name, text, row_part, number))
    for text, names in other_parts.items():
        unused.add(f"images of the part {text!r}" if text else "images without a part", names)
    if not rows:
        column = ""
        if columns.part is not None and other_parts:
            column = f"; its column {header[columns.part]!r} has {', '.join(list(other_parts)[:5]) or 'nothing'}"
        raise InputError(f"{table}: must list at least one image of a part ({PART_NAMES}), but lists none{column}")
    return rows


def _find_columns(
    table: Path, part: Part | None, header: list[str], chosen: tuple[str | None, str | None], unused: Unused
) -> _Columns:
    """Find the columns; only a part that can be held out instead may lack labels."""
    image, label = chosen
    file_column = _column(table, header, "image", image, FILE_COLUMNS)
    if several := [text for text, count in Counter(header).items() if count > 1 and text]:
        raise InputError(f"{table}: each column must have a name of its own, but several are named {several[0]!r}")
    folded = [text.casefold() for text in header]
    label_column: int | None = None
    if part not in HELD_OUT or (label in header if label else any(name in folded for name in LABEL_COLUMNS)):
        label_column = _column(table, header, "label", label, LABEL_COLUMNS)
        used = header[label_column]
        others = [text for text in header if text.casefold() in LABEL_COLUMNS and text != used]
        unused.add("columns that may hold labels too", [] if label else others)
    return _Columns(file_column, label_column, next((i for i, text in enumerate(folded) if text in PART_COLUMNS), None))


def _column(table: Path, header: list[str], what: str, chosen: str | None, names: tuple[str, ...]) -> int:
    if chosen is not None:
        if chosen not in header:
            raise unknown(f"column (`data.{what}`) of {table}", chosen, header)
        return header.index(chosen)
    present = [name for name in names if name in [text.casefold() for text in header]]
    if not present:
        raise InputError(
            f"{table}: no {what} column; it must be one of {', '.join(names)}, or named by `data.{what}`, but the "
            f"first row, which must name the columns, has {', '.join(header) or 'none'}"
        )
    return [text.casefold() for text in header].index(present[0])


def _check_files(rows: dict[Part, list[_Row]], root: Path, name: str) -> None:
    """Refuse images that are missing, and ones that are listed with two labels."""
    labels: dict[str, set[str]] = {}
    for part in PARTS:
        for row in rows[part]:
            labels.setdefault(row.file, set()).add(row.label)
    outside = [file for file in labels if not _lies_in(root / file, root)]
    if outside:
        raise InputError(f"data set {name!r}: images must lie in {root} or below, but the table lists {outside[0]}")
    missing = [file for file in labels if not (root / file).is_file()]
    if missing:
        present = {file.casefold(): file for file in _image_files(root)}
        if (other := present.get(os.path.normpath(missing[0]).casefold())) is not None:
            raise InputError(
                f"data set {name!r}: {len(missing):,} of {len(labels):,} images are missing: the table lists "
                f"{missing[0]}, but the file is {other}; upper and lower case count"
            )
        bare = "" if any(Path(file).suffix.lower() in image_suffixes() for file in missing) else _suffix_advice(root)
        raise InputError(
            f"data set {name!r}: {len(missing):,} of {len(labels):,} images are missing, such as {root / missing[0]}; "
            f"names must be relative to {root}{bare}"
        )
    several = [file for file, texts in labels.items() if len(texts) > 1]
    if several:
        texts = " and ".join(sorted(labels[several[0]]))
        raise InputError(
            f"data set {name!r}: {count_images(len(several))} must have one label each, but have several, such as "
            f"{several[0]}: {texts}"
        )


def _lies_in(path: Path, root: Path) -> bool:
    """Whether a path is below a folder by its name, or in truth: a folder of images may be a link."""
    named = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))
    return named or path.resolve().is_relative_to(root.resolve())


def _suffix_advice(root: Path) -> str:
    suffixes = Counter(path.suffix for path in root.rglob("*") if path.suffix.lower() in image_suffixes())
    return f" and have a suffix such as {suffixes.most_common(1)[0][0]}" if suffixes else ""


def _unlisted(root: Path, in_table: set[str]) -> list[str]:
    return [file for file in _image_files(root) if os.path.normpath(file) not in in_table]


def _image_files(root: Path) -> Iterator[str]:
    """Yield the image files under a folder, relative to it, without hidden ones."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(inner for inner in folders if not is_hidden(inner))
        for file in sorted(file for file in files if not is_hidden(file)):
            if os.path.splitext(file)[1].lower() in image_suffixes():
                yield Path(os.path.relpath(os.path.join(folder, file), root)).as_posix()
