"""YAML from anybody is read within limits: plain values, or one short line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lowrank.errors import InputError
from sweeps.space.files import available_spaces, find_space, read_yaml
from sweeps.space.parse import read_space
from sweeps.utils.plain_yaml import MAX_BYTES, MAX_DEPTH, MAX_TEXT, MAX_VALUES, YamlError, dump_yaml, load_yaml

ALIASES = "[&a [x, x, x, x, x, x, x, x], " + "".join(
    f"&{name} [{', '.join(['*' + before] * 8)}], " for before, name in zip("abcdefgh", "bcdefghi", strict=True)
) + "1]"  # fmt: skip


@pytest.mark.parametrize("path", available_spaces().values(), ids=available_spaces())
def test_shipped_spaces_read_as_yaml_reads_them(path: Path):
    text = path.read_text()
    assert load_yaml(text) == yaml.safe_load(text)
    assert load_yaml(dump_yaml(load_yaml(text))) == load_yaml(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 0.0005), ("'5e-4'", "5e-4"), ("1_2", 12), ("'1_2'", "1_2"), ("2024-01-01", "2024-01-01"),
        ("{2024-01-01: 1, 7: 2, null: 3, yes: 4}", {"2024-01-01": 1, "7": 2, "null": 3, "yes": 4}), ("=", "="),
        ("[yes, Off, ~, 0x10, -1.5]", [True, False, None, 16, -1.5]), ("", None),
        ("{a: &b {x: 1, y: 2}, c: {<<: *b, x: 3}}", {"a": {"x": 1, "y": 2}, "c": {"x": 3, "y": 2}}),
    ],
)  # fmt: skip
def test_values_are_plain(text: str, value: object):
    assert load_yaml(text) == value
    assert type(load_yaml(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("&a [*a]", "a mapping or list contains itself in line 1, column 5"),
        (ALIASES, f"there must be at most {MAX_VALUES:,} values"),
        ("[" + "1, " * (MAX_VALUES + 1) + "]", f"there must be at most {MAX_VALUES:,} values"),
        ("[" * 5000, f"values must be nested at most {MAX_DEPTH} deep in line 1, column {MAX_DEPTH + 1}"),
        ("{a: " * 1500 + "1" + "}" * 1500, f"values must be nested at most {MAX_DEPTH} deep"),
        ("&a [1]\n--- 2", "expected a single document in the stream"),
        ("{[1]: x}", "a key must be a text, not a mapping or list"),
        ("{a: 1, a: 2}", "the key 'a' stands there twice in line 1, column 8"),
        ("!!int x", "'x' is no int"), ("!!bool x", "'x' is no bool"), ("!!float [1]", "a mapping or list is no float"),
        ("!!timestamp ''", "timestamp' is not one of plain values"), ("!!set {a}", "set' is not one of plain values"),
        ("!!python/name:os.system", "python/name:os.system' is not one of plain values"), ("!x y", "the tag '!x'"),
        ("1e308", "a number must be 0 or have a size from 1e-30 to 1e+30, but got 1e308"),
        ("5e-324", "a number must be 0 or have a size from 1e-30"), (".nan", "a number must be finite, but got .nan"),
        ("1e999", "a number must be finite"), ("9" * 5000, "a number must have at most 60 digits"),
        ('"a\\0b"', "control character '\\x00'"), ("a\ud800b", "characters that are not Unicode"),
        ("x" * 5000, f"a text must have at most {MAX_TEXT:,} characters, but has 5,000"),
        ("a: " + "x" * MAX_BYTES, f"it must have at most {MAX_BYTES:,} bytes"), ("a: b: c", "line 1, column 5"),
    ],
)  # fmt: skip
def test_what_is_beyond_a_limit_is_one_short_line(text: str, message: str):
    with pytest.raises(YamlError) as error:
        load_yaml(text)
    assert message in str(error.value)
    assert len(str(error.value)) < 250
    assert "\n" not in str(error.value)


def test_what_an_alias_repeats_can_be_changed_alone():
    content = load_yaml("{train: &a {lr: 1}, start: *a}")
    content["train"]["lr"] = 2
    assert content == {"train": {"lr": 2}, "start": {"lr": 1}}


def test_texts_that_look_like_numbers_are_written_as_texts():
    content = {"a": "5e-4", "b": "12", "c": "1_2", "d": "2024-01-01", "e": "no", "f": 5e-4, "g": 1e22, "h": "="}
    assert load_yaml(dump_yaml(content)) == content


def test_a_quoted_number_can_name_a_study():
    space = read_space("tt_dims", ['search.warm_start=["1_2", "2024"]', "search.sampler=tpe"])
    assert space.search.warm_start == ("1_2", "2024")


@pytest.mark.parametrize("name", ["a\0.yaml", "x" * 300 + ".yaml", "~nobody_of_this_name/a.yaml", "\ud800.yaml"])
def test_a_path_that_cannot_be_is_an_input_error(name: str):
    with pytest.raises(InputError, match="--space"):
        find_space(name)


def test_a_file_that_is_no_text_is_an_input_error(tmp_path: Path):
    (tmp_path / "a.yaml").write_bytes(b"question: \xff")
    with pytest.raises(InputError, match="it is no UTF-8: invalid start byte at byte 10"):
        read_yaml(tmp_path / "a.yaml")
