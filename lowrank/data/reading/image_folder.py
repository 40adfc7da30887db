"""Images as files in one folder a class: DIR/{train,val,test}/CLASS/* or DIR/CLASS/*."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from lowrank.data.reading.image_codec import image_suffixes
from lowrank.data.reading.image_store import EncodedStore
from lowrank.data.reading.part_names import HELD_OUT, PART_NAMES, Part, check_one_name, part_of
from lowrank.data.reading.source import ImageListing
from lowrank.data.splits import Indices
from lowrank.errors import InputError
from lowrank.utils import format_counted, one_line

_NAMED = 3  # files that a message names
_NO_CLASS = {"unknown", "unlabeled", "unlabelled"}
ADDED_BY_MACOS = (".DS_Store", "__MACOSX")  # beside the files whose names start with ._
HIDDEN = "files whose name, or that of a folder above them, starts with a dot"


class FolderStore(EncodedStore):
    """Image files, each read when it is decoded."""

    def __init__(self, root: Path, names: list[str]) -> None:
        """Take the paths of the files relative to `root`, by global index."""
        self._root = root
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def read_encoded(self, index: int) -> bytes:
        """See EncodedStore."""
        try:
            with self.open(index) as file:
                return file.read()
        except OSError as error:
            raise self._unreadable(index, error) from error

    def _unreadable(self, index: int, error: OSError) -> InputError:
        return InputError(f"{self.origin(index)}: must be readable, but {one_line(error)}")

    def open(self, index: int) -> IO[bytes]:
        """See EncodedStore."""
        try:
            return (self._root / self._names[index]).open("rb")
        except OSError as error:
            raise self._unreadable(index, error) from error

    def origin(self, index: int) -> str:
        """See EncodedStore."""
        return _printable(str(self._root / self._names[index]))

    def hash_files(self, indices: Indices, sha: Any) -> None:
        """See ImageStore."""
        for index in indices.tolist():
            try:
                size = (self._root / self._names[index]).stat().st_size
            except OSError as error:
                raise self._unreadable(index, error) from error
            sha.update(f"{self._names[index]}:{size};".encode(errors="surrogateescape"))

    def hash_locations(self, sha: Any) -> None:
        """See EncodedStore."""
        for name in self._names:
            path = self._root / name
            try:
                status = path.stat()
            except OSError:  # such as a link that leads nowhere; whoever reads the image says so
                sha.update(f"{path}:missing;".encode(errors="surrogateescape"))
                continue
            sha.update(f"{path}:{status.st_size}:{status.st_mtime_ns};".encode(errors="surrogateescape"))

    def preload(self, indices: Indices) -> None:
        """See ImageStore; files are read one by one."""

    def release(self) -> None:
        """See ImageStore; nothing is in memory."""


class Unused:
    """Counts what a reader passes over, by kind."""

    def __init__(self) -> None:
        self._examples: dict[str, list[str]] = {}

    def add(self, kind: str, examples: Iterable[str]) -> None:
        """Count files or folders.

        Args:
            kind: what they are, in words.
            examples: their names.
        """
        names = list(examples)
        if names:
            self._examples.setdefault(kind, []).extend(names)

    def names(self) -> set[str]:
        """Return all names that were counted."""
        return {name for names in self._examples.values() for name in names}

    def notes(self) -> list[str]:
        """Return a sentence for each kind, with its count and some names."""
        sentences = []
        for kind, names in self._examples.items():
            examples = ", ".join([*names[:_NAMED], *(["..."] if len(names) > _NAMED else [])])
            sentences.append(_printable(f"not used: {kind}: {len(names):,} ({examples})"))
        return sentences


def _printable(text: str) -> str:
    """Replace what is no UTF-8: file names may be in an older encoding, which no terminal or report could show."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def read_folder(root: Path) -> ImageListing:
    """Find the images under a folder; the classes are the folders of the training part, in alphabetical order.

    Args:
        root: DIR of the module's docstring.

    Returns:
        The images, and what is not used.

    Raises:
        InputError: there is no such folder, or a class of training is empty.
    """
    name = f"folder:{root}"
    if not root.is_dir():
        raise InputError(f"data set {name!r}: there is no such folder")
    unused = Unused()
    folders, files = _list(root)
    named: dict[Part, list[Path]] = {}
    for folder in folders:
        if (part := part_of(folder.name)) is not None and _has_class_folders(folder):
            named.setdefault(part, []).append(folder)
    for part, several in named.items():
        check_one_name(f"data set {name!r}", [folder.name for folder in several], part)
    if named and "training" not in named:
        raise _no_classes(root, named)
    parts: dict[Part, dict[str, list[str]]] = {}
    if named:
        for part in ("training", "validation", "test"):
            if part in named:
                parts[part] = _classes(named[part][0], root, unused, required=part == "training")
        for part in HELD_OUT:  # Keras wants a folder of a class even where the classes are not known
            labels = {label.casefold() for label in parts.get(part, ())}
            if labels and labels <= _NO_CLASS - {label.casefold() for label in parts["training"]}:
                for names in parts.pop(part).values():
                    unused.add(f"images of a {part} part without labels", names)
        used = {folder for several in named.values() for folder in several}
        for folder in folders:
            if folder not in used:
                reason = "" if part_of(folder.name) is None else " without folders of classes"
                _add_tree(unused, f"files in the folder {folder.name}{reason}", folder, root)
        unused.add("files beside the folders of the parts", _names(files, root))
    else:
        parts["training"] = _classes(root, root, unused, required=True)
    unused.add(HIDDEN, hidden_files(root))
    classes = tuple(parts["training"])
    if not classes:
        raise _no_classes(root, named)
    if all(part_of(label) is not None for label in classes) and not named:
        raise InputError(
            f"data set {name!r}: the folders {', '.join(classes)} are named as parts but hold no folders of classes; "
            f"where a table has the labels, give csv:FILE"
        )
    numbers = {label: index for index, label in enumerate([*classes, *_further(parts, classes)])}
    return ImageListing(
        name=name,
        classes=tuple(numbers),
        labels={
            part: np.repeat(
                np.array([numbers[label] for label in members], np.int64), [len(names) for names in members.values()]
            )
            for part, members in parts.items()
        },
        store=FolderStore(root, [file for members in parts.values() for names in members.values() for file in names]),
        notes=tuple(unused.notes()),
    )


