"""Small exchanges over memory that cards share: tables, and where cards cannot share memory NCCL and one notice."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, distributed as dist
from torch.nn import functional

from lowrank.errors import HungError
from lowrank.kernels import global_norm as norms, use_gather_memory
from lowrank.training.engine import data_parallel, symmetric_memory
from lowrank.training.engine.data_parallel import DataParallelGroup
from lowrank.training.engine.symmetric_memory import EXCHANGES, NCCL, SYMMETRIC, SymmetricMemory
from tests.support.process_group import run_in_group

CPU = torch.device("cpu")
CARDS = ["a", "b"]


class Group:
    """Two processes, of which the other one says yes so many times."""

    index, count = 0, 2

    def __init__(self, agrees: int = 99):
        self.agrees, self.answers = agrees, []  # type: ignore[var-annotated]

    def all_agree(self, yes: bool, device: torch.device) -> bool:
        self.answers.append(yes)
        return yes and len(self.answers) <= self.agrees


class Memory:
    """The memory of two processes; the other one always writes the same numbers."""

    def __init__(self, other: list[Tensor]):
        self.other = other

    def gather(self, shape: Any, dtype: torch.dtype, device: torch.device, write: Any) -> Tensor:
        part = torch.empty(shape, dtype=dtype)
        write(part)
        return torch.stack([part, self.other.pop(0)])


class NVMLError(Exception):
    """NVML's own."""


