"""The comparison with torch.compile: in which order it works, what it leaves out, and that it keeps its time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import against_torch
from benchmarks.gpu.against_torch import BEST, COMPILED, NO_VIEWS, STEPS, TORCH_COMPILE, Comparison, main, make_parser
from benchmarks.training.engine_processes import Case, WorkerError

NETWORKS = (
    "torchvision:vit_b_16", "torchvision:convnext_tiny", "torchvision:mobilenet_v3_small", "torchvision:resnet18",
    "vit",
)  # fmt: skip
SPEEDS = {COMPILED: 90.0, NO_VIEWS: 110.0, TORCH_COMPILE: 100.0, BEST: 120.0}
NEVER = 1e9
EPOCH_SECONDS = 0.1

Key = tuple[str, str]


class Clock:
    """In the place of the module `time`: only a sleep makes time pass."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Machine:
    """What processes do: seconds that each way compiles, and what it answers to a command instead of the usual."""

    clock: Clock
    compile_seconds: Callable[[Key], float] = lambda key: 50.0
    instead: Callable[[Key, str, int], tuple[float, Any] | None] = lambda key, name, count: None
    log: list[tuple[Key, str]] = field(default_factory=list)
    running: set[Key] = field(default_factory=set)

    def answer(self, key: Key, name: str, case: Case) -> tuple[float, Any]:
        """Seconds until a command is answered, and the answer."""
        self.log.append((key, name))
        instead = self.instead(key, name, self.log.count((key, name)))
        if instead is not None:
            return instead
        if name == "compile":
            return self.compile_seconds(key), (self.compile_seconds(key), [])
        return case.seconds + EPOCH_SECONDS, (SPEEDS[key[1]], 5.0)