def _further(parts: dict[Part, dict[str, list[str]]], classes: tuple[str, ...]) -> list[str]:
    """Classes that training lacks; `make_source` refuses them."""
    return sorted({label for files in parts.values() for label in files} - set(classes))


def _no_classes(root: Path, named: dict[Part, list[Path]]) -> InputError:
    rule = (
        f"data set 'folder:{root}': the folder must hold one folder for each class with images in it, or such folders "
        f"in folders of the parts ({PART_NAMES})"
    )
    if named:
        folder = next(iter(named.values()))[0]
        return InputError(f"{rule}, but of the parts there is only {folder.name}, and no training part")
    files = _list(root)[1]
    tables = [file.name for file in files if file.suffix.lower() == ".csv"]
    if tables:
        return InputError(f"{rule}, but there are none; is the table {tables[0]} meant? Then csv:{root / tables[0]}")
    if any(file.suffix.lower() == ".parquet" for file in files):
        return InputError(f"{rule}, but there are Parquet files; is parquet:{root} meant?")
    images = [file for file in files if file.suffix.lower() in image_suffixes()]
    if images:
        return InputError(
            f"{rule}, but it holds {format_counted(len(images), 'image')} directly, such as {images[0].name}"
        )
    hidden = hidden_files(root)
    if hidden:
        return InputError(f"{rule}, but it holds none beside {len(hidden):,} {HIDDEN}, such as {hidden[0]}")
    return InputError(f"{rule}, but it holds none")


