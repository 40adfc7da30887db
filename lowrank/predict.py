"""Classify images: `python -m lowrank.predict MODEL PATH ...` prints class and probability for each.

MODEL is a folder of a study's `models/`, or one safetensors file of an export; a PATH is an image or a folder of them.
Images are prepared as the model itself says: cropped, resized and normalised.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank.errors import InputError
from lowrank.utils import (
    ExitCode,
    OneLineParser,
    format_counted,
    print_result,
    report_error,
    results_alone,
    run_command,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from lowrank.serving import ImageClassifier

BATCH = 32  # images that the network gets at once


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line.

    Returns:
        The parser; its `--help` needs no torch.
    """
    parser = OneLineParser(
        prog="python -m lowrank.predict", description="Classify images by a trained network.",
        epilog="Exit codes: 0 done, 1 a file could not be read (it is named, the others are classified), 2 bad input.",
    )  # fmt: skip
    parser.add_argument("model", type=Path, metavar="MODEL", help="STUDY/models/TRIAL, or a .safetensors of an export")
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="an image, or a folder: all images in it and below"
    )
    parser.add_argument("--top", type=int, default=1, metavar="N", help="print the N likeliest classes of each image")
    table = parser.add_mutually_exclusive_group()
    table.add_argument("--csv", action="store_true", help="print a table: file, rank, class, probability (0 to 1)")
    table.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--class-names", type=Path, metavar="FILE", help="names in the order of the outputs")
    parser.add_argument(
        "--network", metavar="NAME", help="where your code of the network is now: path/to/file.py:function"
    )
    parser.add_argument("--allow-code", action="store_true", help="let the model name a network of your own code")
    return parser


@dataclass(frozen=True)
class Prediction:
    """What a model says of one file.

    Attributes:
        path: the file.
        classes: names and probabilities (0 to 1) of the likeliest classes, the likeliest first. A class without a name
            has its number.
        error: why there are no classes; None where there are.
    """

    path: Path
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None


def classify(classifier: ImageClassifier, paths: Sequence[Path], top: int) -> Iterator[Prediction]:
    """Classify image files, BATCH at a time.

    Args:
        classifier: the model.
        paths: the images.
        top: how many classes to return of each.

    Yields:
        A prediction for each file, in their order; with an error for one that is no readable image, or of another size
        where the model says no resizing.
    """
    import numpy as np
    import torch

    names = classifier.preprocessing.classes or tuple(map(str, range(classifier.classes)))
    for start in range(0, len(paths), BATCH):
        batch = paths[start : start + BATCH]
        images = [_read_pixels(classifier, path) for path in batch]
        pixels = [image for image in images if not isinstance(image, str)]
        rows: list[tuple[Tensor, Tensor]] = []
        if pixels:
            logits = torch.from_numpy(classifier.predict(np.stack(pixels)))
            rows = list(zip(*logits.softmax(1).topk(min(top, logits.shape[1])), strict=True))
        for path, image in zip(batch, images, strict=True):
            if isinstance(image, str):
                yield Prediction(path, error=image)
                continue
            values, indices = rows.pop(0)
            classes = zip((names[index] for index in indices.tolist()), values.tolist(), strict=True)
            yield Prediction(path, tuple(classes))


def _read_pixels(classifier: ImageClassifier, path: Path) -> NDArray[np.uint8] | str:
    """Read one image as the network gets it, uint8 (C, H, W); what is wrong with a file that is none."""
    import numpy as np

    from lowrank.data import Resize, decode_image, pillow_warnings_ignored

    preprocessing, shape = classifier.preprocessing, classifier.image_shape
    size = preprocessing.image_size
    how = (preprocessing.crop, preprocessing.interpolation, preprocessing.resize)
    try:
        with pillow_warnings_ignored():
            pixels = decode_image(path.read_bytes(), str(path), shape, None if size is None else Resize(size, *how))
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except InputError as error:
        return str(error)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def list_files(paths: Sequence[Path]) -> tuple[list[Path], list[Prediction]]:
    """List the images of a command: its files, and all images below its folders.

    What is passed over in a folder is said on standard error.

    Args:
        paths: files and folders.

    Returns:
        The files, those of a folder by path; and an error for each folder without images, or that cannot be read.
    """
    from lowrank.data import find_images

    files: list[Path] = []
    failures: list[Prediction] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        try:
            images, notes = find_images(path)
        except InputError as error:
            failures.append(Prediction(path, error=str(error)))
            continue
        for note in notes:
            print(f"{path}: {note}", file=sys.stderr)
        if not images:
            failures.append(Prediction(path, error=f"{path}: the folder must hold images, but has none"))
        files += images
    return files, failures


