"""Text between two markers survives; text elsewhere is noticed; damaged markers are refused."""

from __future__ import annotations

import pytest

from analysis.research_log.handwritten import (
    SIGNATURE,
    OldLog,
    block,
    read_log,
    sealed,
    typed_takeaways,
    typed_todos,
)
from lowrank.errors import InputError

TEXT = "My *own* words\r\n\n- [ ] more seeds\n<!-- your text: b -->\nTakeaway: 3 dims suffice\n"


def log(**texts: str) -> str:
    blocks = "\n".join(f"### {key}\n\n{block(key, texts.get(key, ''))}" for key in ("a", "b"))
    return sealed(f"{SIGNATURE}\n\n# Research log\n\n{blocks}\n")


def write(tmp_path, content: str):
    path = tmp_path / "LOG.md"
    path.write_bytes(content.encode())
    return path


def test_a_missing_file_holds_no_text(tmp_path):
    assert read_log(tmp_path / "LOG.md") == OldLog({})


def test_texts_are_read_to_the_byte(tmp_path):
    assert read_log(write(tmp_path, log(a=TEXT, b="x\n"))) == OldLog({"a": TEXT, "b": "x\n"})


def test_text_elsewhere_is_noticed_and_other_line_ends_are_not(tmp_path):
    assert not read_log(write(tmp_path, log(a=TEXT).replace("\r\n", "\n").replace("\n", "\r\n"))).changed
    assert read_log(write(tmp_path, log(a=TEXT).replace("### b", "### b was good"))).changed
    assert read_log(write(tmp_path, log().rpartition("<!-- checksum")[0])).changed


@pytest.mark.parametrize(
    ("before", "line"), [("<!-- your text: a -->\n", 8), ("<!-- end of your text: b -->\n", 13)]
)  # fmt: skip
def test_a_marker_without_its_partner_is_named(tmp_path, before, line):
    path = write(tmp_path, log(a="mine\n").replace(before, ""))
    with pytest.raises(InputError, match=f"line {line}: the marker .* has no partner, .* nothing was written"):
        read_log(path)


@pytest.mark.parametrize("content", ["# My own file\n", "\udcff"])
def test_another_file_is_not_touched(tmp_path, content):
    path = tmp_path / "LOG.md"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"is another file|is no text in UTF-8"):
        read_log(path)


def test_two_blocks_of_one_entry_are_joined(tmp_path):
    content = log(a="one\n") + block("a", "two\n")
    assert read_log(write(tmp_path, content)).texts == {"a": "one\ntwo\n"}


def test_boxes_and_takeaways_are_found_in_a_text():
    text = "- [ ] more seeds\n* [x] done\n  - [ ] deeper\nTakeaway: one\n- takeaway:  two \nno takeaway: three\n"
    assert typed_todos(text) == ["more seeds", "deeper"]
    assert typed_takeaways(text) == ["one", "two"]
