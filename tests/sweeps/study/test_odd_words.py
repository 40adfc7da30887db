"""No path, name or number on any command line ends in a traceback, or in more than one clear line."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from analysis import __main__ as analysis, collate, compare, export, report
from lowrank import compress, count, predict
from lowrank.utils.atomic_files import MAX_FOLDERS
from lowrank.utils.cli import MESSAGE_CHARACTERS
from sweeps import run, spot, teacher
from sweeps.storage import __main__ as storage
from sweeps.study import start
from sweeps.study.command_line import make_parser
from sweeps.tracking import __main__ as tracking

PATHS = ("~nobody/x", "a\0b", "\ud800", "x" * 5000, "a/" * 2000, "/dev/null", "/proc/1/x", "-", "a\nb", "%s{0}", "é")
PLACES = ("s3://", "s3:///", "http://[", "sqlite:///", "file://x")
NUMBERS = ("1e400", "nan", "-1", "0", "99999999999999999999999", "1e-320")
WORDS = (*PATHS, *PLACES, *NUMBERS)
# Tasks of their own, flags without a value, and what a run without training does not come to
LEFT_OUT = {"help", "list", "json", "plan", "probe_memory", "test", "profile", "allow_code", "allow_open_ports",
            "space", "resume", "reproduce", "retrain_stopped", "sample", "repeat_more"}  # fmt: skip
STARTED = [action.option_strings[-1] for action in make_parser()._actions if action.dest not in LEFT_OUT]


@pytest.fixture
def faults(tmp_path, monkeypatch, capsys) -> Callable[..., list[str]]:
    """Runs a command with each word, and says what is no clear refusal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start, "run_study", lambda *_, **__: 0)

    def run_all(
        main: Callable[[Sequence[str]], int], make: Callable[[str], list[str]], words: Sequence[str] = WORDS
    ) -> list[str]:
        found = []
        for word in words:
            try:
                code = main(make(word))
            except SystemExit as ended:
                code = int(ended.code or 0)
            except Exception as error:  # which would be a traceback
                found.append(f"{word[:20]!r}: {type(error).__name__} {error}"[:300])
                continue
            message = capsys.readouterr().err.strip()
            if code not in (0, 1, 2) or (code == 2) != message.startswith("error: "):
                found.append(f"{word[:20]!r}: exit code {code}, {message[:200]!r}")
            if len(message) > MESSAGE_CHARACTERS or "\n" in message:
                found.append(f"{word[:20]!r}: {len(message)} characters, {message[:200]!r}")
        return found

    return run_all


@pytest.mark.parametrize("flag", STARTED)
def test_an_odd_word_for_a_study(flag, faults):
    words = WORDS if flag in ("--out", "--storage", "--tracking-uri", "--address", "--time") else (*PATHS[:5], *NUMBERS)
    assert (
        faults(run.main, lambda word: ["--space", "tt_dims", "--set", "references=[]", f"{flag}={word}"], words) == []
    )


@pytest.mark.parametrize("flags", [["--space"], ["--resume"], ["--retrain-stopped"], ["--reproduce"], ["--plan"]])
def test_an_odd_name_of_a_space_or_study(flags, faults):
    def make(word: str) -> list[str]:
        if flags == ["--reproduce"]:
            return ["--reproduce", f" {word}", f" {word}"]
        return ["--plan", f"--space={word}"] if flags == ["--plan"] else [f"{flags[0]}={word}"]

    assert faults(run.main, make) == []


@pytest.mark.parametrize("flag", ["--out", "--storage"])
def test_an_odd_place_of_a_study_that_goes_on(flag, faults):
    assert faults(run.main, lambda word: ["--resume", "x", f"{flag}={word}"]) == []


@pytest.mark.parametrize(
    ("main", "arguments", "flags"),
    [
        (count.main, ["--network", "resnet9"], ("--budget", "--network", "--method", "--data", "--classes", "--keep")),
        (predict.main, ["x", "y"], ("--class-names",)),
        (compress.main, ["--network", "resnet9", "--budget", "0.5", "--out", "o", "--weights", "w", "--data", "none:x"],
         ("--network", "--weights", "--data", "--data-dir", "--class-names", "--out", "--budget", "--method")),
        (teacher.main, ["--network", "resnet9", "--name", "n", "--data", "none:x"],
         ("--name", "--register", "--network", "--width", "--data", "--epochs", "--set", "--seed", "--teachers")),
        (spot.main, ["--accelerator", "L4", "--plan", "no"], ("--accelerator", "--gpus", "--rate", "--cluster")),
        (storage.main, ["place", "name"], ("--out",)),
        (tracking.main, ["study"], ("--tracking-uri",)),
        (report.main, ["--study", "s"], ("--study", "--out")),
        (compare.main, ["a", "b"], ("--out", "--studies")),
        (export.main, ["--study", "s"], ("--study", "--studies", "--out")),
        (collate.main, ["a", "b"], ("--studies", "--out")),
        *((analysis.main, [name, "s"], ("--studies", "--tracking-uri")) for name in analysis.COMMANDS),
    ],
)  # fmt: skip
def test_an_odd_word_for_another_command(main, arguments, flags, faults):
    for flag in flags:
        assert faults(main, lambda word, flag=flag: [*arguments, f"{flag}={word}"]) == []


@pytest.mark.parametrize(
    ("main", "before"),
    [(predict.main, []), (storage.main, ["place"]), (tracking.main, []),
     *((analysis.main, [name]) for name in analysis.COMMANDS)],
)  # fmt: skip
def test_an_odd_word_in_its_place(main, before, faults):
    assert faults(main, lambda word: [*before, "--", word, *["x"] * (main is predict.main)]) == []


def test_a_path_that_cannot_be_is_refused_by_every_parser(capsys):
    run_parser = make_parser()
    for flag in ("--out", "--data-dir", "--teachers", "--cache-dir"):
        for word, rule in (("a\0b", "no path may have"), ("x" * 300, "cannot be a path"),
                           ("a/" * MAX_FOLDERS, f"at most {MAX_FOLDERS} folders")):  # fmt: skip
            with pytest.raises(SystemExit):
                run_parser.parse_args([f"{flag}={word}"])
            message = capsys.readouterr().err
            assert f"error: argument {flag}: " in message
            assert rule in message
