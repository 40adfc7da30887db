"""Classify image files: `python -m lowrank.predict MODEL FILE ...` prints class and probability for each.

MODEL is a folder of a study's `models/`, or one safetensors file of an export. Images are prepared as the model itself
says: cropped, resized and normalised.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank.errors import InputError
from lowrank.utils import ExitCode, OneLineParser, report_error, run_command

if TYPE_CHECKING:
    from lowrank.serving import ImageClassifier


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line.

    Returns:
        The parser; its `--help` needs no torch.
    """
    parser = OneLineParser(
        prog="python -m lowrank.predict", description="Classify image files by a trained network.",
        epilog="Exit codes: 0 done, 1 a file could not be read (it is named, the others are classified), 2 bad input.",
    )  # fmt: skip
    parser.add_argument("model", type=Path, metavar="MODEL", help="STUDY/models/TRIAL, or a .safetensors of an export")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="an image")
    parser.add_argument("--top", type=int, default=1, metavar="N", help="so many classes of each, the likeliest first")
    parser.add_argument("--class-names", type=Path, metavar="FILE", help="names in the order of the outputs")
    parser.add_argument(
        "--network", metavar="NAME", help="your own code of it, path/to/file.py:function as it lies now"
    )
    parser.add_argument("--allow-code", action="store_true", help="let the model name a network of your own code")
    return parser


def classify(classifier: ImageClassifier, path: Path, top: int) -> list[tuple[str, float]]:
    """Classify one image file.

    Args:
        classifier: the model.
        path: the image.
        top: how many classes to return.

    Returns:
        Names and probabilities (0 to 1) of the likeliest classes, the likeliest first. A class without a name has its
        number.

    Raises:
        InputError: the file is no readable image, or of another size where the model says no resizing.
    """
    import numpy as np
    import torch

    from lowrank.data import Resize, decode_image, pillow_warnings_ignored

    preprocessing, shape = classifier.preprocessing, classifier.image_shape
    size = preprocessing.image_size
    how = (preprocessing.crop, preprocessing.interpolation, preprocessing.resize)
    resize = None if size is None else Resize(size, *how)
    try:
        with pillow_warnings_ignored():
            pixels = decode_image(path.read_bytes(), str(path), shape, resize)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    logits = classifier.predict(np.ascontiguousarray(pixels.transpose(2, 0, 1))[None])
    probabilities, classes = torch.from_numpy(logits)[0].softmax(0).topk(min(top, logits.shape[1]))
    names = preprocessing.classes or tuple(map(str, range(logits.shape[1])))
    return [(names[index], value) for index, value in zip(classes.tolist(), probabilities.tolist(), strict=True)]


def run(options: argparse.Namespace) -> int:
    """Classify the files and print a line for each.

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
    failed = False
    for path in options.files:
        try:
            likeliest = classify(classifier, path, options.top)
        except InputError as error:
            failed = bool(report_error(ExitCode.FAILED, f"error: {error}"))
            continue
        print(f"{path}: " + ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in likeliest))
    return ExitCode.FAILED if failed else ExitCode.DONE


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: without the program's name; those of the process if None.

    Returns:
        The exit code.
    """
    return run_command(lambda: run(make_parser().parse_args(arguments)), "interrupted")


if __name__ == "__main__":
    sys.exit(main())