def _list(folder: Path) -> tuple[list[Path], list[Path]]:
    """List folders and files, sorted by name, without hidden ones."""
    folders: list[Path] = []
    files: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not is_hidden(entry.name):
                (folders if entry.is_dir() else files).append(folder / entry.name)
    return folders, files


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is passed over for its name.

    Args:
        name: without the folders above it.

    Returns:
        True for names that start with a dot, and for the folder that macOS adds to zip archives.
    """
    return name.startswith(".") or name in ADDED_BY_MACOS


def hidden_files(root: Path) -> list[str]:
    """List the files that are passed over because their name, or that of a folder above them, starts with a dot.

    Args:
        root: the folder of the set.

    Returns:
        Paths relative to `root`, sorted, without what macOS adds of its own.
    """
    paths = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(inner for inner in folders if inner not in ADDED_BY_MACOS)
        relative = Path(folder).relative_to(root)
        below = any(map(is_hidden, relative.parts))
        paths += [
            (relative / file).as_posix() for file in sorted(files)
            if (below or is_hidden(file)) and file not in ADDED_BY_MACOS and not file.startswith("._")
        ]  # fmt: skip
    return paths


def find_images(root: Path) -> tuple[list[Path], list[str]]:
    """Find all images below a folder, whatever its layout.

    Args:
        root: the folder; folders that links lead to count, each once.

    Returns:
        The files with a suffix of images, by path; and sentences on what is passed over.

    Raises:
        InputError: a folder cannot be listed.
    """
    images: list[Path] = []
    others: list[Path] = []
    unused, hidden, seen, pending = Unused(), [], set(), [root]
    while pending:
        folder = pending.pop()
        try:
            identity = os.stat(folder)[1:3]  # inode and device
            entries = sorted(folder.iterdir())
        except OSError as error:
            raise InputError(f"{folder} cannot be read: {error.strerror}") from error
        if identity in seen:  # a link leads back here
            continue
        seen.add(identity)
        for path in entries:
            if is_hidden(path.name):
                hidden += [path] if path.name not in ADDED_BY_MACOS and not path.name.startswith("._") else []
            elif path.is_dir():
                pending.append(path)
            else:
                (images if _is_image(path) else others).append(path)
    unused.add("files that are no images by their names", _names(sorted(others), root))
    unused.add("files and folders whose names start with a dot", _names(sorted(hidden), root))
    return sorted(images), unused.notes()


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in image_suffixes()


def _has_class_folders(folder: Path) -> bool:
    """Whether a folder holds folders of images and no image itself; otherwise it may be a class."""
    folders, files = _list(folder)
    return not any(map(_is_image, files)) and any(any(map(_is_image, _list(inner)[1])) for inner in folders)


def _classes(folder: Path, root: Path, unused: Unused, *, required: bool) -> dict[str, list[str]]:
    """Map each class to its image files, as paths relative to `root`, all in alphabetical order."""
    classes: dict[str, list[str]] = {}
    folders, beside = _list(folder)
    other_kinds: list[Path] = []
    for path in folders:
        inner, files = _list(path)
        images, others = [file for file in files if _is_image(file)], [file for file in files if not _is_image(file)]
        other_kinds += others
        for deeper in inner:
            _add_tree(unused, "files in folders below those of the classes", deeper, root)
        if images:
            classes[path.name] = _names(images, root)
        elif required:
            if (
                folder == root
                and len(folders) == 1
                and (_has_class_folders(path) or any(map(_has_class_folders, inner)))
            ):
                raise InputError(f"data set 'folder:{root}': the images lie one folder deeper; is folder:{path} meant?")
            raise InputError(f"{path}: a class must hold at least one image, but has none{_advice(others, inner)}")
        else:
            unused.add("folders of classes without images", _names([path], root))
    kinds = ", ".join(sorted({file.suffix.lower() or "no suffix" for file in other_kinds}))
    unused.add(f"files of other kinds in folders of classes ({kinds})", _names(other_kinds, root))
    unused.add("files outside the folders of the classes", _names(beside, root))
    return classes


def _advice(files: list[Path], folders: list[Path]) -> str:
    deeper = [folder for folder in folders if any(map(_is_image, _list(folder)[1]))]
    if deeper:
        return f" directly in it; those in folders below it, such as {deeper[0].name}, are not read: move them up"
    return f" (it has {len(files):,} other files, such as {files[0].name})" if files else ""


def _names(paths: Iterable[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def _add_tree(unused: Unused, kind: str, folder: Path, root: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not is_hidden(path.name))
    unused.add(kind, _names(files, root) or [f"{folder.relative_to(root).as_posix()}/, empty"])
