"""The benchmark of single layers and the table of methods, in their smallest form; no time is asserted."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.layers import all_at_once, methods_table, one_by_one, other_libraries
from benchmarks.layers.one_by_one import Layer
from benchmarks.measurement import Options, header, show
from lowrank.compression.budget import Budget, solve
from lowrank.compression.trace import network_plan
from lowrank.layers import ConvShape
from lowrank.layers.registry import METHODS, make_method
from lowrank.networks.registry import NetworkSettings

QUICK = Options(quick=True)


def test_every_method_has_a_row_or_a_reason() -> None:
    found = one_by_one.run(QUICK)
    assert [table.rows[0]["how"] for table in found.tables] == [
        "one by one, summed", "weights alone, one by one, summed", "all in one step, rebuilt together"
    ]  # fmt: skip
    said = " ".join(found.notes)
    assert {row["method"] for row in found.tables[1].rows} >= {
        "tensor_train",
        "tucker",
        "cp",
        "  tntorch reconstructed",
    }
    assert all(row["fastest ms"] > 0 for row in found.tables[1].rows)
    for table in (found.tables[0], found.tables[2]):
        rows = {row["method"]: row for row in table.rows}
        assert all(name in rows or name in said for name in METHODS if name != "separable")
        assert rows["dense"]["x dense"] == 1
        assert all(math.isfinite(row["x dense"]) and row["x dense"] > 0 for row in table.rows)
    assert {goal.limit for goal in found.goals} <= {1.0, 1.15, 1.5}
    around = {"date": "", "cpu": "", "cores": 1, "gpus": [], "versions": {}, "load": [0.0], "command": "c"}
    show(found, header(around, found.settings, [0.0]), bench_layers_console())


def bench_layers_console() -> methods_table.Console:
    """A console that keeps quiet."""
    return methods_table.Console(file=io.StringIO(), width=120)


def test_layers_are_counted_as_often_as_they_occur() -> None:
    case = one_by_one.cases(Options())[1]
    assert sum(case.layers.values()) == 24
    assert case.layers[Layer(640, 640, 8)] == 7
    assert case.params == 700_000


def test_a_layer_that_fails_costs_its_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = one_by_one.built

    def breaks(method: object, shape: ConvShape) -> nn.Module:
        if method.name == "tucker":  # type: ignore[attr-defined]
            raise RuntimeError("no kernel")
        return real(method, shape)  # type: ignore[arg-type]

    monkeypatch.setattr(one_by_one, "built", breaks)
    (case,) = one_by_one.cases(QUICK)
    methods = {name: make_method({"name": name}) for name in ("dense", "tucker")}
    timed = one_by_one.measure(case, methods, QUICK, peers=False)
    assert set(timed.middle) == set(timed.fastest) == {"dense"}
    assert "no kernel" in timed.failed["tucker"]


def test_a_method_that_fails_among_all_layers_costs_its_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = all_at_once.make_step

    def breaks(modules: list[nn.Module], *rest: object) -> Callable[[], object]:
        if any("Tucker" in type(module).__name__ for module in modules):
            raise RuntimeError("no kernel")
        return real(modules, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(all_at_once, "make_step", breaks)
    (case,) = one_by_one.cases(QUICK)
    methods = {name: make_method({"name": name}) for name in ("dense", "tucker")}
    timed = all_at_once.measure_together(case, methods, QUICK, peers=False)
    assert set(timed.middle) == {"dense"}
    assert "no kernel" in timed.failed["tucker"]


def test_a_peers_weight_is_rebuilt_before_the_first_layer_and_once() -> None:
    weights: list[torch.Tensor] = []

    def rebuild() -> torch.Tensor:
        weights.append(torch.ones(2, 2))
        return weights[-1]

    network = nn.ModuleList([other_libraries.Rebuilt(nn.ParameterList(), rebuild, (2, 2)) for _ in range(3)])
    with all_at_once.rebuilt_before(network, []):
        assert len(weights) == 3
        for layer in network:
            assert layer(torch.ones(1, 2, 1, 1)).flatten().tolist() == [2, 2]
        assert len(weights) == 3
    network[0](torch.ones(1, 2, 1, 1))
    assert len(weights) == 4


def test_what_is_very_slow_runs_only_once() -> None:
    seconds = {"dense": [0.1, 0.1, 0.1], "slow": [9.0]}
    left = {name: iter(values) for name, values in seconds.items()}
    steps: dict[str, Callable[[], object]] = {
        name: (lambda values=values: next(values)) for name, values in left.items()
    }
    real = one_by_one.seconds_of
    try:
        one_by_one.seconds_of = lambda step, device: step()  # type: ignore[assignment,return-value]
        assert one_by_one.in_turn(steps, "cpu", 2) == {"dense": [0.1, 0.1], "slow": [9.0]}
    finally:
        one_by_one.seconds_of = real


class FakeCuda:
    """Enough of torch.cuda to see in which order a step is captured."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def current_stream(self) -> FakeCuda:
        return self

    Stream = CUDAGraph = current_stream

    def wait_stream(self, other: FakeCuda) -> None:
        self.log.append("wait")

    def replay(self) -> None:
        self.log.append("replay")

    @contextmanager
    def graph(self, graph: FakeCuda, pool: object):  # type: ignore[no-untyped-def]
        self.log.append("begin")
        yield
        self.log.append("end")

    @contextmanager
    def stream(self, side: FakeCuda):  # type: ignore[no-untyped-def]
        self.log.append("side")
        yield


