"""Tables as CSV: UTF-8 whatever the locale, and no formulas from elsewhere."""

from __future__ import annotations

import csv

import pytest

from analysis.utils.csv_file import write_csv


@pytest.mark.parametrize("text", ["=1+1", "+1", "-2+3", "@SUM(A1)", "=cmd|' /C calc'!A0"])
def test_a_text_that_begins_like_a_formula_is_marked_as_text(text, tmp_path):
    write_csv(tmp_path / "a.csv", ["note"], [[text]])
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["note"], [f"'{text}"]]


def test_numbers_keep_their_sign_and_their_digits(tmp_path):
    rows = [[-0.1 - 0.2, None], [-3, True], ["a-b", ""]]
    write_csv(tmp_path / "a.csv", ["gap", "shown"], rows)
    expected = f"gap,shown\r\n{-0.1 - 0.2!r},\r\n-3,True\r\na-b,\r\n"
    assert (tmp_path / "a.csv").read_bytes() == expected.encode()


def test_text_is_utf_8_whatever_the_locale(tmp_path, monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda do_setlocale=True: "ascii")
    write_csv(tmp_path / "a.csv", ["budget"], [["≤ 100,000"]])
    assert "≤ 100,000".encode() in (tmp_path / "a.csv").read_bytes()


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path):
    write_csv(tmp_path / "a.csv", ["n"], [[1]])

    def rows():
        yield [2]
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_csv(tmp_path / "a.csv", ["n"], rows())
    assert (tmp_path / "a.csv").read_text() == "n\n1\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
