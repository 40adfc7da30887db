from __future__ import annotations

import io
import sys

import pytest

from analysis.__main__ import main
from tests.support.synthetic_study import Plan, write_study


class TestCommand:
    def test_summary_prints_and_writes(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write_study(tmp_path / "mine", Plan(trials=12))
        assert main(["summary", "mine", "--studies", str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert "At up to 60,480 parameters" in out
        assert out.endswith("written into mine: front.png, summary.csv\n")  # as one would type it
        assert (tmp_path / "mine" / "front.png").exists()
        assert (tmp_path / "mine" / "summary.csv").exists()

    @pytest.mark.parametrize(("typed", "is_printed"), [("\n", True), ("", False)], ids=["asked", "never"])
    def test_a_summary_may_wait_until_it_is_asked(self, typed, is_printed, tmp_path, capsys, monkeypatch):
        write_study(tmp_path / "mine", Plan(trials=4))
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        assert main(["summary", str(tmp_path / "mine"), "--when-asked"]) == 0
        assert bool(capsys.readouterr().out) == is_printed
        assert (tmp_path / "mine" / "summary.csv").exists() == is_printed

    def test_an_unknown_study_is_one_line_and_exit_code_2(self, tmp_path, capsys):
        write_study(tmp_path / "mine", Plan(trials=1))
        assert main(["summary", "yours", "--studies", str(tmp_path)]) == 2
        assert capsys.readouterr().err == "error: unknown study 'yours'; choose from: mine\n"

    def test_a_study_without_an_end_has_a_table_but_no_picture(self, tmp_path, capsys):
        write_study(tmp_path / "mine", Plan(trials=0, references=False, closed=None))
        assert main(["summary", str(tmp_path / "mine")]) == 0
        assert "no trial was completed" in capsys.readouterr().out
        assert not (tmp_path / "mine" / "front.png").exists()