def test_a_step_is_captured_after_runs_on_a_side_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    for name in ("Stream", "current_stream", "CUDAGraph", "graph", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    one_by_one.captured(lambda: fake.log.append("step"), warm_ups=2)()
    assert fake.log == ["wait", "side", "step", "step", "wait", "begin", "step", "end", "replay"]


@pytest.mark.parametrize("name", ["tensor_train", "tucker", "cp", "bottleneck"])
def test_peers_take_the_same_images(name: str) -> None:
    for build in other_libraries.peers_of(make_method({"name": name, "rank_scale": 0.5}), 16, 32).values():
        assert build()(torch.randn(2, 16, 3, 3)).shape == (2, 32, 3, 3)


def test_on_a_gpu_tntorch_is_left_out_and_said_to_be() -> None:
    method = make_method({"name": "cp", "rank_scale": 0.5})
    assert "tntorch reconstructed" in other_libraries.peers_of(method, 16, 32)
    assert "tntorch reconstructed" not in other_libraries.peers_of(method, 16, 32, on_gpu=True)
    said = set(other_libraries.absent_peers(on_gpu=True)) - set(other_libraries.absent_peers())
    assert said == {"without tntorch, which cannot be captured in a CUDA graph (it copies from the CPU)"}


@pytest.mark.parametrize("name", ["tensor_train", "tucker", "cp"])
def test_tntorch_rebuilds_what_ours_rebuilds(name: str) -> None:
    method = make_method({"name": name, "rank_scale": 0.5})
    peer = other_libraries.tntorch_rebuilt(method, 16, 32)  # type: ignore[arg-type]
    ours = method.build(ConvShape(16, 32))
    with torch.no_grad():
        for factor, value in zip(ours.parameters(), peer.parameters(), strict=True):
            factor.copy_(value)
    torch.testing.assert_close(peer(torch.ones(1, 16, 1, 1)), ours(torch.ones(1, 16, 1, 1)))


@pytest.mark.parametrize("name", ["tensor_train", "acdc", "shuffle", "hashed"])
def test_no_setting_is_nearer(name: str) -> None:
    plan, target = network_plan(NetworkSettings(name="resnet9", width=0.5), (3, 32, 32), 10), 30_000
    found = plan.params(one_by_one.nearest(plan, make_method({"name": name}), target))
    gap = abs(found - target)
    below = plan.params(solve(plan, make_method({"name": name}), Budget(params=target)))
    above = plan.params(solve(plan, make_method({"name": name}), Budget(params=target + gap)))
    assert gap <= target - below
    assert above <= target or above - target >= gap


def test_the_table_is_written_between_its_markers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "methods.md"
    page.write_text("before\n" + "\nold\n".join(methods_table.MARKERS) + "\nafter\n")
    threads = torch.get_num_threads()
    asked = ["--network", "resnet9", "--params", "60000", "--batch", "1", "--repeats", "1", "--write", str(page)]
    assert methods_table.main(asked) == 0
    assert torch.get_num_threads() == threads
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "\nold\n" not in text
    assert all(f"| {name} |" in text for name in METHODS)
    with pytest.raises(ValueError, match="lacks the markers"):
        methods_table.written("nothing", "table")
