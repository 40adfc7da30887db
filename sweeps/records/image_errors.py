"""Which images of a split a network classified wrongly: a bit an image, as the journal and the tables keep it.

The text is `COUNT:BITS`: the number of images, and base64 of the zlib-compressed bits, the first image in the highest
bit of the first byte. 10,000 images of which 5 % are wrong take about 600 characters. The order is that of the split,
which the fingerprint of the data fixes, so that equal positions of two trials are the same image.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.errors import InputError, unknown
from sweeps.records.model import SPLITS, StudyRecord


def encode_wrong_images(wrong: NDArray[np.bool_]) -> str:
    """Write which images were wrong as a short text (inverse: `decode_wrong_images`).

    Args:
        wrong: bool (images,), in the order of the split.

    Returns:
        The text.
    """
    bits = zlib.compress(np.packbits(wrong).tobytes(), 9)
    return f"{len(wrong)}:{base64.b64encode(bits).decode()}"


def decode_wrong_images(text: str) -> NDArray[np.bool_]:
    """Read the text that `encode_wrong_images` wrote.

    Args:
        text: from the journal or a table.

    Returns:
        bool (images,), True where the network was wrong.

    Raises:
        InputError: the text is damaged.
    """
    count, _, bits = text.partition(":")
    try:
        packed = np.frombuffer(zlib.decompress(base64.b64decode(bits, validate=True)), np.uint8)
        if len(packed) != -(-int(count) // 8):
            raise ValueError(f"{len(packed)} bytes do not hold {count} bits")
        return np.unpackbits(packed, count=int(count)).astype(bool)
    except (ValueError, zlib.error, binascii.Error) as error:
        raise InputError(f"the record of wrong images must be COUNT:BITS, but is {text[:20]!r}: {error}") from error


def wrong_images(study: StudyRecord, trial: str, split: str = "val") -> NDArray[np.bool_] | None:
    """Read which images a trial's network classified wrongly.

    They are those of the recorded error: of the last epoch for the validation split, of the last weights for the test
    split.

    Args:
        study: has the trial.
        trial: the trial's whole id.
        split: "val" or "test".

    Returns:
        bool (images,) in the order of the split; None where none are recorded: the study is of an older version, or
        the network was not evaluated on the split.

    Raises:
        InputError: there is no such trial or split, or the record is damaged or does not give the recorded error.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if trial not in study.trials:
        raise unknown("trial", trial, list(study.trials)[:5])
    record = study.trials[trial]
    text = record.wrong_images.get(split)
    if text is None:
        return None
    wrong = decode_wrong_images(text)
    error: Any = record.val_error if split == "val" else record.test_error
    if len(wrong) and error is not None and abs(100 * wrong.mean() - error) > 50 / len(wrong):  # half an image
        raise InputError(
            f"trial {trial}: the wrong images of {split} must give the recorded error of {error:.4g} %, but give "
            f"{100 * wrong.mean():.4g} %"
        )
    return wrong
