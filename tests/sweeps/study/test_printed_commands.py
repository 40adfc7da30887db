"""Commands that are printed can be given to a shell as they stand, whatever the folders and names in them."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeps.records.study_folders import resume_command
from sweeps.space import parse_space
from sweeps.study.driver import CloseReason, _print_next_step
from sweeps.tracking.process import catch_up_command
from tests.support.studies import ROOT

COMMAND = re.compile(r"python (-m [\w.]+|[\w/]+\.py)")
QUOTED = re.compile(r"shlex\.(quote|join)\(")
# Quoted before, or of programs and not of users: a number, the name of a script, a command or an option
PLAIN = {"quoted", "command", "more", "name", "note.note_id", "permissions", "space.network.width", "width"}
ODD_NAMES = ["q?x", "50% done", "a #1", "$HOME", "it's", 'say "a"', "a;b", "ünïcode"]


def unquoted(path: Path) -> list[str]:
    """The expressions in printed commands of a file that a shell might read as something else."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.JoinedStr):
            continue
        in_command = False
        for part in node.values:
            if isinstance(part, ast.Constant):
                in_command = (in_command and "`" not in str(part.value)) or bool(COMMAND.search(str(part.value)))
            elif in_command and not QUOTED.match(text := ast.unparse(part.value)) and text not in PLAIN:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {text}")
    return found


def test_what_users_name_is_quoted_in_printed_commands():
    files = [path for folder in ("lowrank", "sweeps", "analysis") for path in (ROOT / folder).rglob("*.py")]
    assert any(COMMAND.search(path.read_text()) for path in files)
    assert [line for path in files for line in unquoted(path)] == []


def test_an_unquoted_folder_would_be_noticed(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "a.py").write_text('print(f"give: python -m sweeps.tracking {folder}; then {other}")')
    assert unquoted(tmp_path / "a.py") == ["a.py:1 folder", "a.py:1 other"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_shell_reads_folders_and_storages_as_they_are(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(resume_command(tmp_path / name / "a", f"s3://bucket/{name}"))
    assert words == ["python", "sweeps/run.py", "--resume", "a", "--out", name, "--storage", f"s3://bucket/{name}"]
    words = shlex.split(catch_up_command(tmp_path / name / "a", f"sqlite:///{tmp_path}/{name}.db"))
    assert words[-3:] == [str(tmp_path / name / "a"), "--tracking-uri", f"sqlite:///{tmp_path}/{name}.db"]


@pytest.mark.parametrize(("network", "permission"), [("resnet9", ""), ("my_net.py:make", " --allow-code")])
def test_a_study_with_a_front_ends_with_the_command_that_exports_it(
    content, network, permission, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    space = parse_space("small", {**content, "network": {"name": network}})
    config = SimpleNamespace(folder=tmp_path / "a b", tracking_uri=None, storage=None)
    _print_next_step(space, config, CloseReason.FINISHED, None)
    assert "export" not in capsys.readouterr().out
    (config.folder / "models").mkdir(parents=True)
    _print_next_step(space, config, CloseReason.FINISHED, None)
    line = f"weights, ONNX and a model card of the best network: python -m analysis export --study 'a b'{permission}"
    assert line in capsys.readouterr().out.splitlines()
