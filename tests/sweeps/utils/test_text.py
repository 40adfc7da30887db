"""Durations and addresses as people write them."""

from __future__ import annotations

import pytest

from sweeps.utils.duration import format_duration
from sweeps.utils.uris import is_uri


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65.9, "1:05"), (3599, "59:59"), (7384, "2:03:04")])
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("location", "uri"), [("s3://b/p", True), ("studies/x", False), ("C:/x", False)])
def test_a_uri_is_told_from_a_folder(location, uri):
    assert is_uri(location) is uri
