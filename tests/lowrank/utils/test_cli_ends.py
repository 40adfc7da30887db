"""How a command ends: one line for the project's own errors, and output that the terminal cannot show."""

from __future__ import annotations

import io
import os
import pwd
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lowrank.errors import LowrankError, show_choices, show_value
from lowrank.utils import ExitCode, absolute_path, print_result, relative_path, results_alone, run_command
from lowrank.utils.cli import MESSAGE_CHARACTERS, report_error
from sweeps.records.journal import damage_error


def test_an_error_that_no_input_mends_is_one_line(capsys: pytest.CaptureFixture[str]):
    def fail() -> int:
        raise LowrankError("the training diverged\nat step 3")

    assert run_command(fail) is ExitCode.FAILED
    assert capsys.readouterr().err == "error: the training diverged at step 3\n"


def test_a_message_has_a_limit(capsys: pytest.CaptureFixture[str]):
    report_error(2, "begin " + "x" * 5000 + " end")
    message = capsys.readouterr().err.strip()
    assert len(message) == MESSAGE_CHARACTERS
    assert message.startswith("begin")
    assert message.endswith("end")


def test_a_terminal_of_ascii_shows_what_it_can(monkeypatch: pytest.MonkeyPatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii", write_through=True))
    assert run_command(lambda: print("5.2 ± 0.1 %") or 0) == 0
    assert buffer.getvalue() == b"5.2 ? 0.1 %\n"


def test_a_closed_pipe_ends_a_command_without_a_traceback(monkeypatch: pytest.MonkeyPatch):
    def write() -> int:
        raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", sys.stdout)
    assert run_command(write) is ExitCode.FAILED
    sys.stdout.close()  # what it was replaced by


def test_values_and_choices_in_messages_are_short():
    assert show_value("a") == "'a'"
    assert len(show_value("x" * 9999)) == len(show_value(list(range(9999)))) or len(show_value("x" * 9999)) <= 80
    names = [f"name_{number}" for number in range(200)]
    assert show_choices(names[:3]) == "name_0, name_1, name_2"
    assert show_choices(names, "name_177").startswith("name_177, ")
    assert show_choices(names, "name_177").endswith("... (200 in all)")


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "~nobody_of_this_name/x"])
def test_a_path_that_cannot_be_is_an_input_error(path: str):
    with pytest.raises(LowrankError, match="--weights"):
        absolute_path(path, "--weights")


def test_a_path_is_shown_as_one_would_type_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert relative_path(tmp_path / "here" / "a" / "b") == relative_path(Path("a/b")) == "a/b"
    assert relative_path(Path("../b")) == relative_path(tmp_path / "b") == str(tmp_path / "b")


def test_a_command_at_the_end_of_a_message_is_whole(capsys: pytest.CaptureFixture[str]):
    way_on = "; go on with: python sweeps/run.py --resume a --out " + "x" * 150
    assert report_error(3, "error: " + "y" * 400, way_on) == 3
    message = capsys.readouterr().err
    assert message.startswith("error: yyy")
    assert message.endswith(f"...{'y' * 32}{way_on}\n")
    assert len(message) == 301


def test_commands_within_a_message_are_whole(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    folder = tmp_path / ("x" * 100)
    error = damage_error(folder / "journal.jsonl", 7, 6374, "its checksum does not fit its content")
    report_error(2, f"error: {error}")
    assert capsys.readouterr().err == f"error: {error}\n"
    assert f"`python -m analysis repair {folder}` keeps" in str(error)
    report_error(2, f"error: {'y' * 400}; {error}")
    message = capsys.readouterr().err
    start = message.index("python -m analysis check")
    assert message[start:] == str(error)[str(error).index("python -m analysis check") :] + "\n"
    assert start == MESSAGE_CHARACTERS
    assert message.startswith("error: yyy")


def test_a_user_without_a_home_gets_a_folder_of_his_own(tmp_path, monkeypatch, capsys):
    """Ray and MLflow ask for the home when they are imported, and end in a traceback without one."""
    assert run_command(lambda: 0) == 0
    assert capsys.readouterr().err == ""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("HOME")
    assert run_command(lambda: 0) == 0
    home = tmp_path / f"home-{os.geteuid()}"
    assert Path.home() == home
    assert home.stat().st_mode & 0o777 == 0o700
    assert capsys.readouterr().err == f"this user has no home; what belongs there goes to {home}\n"
    home.rmdir()
    home.symlink_to(tmp_path)
    monkeypatch.delenv("HOME")
    assert run_command(lambda: 0) == 2
    assert "must be this user's own, but it belongs to another or is a link" in capsys.readouterr().err
    home.unlink()
    home.touch()
    assert run_command(lambda: 0) == 2
    assert capsys.readouterr().err == f"error: {home} must be a folder of this user, but is none; remove it\n"


@pytest.mark.parametrize("place", ["a file", "below a file", "ours"])
def test_the_compilers_folder_is_another_one_where_the_named_one_cannot_be_written(
    place, tmp_path, monkeypatch, capsys
):
    """The first step of any optimizer imports torch's compiler, which makes the folder."""
    file = tmp_path / "file"
    file.touch()
    named = {"a file": file, "below a file": file / "cache", "ours": tmp_path / "a" / "b"}[place]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(named))
    assert run_command(lambda: 0) == 0
    message, folder = capsys.readouterr().err, Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folder.is_dir()
    if place == "ours":
        assert (folder, message) == (named, "")
        return
    assert folder == tmp_path / f"compiled-{os.geteuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert message.startswith("TORCHINDUCTOR_CACHE_DIR cannot be written (")
    assert message.endswith(f"; compiled code goes to {folder}\n")
    assert message.count("\n") == 1


def test_what_a_network_prints_leaves_the_output_to_the_results(capsys):
    with results_alone(alone=True):
        print("forward of (1, 1, 8, 8)")
        print_result("{}")
    print_result("after")
    with results_alone(alone=False):
        print("for people")
    read = capsys.readouterr()
    assert (read.out, read.err) == ("{}\nafter\nfor people\n", "forward of (1, 1, 8, 8)\n")


def test_an_error_of_the_users_network_is_one_line_and_any_other_one_is_raised(tmp_path, capsys):
    file = tmp_path / "own_net.py"
    file.write_text("def forward(x):\n    raise ValueError('too many images\\nat once')\n")
    code: dict[str, Any] = {}
    exec(compile(file.read_text(), str(file), "exec"), code)
    network = nn.Identity()
    network.forward = code["forward"]
    assert run_command(lambda: network(1)) is ExitCode.BAD_INPUT
    line = "error: the network raises ValueError: too many images (own_net.py, line 2)\n"
    assert capsys.readouterr().err == line
    with pytest.raises(ValueError, match="too many images"):
        run_command(lambda: code["forward"](1))  # not within a network
    with pytest.raises(FileNotFoundError):
        run_command((tmp_path / "none").read_text)  # type: ignore[arg-type]
