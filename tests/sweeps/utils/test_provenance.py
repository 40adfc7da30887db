"""The recorded command holds no password; changed code has another fingerprint."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sweeps.utils import provenance
from sweeps.utils.provenance import code_fingerprints, command


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


def test_changed_code_has_another_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PROJECT", tmp_path)
    for name in ("lowrank/a.py", "lowrank/b/c.py", "sweeps/a.py", "mine.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n")
    modules = {"mine": tmp_path / "mine.py"}
    before = code_fingerprints(modules)
    assert list(before) == ["lowrank", "mine", "sweeps"]
    assert all(len(digits) == 16 for digits in before.values())
    (tmp_path / "lowrank" / "__pycache__").mkdir()
    (tmp_path / "lowrank" / "notes.txt").write_text("no code")
    assert code_fingerprints(modules) == before
    (tmp_path / "mine.py").write_text("# other\n")
    (tmp_path / "lowrank" / "b" / "c.py").rename(tmp_path / "lowrank" / "b" / "d.py")
    after = code_fingerprints(modules)
    assert [name for name in before if before[name] != after[name]] == ["lowrank", "mine"]
