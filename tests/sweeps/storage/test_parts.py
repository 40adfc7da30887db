"""A growing file is put together from its parts, or it is said what is missing."""

from __future__ import annotations

import pytest

from sweeps.storage.parts import PartsError, highest_driver, join_order, part_name


def sizes(*parts: tuple[int, int, int]) -> dict[str, int]:
    """Parts as offset, driver and size."""
    return {part_name("journal.jsonl", offset, driver): size for offset, driver, size in parts}


def ranges(names: dict[str, int]) -> list[tuple[int, int, int]]:
    return [(part.offset, part.driver, part.size) for part in join_order(names)]


def test_parts_are_joined_in_the_order_of_their_offsets():
    assert ranges(sizes((10, 1, 5), (0, 1, 10), (15, 2, 3))) == [(0, 1, 10), (10, 1, 5), (15, 2, 3)]


def test_names_without_a_number_are_those_of_an_older_version():
    assert ranges({"journal.jsonl.parts/000000000000000": 4, **sizes((4, 1, 2))}) == [(0, 0, 4), (4, 1, 2)]


def test_nothing_is_stored():
    assert join_order({}) == []
    assert highest_driver([]) == 0


@pytest.mark.parametrize(
    ("late", "joined"),
    [
        ([(10, 1, 9)], [(0, 1, 10), (10, 1, 4), (14, 2, 6)]),  # its last part has grown
        ([(10, 1, 4), (14, 1, 9)], [(0, 1, 10), (10, 1, 4), (14, 2, 6)]),  # a new one begins where ours does
        ([(10, 1, 4), (16, 1, 9)], [(0, 1, 10), (10, 1, 4), (14, 2, 6)]),  # a new one begins behind
    ],
)
def test_what_a_driver_writes_after_it_has_lost_the_study_is_not_read(late, joined):
    assert ranges(sizes((0, 1, 10), *late, (14, 2, 6))) == joined


def test_a_file_that_is_stored_anew_hides_all_older_parts():
    assert ranges(sizes((0, 1, 10), (20, 1, 5), (0, 2, 30), (30, 2, 1))) == [(0, 2, 30), (30, 2, 1)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (sizes((0, 1, 10), (15, 1, 5)), r"begins at byte 15 where byte 10 is next: a part before it is missing"),
        (sizes((5, 1, 5)), r"begins at byte 5 where byte 0 is next: a part before it is missing"),
        (sizes((0, 1, 10), (8, 1, 5)), r"begins at byte 8 where byte 10 is next: a part is there twice"),
        (sizes((0, 1, 10), (12, 2, 5)), r"begins at byte 12 where byte 10 is next: a part before it is missing"),
        ({"journal.jsonl.parts/copy of 0": 3}, r"copy of 0 is not the name of a part"),
    ],
)  # fmt: skip
def test_gaps_overlaps_and_foreign_names_are_refused(names, message):
    with pytest.raises(PartsError, match=message):
        join_order(names)


def test_the_last_driver_is_known_from_the_parts():
    assert highest_driver(sizes((0, 1, 10), (10, 7, 5), (15, 2, 1))) == 7