def nvml(status: int | Exception) -> Any:
    """A stand-in for pynvml."""

    def answer(one: str, other: str, what: int) -> int:
        assert (one, other, what) == ("GPU-a", "GPU-b", 2)
        if isinstance(status, Exception):
            raise status
        return status

    return types.SimpleNamespace(
        NVMLError=NVMLError, NVML_P2P_CAPS_INDEX_NVLINK=2, NVML_P2P_STATUS_OK=0, nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=str, nvmlDeviceGetP2PStatus=answer,
    )  # fmt: skip


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Opening memory that does without a card, and succeeds."""
    made = SymmetricMemory(torch.empty(64), 0, 2, lambda table, total: total.copy_(table))
    for name, value in {
        "_cards": lambda device: CARDS, "_link_obstacle": lambda cards, index: None,
        "_allocate": lambda device: torch.empty(64), "_connect": lambda buffer, group: made,
        "_trial_obstacle": lambda memory, index, device: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(symmetric_memory, name, value)
    monkeypatch.setattr(symmetric_memory._Opened, "outcome", None)
    return monkeypatch


def fail(*arguments: Any) -> Any:
    raise RuntimeError("CUDA driver error: no\nand more")


def test_each_size_has_a_table_in_which_a_process_writes_its_own_row_alone():
    buffer = torch.full((64,), 7.0)
    memory = SymmetricMemory(buffer, 1, 2, lambda table, total: total.copy_(table))
    for value in (1.0, 2.0):
        for numbers in (2, 3):
            parts = memory.gather((numbers, 1), torch.float32, CPU, lambda out, value=value: out.fill_(value))
            assert parts is not None
            assert parts.tolist() == [[[0.0]] * numbers, [[value]] * numbers]
    assert buffer.nonzero().flatten().tolist() == [2, 3, 32 + 3, 32 + 4, 32 + 5]


def test_tensors_that_the_buffer_cannot_take_are_gathered_elsewhere():
    memory = SymmetricMemory(torch.empty(64), 0, 2, lambda table, total: total.copy_(table))
    assert memory.gather((32,), torch.float32, CPU, Tensor.zero_) is not None
    for shape, dtype in (((4,), torch.float64), ((33,), torch.float32), ((1,), torch.float32)):
        assert memory.gather(shape, dtype, CPU, fail) is None
    assert memory.gather((32,), torch.float32, CPU, Tensor.zero_) is not None


def test_a_norm_joins_what_the_memory_brings(monkeypatch):
    """Its result and all gradients are those of torch's norm over the images of both processes."""
    monkeypatch.setattr(norms, "process_count", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    torch.manual_seed(0)
    x, weight, bias, direction = torch.randn(6, 3, 4, 4), torch.rand(3), torch.rand(3), torch.randn(6, 3, 4, 4)
    inputs = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    wanted = functional.batch_norm(inputs[0], None, None, *inputs[1:], training=True)
    (wanted[:3] * direction[:3]).sum().backward(retain_graph=True)
    ours = [tensor.clone().requires_grad_() for tensor in (x[:3], weight, bias)]
    other = torch.empty(2, 3)
    norms._local_statistics(x[3:], other)
    normal = functional.batch_norm(x, None, None, training=True)[3:]
    sums = torch.stack([(direction[3:] * normal).sum((0, 2, 3)), direction[3:].sum((0, 2, 3))])
    monkeypatch.setattr(norms._Exchange, "memory", Memory([other, sums]))
    out, mean, _ = norms.global_norm(*ours, None, 1e-5, False, False)
    (out * direction[:3]).sum().backward()
    torch.testing.assert_close(out, wanted[:3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    for own, expected in zip(ours[1:], inputs[1:], strict=True):
        torch.testing.assert_close(own.grad, expected.grad, rtol=1e-5, atol=1e-5)
    inputs[0].grad = None
    (wanted * direction).sum().backward()
    assert inputs[0].grad is not None
    torch.testing.assert_close(ours[0].grad, inputs[0].grad[:3], rtol=1e-5, atol=1e-5)


def test_memory_is_opened_once_and_all_processes_agree_after_each_step(steps):
    group = Group()
    memory = symmetric_memory.open_memory(group, CPU)
    assert isinstance(memory, SymmetricMemory)
    assert group.answers == [True] * 5
    assert symmetric_memory.open_memory(Group(agrees=0), CPU) is memory


@pytest.mark.parametrize(("agreed", "answers"), [(0, 1), (2, 3), (4, 5)])
def test_no_process_shares_memory_where_another_one_cannot(agreed, answers, steps):
    group = Group(agreed)
    assert symmetric_memory.open_memory(group, CPU) == "another process cannot share memory"
    assert len(group.answers) == answers


@pytest.mark.parametrize("step", ["_allocate", "_connect", "_trial_obstacle"])
def test_a_step_that_fails_is_the_reason(step, steps):
    steps.setattr(symmetric_memory, step, fail)
    group = Group()
    assert symmetric_memory.open_memory(group, CPU) == "CUDA driver error: no"
    assert group.answers[-1] is False


def test_processes_on_one_card_share_no_memory(steps):
    steps.setattr(symmetric_memory, "_cards", lambda device: ["a", "a"])
    assert symmetric_memory.open_memory(Group(), CPU, check_link=False) == "several processes share a card"


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nvml(0), None),
        (nvml(5), "NVLink does not link the cards"),
        (nvml(NVMLError("no driver")), "NVML does not say how the cards are linked: no driver"),
        (None, "pynvml, which tells how cards are linked, is not installed"),
    ],
)
def test_nvlink_must_link_the_cards(module, reason, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert symmetric_memory._link_obstacle(CARDS, 0) == reason


@pytest.mark.parametrize(("wrong", "reason"), [(0, None), (1, "shared memory brings other numbers than were sent")])
def test_memory_that_brings_other_numbers_is_not_used(wrong, reason, monkeypatch):
    monkeypatch.setattr(symmetric_memory, "_wait", lambda device: None)
    monkeypatch.setattr(symmetric_memory, "gather_parts", lambda part: torch.stack([part, torch.zeros_like(part)]))
    sums: list[Tensor] = []

    def add(table: Tensor, total: Tensor) -> None:
        sums.append(total.copy_(table).add_(wrong))

    memory = SymmetricMemory(torch.empty(4096), 0, 2, add)
    assert symmetric_memory._trial_obstacle(memory, 0, CPU) == reason
    assert len(sums) == 9  # also after the first wrong one: the other process waits for them


def test_an_exchange_that_does_not_end_is_no_reason_to_go_on(monkeypatch):
    event = types.SimpleNamespace(record=lambda stream: None, query=lambda: False)
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(symmetric_memory, "TRIAL_SECONDS", 0.0)
    with pytest.raises(HungError, match="has not ended within 0 s"):
        symmetric_memory._wait(CPU)


@pytest.mark.parametrize(
    ("exchange", "device", "outcome", "notices"),
    [
        (SYMMETRIC, "cuda", "memory", []),
        (SYMMETRIC, "cuda", "no link", ["batch norms exchange over NCCL, and so training is slower: no link"]),
        (SYMMETRIC, "cpu", "memory", []),
        (NCCL, "cuda", "memory", []),
    ],
)
def test_norms_use_the_memory_where_it_is_asked_for_and_can_be_had(exchange, device, outcome, notices, monkeypatch):
    memory = SymmetricMemory(torch.empty(8), 0, 2, lambda table, total: None)
    monkeypatch.setattr(data_parallel, "open_memory", lambda *arguments: memory if outcome == "memory" else outcome)
    monkeypatch.setattr("lowrank.training.engine.notices._GIVEN", set())
    lines: list[str] = []
    monkeypatch.setattr(norms._Exchange, "memory", memory)
    for _ in range(2):  # trials of one process
        DataParallelGroup(0, 2, exchange).choose_exchange(torch.device(device), lines.append)
    used = exchange == SYMMETRIC and device == "cuda" and outcome == "memory"
    assert norms._Exchange.memory is (memory if used else None)
    assert lines == notices


def gather_on_gpus(group: DataParallelGroup) -> dict[str, Any]:
    """Statistics of norms, gradients and a recorded exchange by each way of `EXCHANGES`, and what it takes on."""
    device, outcome = torch.device("cuda", group.index), {}
    for exchange in EXCHANGES:
        notices: list[str] = []
        DataParallelGroup(group.index, group.count, exchange).choose_exchange(device, notices.append)
        assert notices == []
        results: list[Tensor] = []
        for channels in (3, 16, 640, 16):
            generator = torch.Generator(device).manual_seed(10 * channels + group.index)
            x = torch.randn(8, channels, 6, 4, device=device, generator=generator)
            x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
            weight, bias = torch.rand(2, channels, device=device, generator=generator)
            weight, bias = weight.requires_grad_(), bias.requires_grad_()
            out, mean, variance = norms.global_norm(x, weight, bias, None, 1e-5, True, False)
            (out * out.detach().sin()).sum().backward()
            results += [out, mean, variance, x.grad, weight.grad, bias.grad]  # type: ignore[list-item]
        results.append(recorded_rounds(group, device))
        outcome[exchange] = [result.detach().cpu() for result in results]
    use_gather_memory(None)
    return outcome


def recorded_rounds(group: DataParallelGroup, device: torch.device) -> Tensor:
    """What a recorded chain of exchanges brings in each of many replays, one of the processes being slower."""
    source, rounds = torch.zeros(2, 16, device=device), []

    def chain() -> Tensor:
        parts = source[None]
        for _ in range(4):
            part = parts.sum(0) * (group.index + 1) % 1009  # whole numbers, which nothing rounds
            parts = norms.gather_written((2, 16), torch.float32, device, lambda out, part=part: out.copy_(part))
        return parts

    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        chain()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        parts = chain()
    for number in range(200):
        source.fill_(number + group.index)
        if number % 7 == group.index:
            torch.cuda._sleep(200_000)
        graph.replay()
        rounds.append(parts.clone())
    return torch.stack(rounds)


@pytest.mark.gpu(2)
def test_two_gpus_gather_the_same_bits_through_memory_as_over_nccl():
    first, second = run_in_group(2, gather_on_gpus, on_gpus=True)
    for outcome in (first, second):
        for number, (ours, theirs) in enumerate(zip(outcome[SYMMETRIC], outcome[NCCL], strict=True)):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=lambda text, n=number: f"result {n}: {text}")
    assert torch.equal(first[SYMMETRIC][-1], second[SYMMETRIC][-1])
