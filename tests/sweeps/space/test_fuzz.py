"""A short run of the fuzzer: no input leads to a traceback, a long message, or much time or memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.cases import make_arguments, run_case


@pytest.mark.parametrize("kind", ["file", "set"])
@pytest.mark.parametrize("part", range(3))
def test_mutated_input_gives_one_clear_line(kind: str, part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    faults = []
    for index in range(part * 40, part * 40 + 40):
        outcome = run_case(kind, make_arguments(kind, 25, index, tmp_path))
        if outcome.fault:
            faults.append(f"{kind}:{index} {outcome.fault}: {outcome.detail[-300:]}")
    assert not faults
