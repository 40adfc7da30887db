"""Errors on one line, sizes and counts, and addresses without passwords."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

import pytest

from lowrank.utils.text import (
    _is_user_code,
    first_line,
    format_bytes,
    format_count,
    format_counted,
    format_round_count,
    last_line,
    one_line,
    redact,
    redact_arguments,
)


def test_lines_of_an_error():
    error = ValueError("\nfirst  part\nsecond part\n")
    assert first_line(error) == "first  part"
    assert first_line(error, limit=5) == "first"
    assert last_line(error) == "second part"
    assert one_line(error) == "first part second part"
    assert one_line(ValueError("x" * 200)) == "x" * 157 + "..."


def test_an_error_without_text_is_named_by_its_class():
    assert first_line(KeyboardInterrupt()) == last_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert one_line(MemoryError()) == "MemoryError"


@pytest.mark.parametrize(
    ("count", "noun", "plural", "shown"),
    [
        (1, "epoch", None, "1 epoch"), (0, "epoch", None, "0 epochs"), (2_000, "epoch", None, "2,000 epochs"),
        (1.0, "GPU", None, "1 GPU"), (0.5, "CPU", None, "0.5 CPUs"), (1, "study", "studies", "1 study"),
        (3, "study", "studies", "3 studies"),
    ],
)  # fmt: skip
def test_a_noun_has_the_form_that_belongs_to_its_number(count, noun, plural, shown):
    assert format_counted(count, noun, plural) == shown


@pytest.mark.parametrize(("count", "shown"), [(45e6, "45.0 MB"), (999_999_999, "1000.0 MB"), (2.2e9, "2.2 GB")])
def test_bytes(count, shown):
    assert format_bytes(count) == shown


@pytest.mark.parametrize(
    ("count", "shown"), [(12, "12"), (44_214, "44.2k"), (999_999, "1.00M"), (6_571_968, "6.57M"), (263e6, "263M")]
)
def test_counts_have_three_digits(count, shown):
    assert format_count(count) == shown


@pytest.mark.parametrize(
    ("count", "shown"), [(0.5, "0.5"), (500, "500"), (50_000, "50k"), (1.5e6, "1.5M"), (2e9, "2G")]
)
def test_counts_of_an_axis_have_no_trailing_zeros(count, shown):
    assert format_round_count(count) == shown


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:secret@h/db", "postgresql://me:***@h/db"),
        ("postgresql+psycopg://me:s%40cret@h:5432/db?connect_timeout=3",
         "postgresql+psycopg://me:***@h:5432/db?connect_timeout=3"),
        ("postgresql://me:sec/ret@h/db", "postgresql://me:***@h/db"),
        ("postgresql://me:sec?ret@h/db?a=1", "postgresql://me:***@h/db?a=1"),
        ("postgresql://me:sec@ret@h/db", "postgresql://me:***@h/db"),
        ("postgresql://me:secret@h:port/db", "postgresql://me:***@h:port/db"),
        ("postgresql://h/db?user=u&password=secret", "postgresql://h/db?user=u&password=***"),
        ("postgresql://h/db?PassWd=secret&user=u", "postgresql://h/db?PassWd=***&user=u"),
        ("postgresql://me:secret@h/db?sslpassword=secret#x", "postgresql://me:***@h/db?sslpassword=***#x"),
        ("http://me:secret@127.0.0.1:9", "http://me:***@127.0.0.1:9"),
        ("http://me:sec@ret@127.0.0.1:9/path", "http://me:***@127.0.0.1:9/path"),
        ("https://h:5000/?token=secret", "https://h:5000/?token=***"),
        ("s3://key:secret@bucket/folder", "s3://key:***@bucket/folder"),
    ],
)  # fmt: skip
def test_passwords_are_hidden(uri, shown):
    assert redact(uri) == shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:////data/a@b/mlflow.db",
        "sqlite:////data/a:b@c/mlflow.db",
        "http://127.0.0.1:5000/a@b",
        "http://[::1]:5000",
        "mlflow-artifacts://host/a@b",
        "postgresql://me@h/db?connect_timeout=3",
        "databricks://profile",
        "s3://bucket/folder",
        "train.epochs=2",
        "tt_dims",
        "://@",
        "",
    ],
)
def test_what_has_no_password_stays_as_it_is(uri):
    assert redact(uri) == uri


def test_arguments_of_a_command_line():
    words = ["run.py", "--tracking-uri=postgresql://me:secret@h/db", "--set", "tracking_uri=http://me:secret@h",
             "postgresql://h/db?user=u&password=secret", "--out", "a=b@c", "train.epochs=2"]  # fmt: skip
    assert redact_arguments(words) == [
        "run.py", "--tracking-uri=postgresql://me:***@h/db", "--set", "tracking_uri=http://me:***@h",
        "postgresql://h/db?user=u&password=***", "--out", "a=b@c", "train.epochs=2",
    ]  # fmt: skip


def test_installed_code_is_none_of_the_users_where_the_environment_is_used_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "packages").symlink_to(sysconfig.get_paths()["purelib"])
    for path, expected in (("packages/torch/nn/functional.py", False), ("own.py", True)):
        assert _is_user_code(traceback.FrameSummary(str(tmp_path / path), 1, "forward")) is expected
