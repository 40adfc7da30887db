"""The recorded command holds no password, in whatever form the address was given."""

from __future__ import annotations

import sys

import pytest

from sweeps.utils.provenance import command


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tracking-uri", "postgresql://me:secret@host/db"],
        ["--tracking-uri=postgresql://me:secret@host/db"],
        ["--tracking-uri", "postgresql://host/db?user=me&password=secret"],
        ["--tracking-uri=postgresql://host/db?user=me&password=secret"],
    ],
)
def test_the_command_is_recorded_without_passwords(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["sweeps/run.py", "--space", "tt_dims", *arguments])
    recorded = command()
    assert recorded.startswith("python sweeps/run.py --space tt_dims ")
    assert "secret" not in recorded
    assert "host/db" in recorded
