"""The table of training speeds: what is measured, in which order, and what is said of a row that is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import measurement
from benchmarks.gpu.engine_table import TableRun, make_parser, rows_to_measure
from benchmarks.training.engine_processes import Case, TooLargeError
from benchmarks.training.step_traffic import step_bytes
from lowrank.networks.resnet9 import ResNet9

Answer = Callable[[str, Case, int], Any]


class AnsweringProcesses:
    """Processes whose answers a function makes; None: never."""

    def __init__(self, answer: Answer, count: int):
        self._answer, self._answers = answer, [[] for _ in range(count)]  # type: ignore[var-annotated]

    def __call__(self, which: range, name: str, case: Case) -> list[Any]:
        for number in which:
            self.ask(number, name, case)
        return self.answers(which)

    def ask(self, number: int, name: str, case: Case) -> None:
        self._answers[number].append(self._answer(name, case, number))

    def answers(self, which: range) -> list[Any]:
        answers = [self._answers[number].pop(0) for number in which]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def answer_of(self, number: int) -> Any:
        answer = self._answers[number][0] if self._answers[number] else None
        return None if answer is None else self._answers[number].pop(0)

    def kill(self) -> None:
        pass


def usual_answer(name: str, case: Case, number: int) -> Any:
    """What a process answers that has no trouble; a taught student trains at 80 % of a plain one."""
    answers = {
        "prepare": 3.0,
        "train": (80.0 if case.taught else 100.0, 5.0),
        "limit": (2.0, 1000.0),
        "losses": [2.0, 1.0],
    }
    return answers[name]


def table_run(out: Path, answer: Answer = usual_answer, *, compile_seconds: str = "10") -> TableRun:
    """A run over answering processes."""
    options = ["--out", str(out), "--tiny", "--seconds", "20", "--compile-seconds", compile_seconds]
    args = make_parser().parse_args(options)
    return TableRun(
        args, {}, "processes", lambda device, count, *others: AnsweringProcesses(answer, count)  # type: ignore[arg-type, return-value]
    )  # fmt: skip


def rows_of(out: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """The rows of the written table by way, taught and trials."""
    tables = json.loads((out / "engine_table.json").read_text())["tables"]
    return {(row["way"], row["taught"], row["trials"]): row for row in tables[0]["rows"]}


def test_every_row_is_timed_with_its_ratios_and_losses_are_compared(tmp_path):
    run = table_run(tmp_path)
    run.measure()
    rows = rows_of(tmp_path)
    assert list(rows) == [
        ("captured", "no", 1), ("captured", "no", 2), ("captured", "yes", 1), ("captured", "yes", 2), ("torch", "no", 1)
    ]  # fmt: skip
    assert rows["captured", "yes", 2]["images/s"] == 160
    assert rows["captured", "yes", 2]["of plain"] == pytest.approx(0.8)
    assert rows["captured", "no", 1]["of limit"] == pytest.approx(100 / 500)
    assert rows["captured", "no", 1]["of plain"] is None
    assert [note.split(" against")[0] for note in run.notes if "against plain" in note] == [
        "vit, captured", "vit, captured, taught"
    ]  # fmt: skip
    assert "torch_compile" not in (tmp_path / "engine_table.txt").read_text()


def test_a_row_that_fails_is_named_and_the_others_are_measured(tmp_path):
    def answer(name: str, case: Case, number: int) -> Any:
        if name == "prepare" and case.way == "torch":
            return ValueError("no such mode")
        if name == "train" and case.taught and number == 0:
            return TooLargeError("out of memory")
        return usual_answer(name, case, number)

    run = table_run(tmp_path, answer)
    run.measure()
    assert list(rows_of(tmp_path)) == [("captured", "no", 1), ("captured", "no", 2)]
    assert "left out: vit, torch: no such mode" in run.notes
    assert "left out: vit, captured, taught: TooLargeError: out of memory" in run.notes


def test_a_process_that_fails_beside_others_leaves_no_answer_for_the_next_command(tmp_path):
    trained: dict[bool, int] = {}

    def answer(name: str, case: Case, number: int) -> Any:
        if name == "train":
            trained[case.taught] = trained.get(case.taught, 0) + 1
            if trained[case.taught] == 3 and not case.taught:  # one trial alone, its own of two, the further one
                return TooLargeError("out of memory")
        return usual_answer(name, case, number)

    run = table_run(tmp_path, answer)
    run.measure()
    assert ("captured", "no", 2) not in rows_of(tmp_path)
    assert any(note.startswith("vit, captured against plain") for note in run.notes)  # losses, not a speed


def test_what_has_no_code_after_its_limit_is_left_out(tmp_path):
    def answer(name: str, case: Case, number: int) -> Any:
        return None if name == "prepare" and case.way == "torch" else usual_answer(name, case, number)

    run = table_run(tmp_path, answer, compile_seconds="0.2")
    run.measure()
    assert "left out: vit, torch: no code after 0 s" in run.notes
    assert ("captured", "no", 1) in rows_of(tmp_path)


def test_a_row_timed_beside_others_is_timed_again_when_fewer_compile(tmp_path):
    speeds = iter([90.0])

    def answer(name: str, case: Case, number: int) -> Any:
        if name == "prepare" and case.way == "torch":
            return None  # compiles for the whole time
        if name == "train" and not case.taught:
            return next(speeds, 100.0), 5.0
        return usual_answer(name, case, number)

    run = table_run(tmp_path, answer, compile_seconds="0.2")
    run.measure()
    row = rows_of(tmp_path)["captured", "no", 1]
    assert (row["images/s"], row["beside"]) == (100.0, 0)
    assert any("90 images/s beside 1 processes" in note for note in run.notes)


def test_the_table_begins_with_what_matters_most():
    rows = rows_to_measure(make_parser().parse_args(["--out", "x"]))
    assert [row.name for row in rows][:7] == [
        "resnet9, compiled", "resnet9, compiled, taught", "wrn_28_10, compiled", "vit, compiled",
        "torchvision:resnet18, compiled", "darts, compiled", "wrn_28_10, compiled, taught",
    ]  # fmt: skip
    assert len({row.name for row in rows}) == len(rows) == 15


def test_the_limit_of_a_taught_student_counts_each_tap_once():
    network = ResNet9(3, 10, width=0.25)
    plain = step_bytes(network, (3, 32, 32), 2)
    taught = step_bytes(network, (3, 32, 32), 2, ResNet9.taps)
    assert taught - plain == 2 * (32 * 16 * 16 + 64 * 8 * 8 + 128 * 4 * 4)


@pytest.mark.parametrize(
    ("program", "shown"),
    [
        ("benchmarks/gpu/engine_table.py", "python -m benchmarks.gpu.engine_table --tiny"),
        ("benchmarks/__main__.py", "python -m benchmarks --tiny"),
    ],
)
def test_the_header_shows_a_command_without_the_paths_of_this_machine(program, shown, monkeypatch):
    monkeypatch.setattr("sys.argv", [str(measurement.PROJECT / program), "--tiny"])
    assert measurement.command() == shown
