"""Names of parts, of folders, files and values of a table."""

from __future__ import annotations

import pytest

from lowrank.data.reading.part_names import check_one_name, part_of, part_of_file
from lowrank.errors import InputError


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train", "training"), ("Training", "training"), ("val", "validation"), ("VALID", "validation"),
        ("validation", "validation"), ("dev", "validation"), ("test", "test"), (" testing ", "test"),
        ("train_unlabelled", None), ("trains", None), ("", None), ("cat", None),
    ],
)  # fmt: skip
def test_names(name, part):
    assert part_of(name) == part


@pytest.mark.parametrize(
    ("stem", "part"),
    [
        ("train", "training"), ("train-00000-of-00002", "training"), ("training_1", "training"), ("train0", "training"),
        ("validation-00000-of-00001-0a1b2c", "validation"), ("Dev.3", "validation"), ("TEST-0", "test"),
        ("train_unlabelled-0", None), ("train-a", None), ("testset", None), ("pretrain-0", None), ("0000", None),
    ],
)  # fmt: skip
def test_files(stem, part):
    assert part_of_file(stem) == part


def test_one_name_for_each_part():
    check_one_name("x", ["val", "val"], "validation")
    with pytest.raises(
        InputError, match=r"^x: a validation part must have one name, but there are dev, val; keep one$"
    ):
        check_one_name("x", ["val", "dev", "val"], "validation")
