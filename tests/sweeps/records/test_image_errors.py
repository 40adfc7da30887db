"""Which images were wrong: written, read back, and held to the error on record."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies

from lowrank.errors import InputError
from sweeps.records.image_errors import decode_wrong_images, encode_wrong_images, wrong_images
from sweeps.records.names import RESULTS_FILE
from sweeps.records.tables import read_tables, write_tables
from tests.support.journals import fold_events

PROPOSED = {
    "event": "proposed", "time": 1.0, "trial": "t", "role": "search", "stratum": "s", "parameters": {},
    "specification": {}, "counts": {}, "proposal": {},
}  # fmt: skip
EPOCH = {"event": "epoch", "time": 2.0, "trial": "t", "epoch": 1, "metrics": {"val_error": 25.0}}
WRONG = np.array([False, True, False, False])


def finished(**fields):
    return {"event": "finished", "time": 3.0, "trial": "t", "status": "completed", **fields}


def study_with(*events):
    return fold_events([{"event": "study", "time": 0.5, "name": "a"}, PROPOSED, EPOCH, *events])


@given(strategies.lists(strategies.booleans(), max_size=70))
def test_bits_come_back_as_they_were(bits):
    wrong = np.array(bits, dtype=bool)
    read = decode_wrong_images(encode_wrong_images(wrong))
    assert read.dtype == bool
    assert read.tolist() == bits


def test_ten_thousand_images_take_less_than_a_kilobyte():
    wrong = np.random.default_rng(0).random(10_000) < 0.05
    assert len(encode_wrong_images(wrong)) < 1000


def test_each_split_has_its_own_and_an_old_study_has_none():
    tested = {"event": "tested", "time": 4.0, "trial": "t", "test_error": 50.0}
    old = study_with(finished(), tested)
    assert wrong_images(old, "t", "val") is None
    assert wrong_images(old, "t", "test") is None
    test = np.array([True, False])
    new = study_with(
        finished(wrong_images=encode_wrong_images(WRONG)), {**tested, "wrong_images": encode_wrong_images(test)}
    )
    assert wrong_images(new, "t").tolist() == WRONG.tolist()
    assert wrong_images(new, "t", "test").tolist() == test.tolist()


def test_an_end_without_bits_drops_those_of_an_earlier_end():
    study = study_with(finished(wrong_images=encode_wrong_images(WRONG)), finished())
    assert wrong_images(study, "t") is None


@pytest.mark.parametrize("text", ["", "4", "4:", "x:eJw=", "4:!!", "9:" + encode_wrong_images(WRONG)[2:]])
def test_damaged_bits_are_one_line(text):
    with pytest.raises(InputError, match="the record of wrong images must be COUNT:BITS, but is"):
        decode_wrong_images(text)


def test_bits_of_another_error_than_the_recorded_one_are_refused():
    study = study_with(finished(wrong_images=encode_wrong_images(~WRONG)))
    with pytest.raises(InputError, match="must give the recorded error of 25 %, but give 75 %"):
        wrong_images(study, "t")


def test_unknown_trials_and_splits_are_refused():
    study = study_with(finished())
    with pytest.raises(InputError, match="unknown trial 'u'"):
        wrong_images(study, "u")
    with pytest.raises(InputError, match="train"):
        wrong_images(study, "t", "train")


def test_tables_give_them_back_and_tables_of_earlier_versions_are_read(tmp_path):
    study = study_with(finished(wrong_images=encode_wrong_images(WRONG)))
    write_tables(study, tmp_path)
    assert read_tables(tmp_path).trials == study.trials
    table = pq.read_table(tmp_path / RESULTS_FILE)
    pq.write_table(table.drop_columns(["wrong_images"]), tmp_path / RESULTS_FILE)
    assert wrong_images(read_tables(tmp_path), "t") is None