class SimulatedProcess:
    """One process of a machine."""

    def __init__(self, machine: Machine):
        self.machine, self.ready, self.key = machine, NEVER, ("", "")
        self.value: Any = None

    def ask(self, number: int, name: str, case: Case) -> None:
        self.key = case.network, case.way if case.views else NO_VIEWS
        self.machine.running.add(self.key)
        seconds, self.value = self.machine.answer(self.key, name, case)
        self.ready = self.machine.clock.now + seconds

    def answer_of(self, number: int) -> Any:
        if self.machine.clock.now < self.ready:
            return None
        self.ready = NEVER
        return self.value

    def kill(self, *, wait: bool = True) -> None:
        self.machine.running.discard(self.key)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine of 16 cores whose clock stands still."""
    clock = Clock()
    monkeypatch.setattr(against_torch, "time", clock)
    monkeypatch.setattr(against_torch, "usable_cores", lambda: 16)
    return Machine(clock)


def compare(machine: Machine, out: Path, *options: str) -> Comparison:
    """A run over a machine; it ends all processes and keeps its time."""
    args = make_parser().parse_args(["--out", str(out), *options])
    comparison = Comparison(args, lambda *_: SimulatedProcess(machine))  # type: ignore[arg-type, return-value]
    comparison.measure()
    assert not machine.running
    assert machine.clock.now <= comparison.until
    return comparison


def rounds_of(comparison: Comparison) -> dict[str, int]:
    return {network.name: len(network.rounds) for network in comparison.networks}


def begun(machine: Machine) -> list[Key]:
    """Networks and ways in the order in which they began to compile."""
    return [key for key, name in machine.log if name == "compile"]


def test_all_are_timed_in_turns_when_nothing_compiles_any_more(machine, tmp_path):
    comparison = compare(machine, tmp_path)
    assert tuple(rounds_of(comparison)) == NETWORKS
    assert min(rounds_of(comparison).values()) >= 5
    first = comparison.networks[0]
    assert {one.beside for network in comparison.networks for one in network.rounds} == {0}
    turns = [key[1] for key, name in machine.log if name == "train" and key[0] == first.name]
    assert turns[4:12] == [*STEPS, *reversed(STEPS)]  # after one epoch of each, which is not counted


def test_the_record_has_medians_ratios_and_rounds(machine, tmp_path):
    compare(machine, tmp_path, "--network", "vit")
    record = json.loads((tmp_path / "against_torch.json").read_text())
    speeds, ratios, rounds = (table["rows"] for table in record["tables"])
    assert [(row["way"], row["images/s"]) for row in speeds] == list(SPEEDS.items())
    assert {(row["way"], row["against"]): row["median"] for row in ratios} == pytest.approx({
        (COMPILED, TORCH_COMPILE): 0.9, (COMPILED, BEST): 0.75, (NO_VIEWS, TORCH_COMPILE): 1.1,
        (NO_VIEWS, BEST): 11 / 12,
    })  # fmt: skip
    assert len(rounds) == 9
    assert rounds[0] == {"network": "vit", "round": 1, "beside": 0, **SPEEDS}
    assert record["notes"] == ["slower than torch_compile, of 2 compared: vit, compiled (0.900)"]


def test_a_ratio_is_taken_within_a_round(machine, tmp_path):
    machine.instead = lambda key, name, count: (1.5, (SPEEDS[key[1]] * count, 5.0)) if name == "train" else None
    comparison = compare(machine, tmp_path, "--network", "vit")
    assert comparison.networks[0].ratios(NO_VIEWS, TORCH_COMPILE) == pytest.approx([1.1] * 9)


def test_what_compiles_longest_begins_first_and_the_way_that_reads_code_last(machine, tmp_path):
    compare(machine, tmp_path)
    order = begun(machine)
    assert [network for network, _ in order[:9:3]] == list(NETWORKS[:3])
    assert {way for _, way in order[15:]} == {NO_VIEWS}
    assert len(order) == len(set(order)) == 20


def test_timing_begins_beside_what_compiles_where_time_would_not_suffice(machine, tmp_path):
    machine.compile_seconds = lambda key: 190.0 if key == ("torchvision:vit_b_16", BEST) else 50.0
    comparison = compare(machine, tmp_path)
    assert min(rounds_of(comparison).values()) >= 4
    beside = {network.name: {one.beside for one in network.rounds} for network in comparison.networks}
    assert beside["torchvision:convnext_tiny"] == {1}
    assert beside["torchvision:vit_b_16"] == {0}
    assert len(comparison.networks[0].rounds[0].speeds) == 4


def test_a_way_that_fails_is_named_and_its_network_is_timed_without_it(machine, tmp_path):
    key = ("torchvision:vit_b_16", TORCH_COMPILE)
    machine.instead = lambda one, name, count: (3.0, WorkerError("ValueError: no such mode")) if one == key else None
    comparison = compare(machine, tmp_path)
    assert comparison.notes == ["left out: torchvision:vit_b_16, torch_compile: ValueError: no such mode"]
    assert set(comparison.networks[0].rounds[0].speeds) == {COMPILED, NO_VIEWS, BEST}
    trained = [key[0] for key, name in machine.log if name == "train"]
    assert trained[-1] == "torchvision:vit_b_16"  # networks with all ways come first
    assert min(rounds_of(comparison).values()) >= 5


def test_a_network_is_timed_without_a_way_that_has_no_code_in_time(machine, tmp_path):
    machine.compile_seconds = lambda key: NEVER if key[0] == "vit" and key[1] == BEST else 50.0
    comparison = compare(machine, tmp_path)
    assert rounds_of(comparison)["vit"] >= 3
    assert set(comparison.networks[-1].rounds[0].speeds) == {COMPILED, NO_VIEWS, TORCH_COMPILE}
    (note,) = comparison.notes
    assert note.startswith("left out: vit, best: no code after 1")


def test_a_network_without_any_code_takes_no_time_from_one_that_waits(machine, tmp_path):
    machine.compile_seconds = lambda key: NEVER if key[0] == NETWORKS[0] or key == ("vit", BEST) else 50.0
    comparison = compare(machine, tmp_path)
    assert rounds_of(comparison)["vit"] >= 3
    assert sum(note.startswith(f"left out: {NETWORKS[0]}") for note in comparison.notes) == 4


def test_a_limit_before_anything_has_code_names_all(machine, tmp_path):
    comparison = compare(machine, tmp_path, "--seconds", "40")
    assert set(rounds_of(comparison).values()) == {0}
    assert len(comparison.notes) == 20
    assert "left out: torchvision:vit_b_16, compiled: no code after 34 s" in comparison.notes
    assert "left out: vit, compiled, no views: never began to compile" in comparison.notes
    assert comparison.record().notes[0] == "nothing was compared with torch_compile"


def test_short_time_leaves_out_rounds_and_no_network(machine, tmp_path):
    machine.compile_seconds = lambda key: 20.0
    comparison = compare(machine, tmp_path, "--seconds", "150")
    assert all(1 <= rounds < 5 for rounds in rounds_of(comparison).values())
    assert not comparison.notes


def test_a_process_that_ends_while_it_is_timed_leaves_its_rounds_and_the_other_ways(machine, tmp_path):
    key = ("vit", BEST)
    machine.instead = lambda one, name, count: (
        (0.5, RuntimeError("the process has ended with exit code -11"))
        if (one, name, count) == (key, "train", 4) else None
    )  # fmt: skip
    comparison = compare(machine, tmp_path, "--network", "vit")
    network = comparison.networks[0]
    assert comparison.notes == ["left out: vit, best: the process has ended with exit code -11"]
    assert {way: len(network.speeds(way)) for way in STEPS} == {COMPILED: 9, NO_VIEWS: 9, TORCH_COMPILE: 9, BEST: 2}


def test_a_process_that_hangs_is_left_out_and_the_others_go_on(machine, tmp_path):
    key = ("vit", COMPILED)
    machine.instead = lambda one, name, count: (NEVER, None) if (one, name, count) == (key, "train", 3) else None
    comparison = compare(machine, tmp_path, "--network", "vit")
    network = comparison.networks[0]
    assert comparison.notes == ["left out: vit, compiled: no answer after 20 s"]
    assert {way: len(network.speeds(way)) for way in STEPS} == {COMPILED: 1, NO_VIEWS: 9, TORCH_COMPILE: 9, BEST: 9}


def test_processes_that_all_fail_end_the_run_at_once(machine, tmp_path):
    machine.instead = lambda key, name, count: (1.0, WorkerError("RuntimeError: no GPU"))
    comparison = compare(machine, tmp_path)
    assert len(comparison.notes) == 20
    assert comparison.until - machine.clock.now > 240


def test_the_trainers_warnings_are_in_the_record(machine, tmp_path):
    notice = "training is not compiled, and so is slower"
    machine.instead = lambda key, name, count: (
        (5.0, (5.0, [notice])) if (key[1], name) == (COMPILED, "compile") else None
    )  # fmt: skip
    comparison = compare(machine, tmp_path, "--network", "resnet18")
    assert comparison.notes == [f"torchvision:resnet18, compiled: {notice}"]


def test_an_unknown_network_is_refused_with_the_choices(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path), "--network", "resnet19"])
    assert ended.value.code == 2
    assert "torchvision:resnet18, vit" in capsys.readouterr().err