def print_lines(predictions: Iterable[Prediction]) -> None:
    """Print a line for each file, as soon as it is classified.

    Args:
        predictions: of the files.
    """
    for prediction in predictions:
        if prediction.error is None:
            classes = ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in prediction.classes)
            print(" ".join(f"{prediction.path}: {classes}".splitlines()), flush=True)


def print_csv(predictions: Iterable[Prediction]) -> None:
    """Print a table with a row for each file and class.

    Args:
        predictions: of the files.
    """

    def print_row(*cells: object) -> None:
        row = io.StringIO()
        csv.writer(row, lineterminator="\n").writerow(cells)
        print_result(row.getvalue().removesuffix("\n"))

    print_row("file", "rank", "class", "probability")
    for prediction in predictions:
        for rank, (name, probability) in enumerate(prediction.classes, 1):
            print_row(prediction.path, rank, name, f"{probability:.6f}")


def print_json(predictions: Iterable[Prediction]) -> None:
    """Print one object, with an entry for each file; `error` is null where there are classes.

    Args:
        predictions: of the files.
    """
    entries = [
        {
            "file": str(prediction.path),
            "classes": [{"class": name, "probability": round(value, 6)} for name, value in prediction.classes],
            "error": prediction.error,
        }
        for prediction in predictions
    ]
    print_result(json.dumps({"predictions": entries}, indent=2))


def run(options: argparse.Namespace) -> int:
    """Classify the files and print what they show.

    Args:
        options: as `make_parser` reads them.

    Returns:
        The exit code.

    Raises:
        InputError: the model cannot be read, names code that is not allowed, or an option is not possible.
    """
    from lowrank.io import read_class_names
    from lowrank.networks import check_own_code
    from lowrank.serving import load_classifier, network_name

    if options.top < 1:
        raise InputError(f"--top must be at least 1, but got {options.top}")
    name = network_name(options.model)
    if options.network is None:
        check_own_code([name], options.allow_code, source=str(options.model))
    classifier = load_classifier(options.model, trusted_network=options.network or name)
    if options.class_names is not None:
        names, outputs = read_class_names(options.class_names), classifier.classes
        if len(names) != outputs:
            raise InputError(f"--class-names must have {outputs} names, one for each output, but got {len(names)}")
        classifier.preprocessing = classifier.preprocessing.model_copy(update={"classes": names})
    files, failures = list_files(options.paths)
    unread = 0

    def predictions() -> Iterator[Prediction]:
        nonlocal unread
        for prediction in chain(failures, classify(classifier, files, options.top)):
            if prediction.error is not None:
                unread += 1
                report_error(ExitCode.FAILED, f"error: {prediction.error}")
            yield prediction

    (print_json if options.json else print_csv if options.csv else print_lines)(predictions())
    if any(path.is_dir() for path in options.paths):
        count = len(files) + len(failures) - unread
        failed = f", {unread:,} could not be" if unread else ""
        print(f"{format_counted(count, 'image')} classified{failed}", file=sys.stderr)
    return ExitCode.FAILED if unread else ExitCode.DONE


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: without the program's name; those of the process if None.

    Returns:
        The exit code.
    """

    def command() -> int:
        options = make_parser().parse_args(arguments)
        with results_alone(alone=options.json or options.csv):
            return run(options)

    return run_command(command, "interrupted")


if __name__ == "__main__":
    sys.exit(main())
