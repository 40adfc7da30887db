"""Small tensors of all processes gathered through memory that every card can read, without NCCL.

A batch norm exchanges a few KiB twice a step, and waits for it: NCCL's delay is most of its time. Torch's symmetric
memory (torch.distributed._symmetric_memory) is a buffer on each card that all the others have mapped, over NVLink. Its
one-shot sum is a single kernel without NCCL: each card waits for the others, adds up all buffers, and waits until all
others have done so. It can be recorded in a CUDA graph, for addresses stay.

NVLink multicast is never used: it is turned off before memory is allocated, and no operation here needs it.
"""

from __future__ import annotations

import math
import os
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, distributed as dist

from lowrank.errors import HungError
from lowrank.kernels import gather_parts
from lowrank.utils import first_line

NCCL, SYMMETRIC = "nccl", "symmetric"
EXCHANGES = (NCCL, SYMMETRIC)
# How batch norms exchange where nothing else is asked for. `SYMMETRIC` was 2 % faster on two cards, but once had other
# numbers than NCCL in single norms, for a reason that is not known (docs/results/h200_two_cards.md)
DEFAULT_EXCHANGE = NCCL
# Float32 of a buffer: 4 MiB. Norms of so many channels share a table of 4 numbers a channel on two cards, also those of
# later trials: a table stays, since another recorded step may write there
MEMORY_NUMBERS = 2**20
ALIGNED_NUMBERS = 32  # tables begin at multiples of so many: 128 bytes
CONNECT_SECONDS = 60.0  # in which the processes must map each other's buffer
TRIAL_SECONDS = 20.0  # in which the first exchanges must end
TRIAL_SHAPES = ((2, 3), (2, 16), (2, 640))


class Group(Protocol):
    """The processes that share memory: lowrank.training.engine.data_parallel.DataParallelGroup."""

    @property
    def index(self) -> int:
        """Number of this process, from 0."""

    @property
    def count(self) -> int:
        """How many processes there are."""

    def all_agree(self, yes: bool, device: torch.device) -> bool:
        """Return whether every process said yes."""


class SymmetricMemory:
    """Gathers tensors of all processes in a buffer that all can read; see lowrank.kernels.global_norm.GatherMemory.

    For each size of tensors the buffer has a table with a row for each process. A process writes its own row alone, so
    in its memory all other rows stay zero, and the sum of the tables of all processes has every row as it was written.
    The sum ends when all have read this process's table: a later exchange of that size may write there again.

    Args:
        memory: the buffer, (N,); is filled with zeros.
        index: of this process.
        count: of processes.
        add: (table, sum): adds up what all processes have at the place of `table`; ends on the device when all have
            read this process's.
    """

    def __init__(self, memory: Tensor, index: int, count: int, add: Callable[[Tensor, Tensor], object]):
        self._memory, self._index, self._count, self._add = memory.zero_(), index, count, add
        self._tables: dict[int, Tensor] = {}
        self._used = 0

    def gather(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, write: Callable[[Tensor], object]
    ) -> Tensor | None:  # fmt: skip
        """Gather what `write` writes.

        Args:
            shape: of this process's tensor.
            dtype: of the tensor.
            device: of the tensor.
            write: fills in all of the tensor that it is called with.

        Returns:
            The tensors of all processes, (P, *shape); None where the buffer has another dtype or device, or no place.
        """
        if (dtype, device) != (self._memory.dtype, self._memory.device):
            return None
        table = self._table(math.prod(shape))
        if table is None:
            return None
        write(table[self._index].view(*shape))
        parts = torch.empty_like(table)
        self._add(table, parts)
        return parts.view(self._count, *shape)

    def _table(self, numbers: int) -> Tensor | None:
        """Return the place for tensors of so many numbers, (P, numbers); the same in all processes."""
        if numbers not in self._tables:
            end = self._used + self._count * numbers
            if end > len(self._memory):
                return None
            self._tables[numbers] = self._memory[self._used : end].view(self._count, numbers)
            self._used = -(-end // ALIGNED_NUMBERS) * ALIGNED_NUMBERS
        return self._tables[numbers]


class _Opened:
    """What this process has once and for all: the memory, or why it cannot have it."""

    outcome: SymmetricMemory | str | None = None


def open_memory(group: Group, device: torch.device, *, check_link: bool = True) -> SymmetricMemory | str:
    """Share a buffer between the cards of all processes, and try it; once in a process.

    All processes of the group must call this, and get the same answer. One that another cannot follow gives up too.

    Args:
        group: the processes, each of which has a card of its own; torch's default process group.
        device: this process's card.
        check_link: whether NVML must say that NVLink links the cards: elsewhere an exchange might never end.

    Returns:
        The memory; or a clause that says why there is none.

    Raises:
        HungError: an exchange has begun and does not end.
    """
    if _Opened.outcome is None:
        _Opened.outcome = _open(group, device, check_link)
    return _Opened.outcome


def _open(group: Group, device: torch.device, check_link: bool) -> SymmetricMemory | str:
    cards = _cards(device)
    memory: list[SymmetricMemory] = []
    buffers: list[Tensor] = []
    steps: tuple[Callable[[], str | None], ...] = (
        lambda: _card_obstacle(cards),
        lambda: _link_obstacle(cards, group.index) if check_link else None,
        lambda: buffers.append(_allocate(device)),
        lambda: memory.append(_connect(buffers[0], group)),
        lambda: _trial_obstacle(memory[0], group.index, device),
    )
    for step in steps:
        try:
            obstacle = step()
        except torch.AcceleratorError:
            raise  # the device is lost
        except (RuntimeError, AttributeError, TypeError, ImportError) as error:  # another torch, a driver's limit
            obstacle = first_line(error)
        if not group.all_agree(obstacle is None, device):
            return obstacle or "another process cannot share memory"
    return memory[0]


def _cards(device: torch.device) -> list[str]:
    """Return the identities of all processes' cards, in the order of the processes."""
    identity = uuid.UUID(str(torch.cuda.get_device_properties(device).uuid))
    numbers = torch.tensor(list(identity.bytes), dtype=torch.uint8, device=device)
    return [str(uuid.UUID(bytes=bytes(row))) for row in gather_parts(numbers).tolist()]


def _card_obstacle(cards: Sequence[str]) -> str | None:
    """Return why these cards cannot wait for each other."""
    return None if len(set(cards)) == len(cards) else "several processes share a card"


def _link_obstacle(cards: Sequence[str], index: int) -> str | None:
    """Return why the card of process `index` cannot read the memory of the others; None where NVLink links them."""
    try:
        import pynvml  # an optional package, needed on GPUs alone
    except ImportError:
        return "pynvml, which tells how cards are linked, is not installed"
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{card}") for card in cards]
        statuses = [
            pynvml.nvmlDeviceGetP2PStatus(handles[index], handle, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
            for number, handle in enumerate(handles) if number != index
        ]  # fmt: skip
    except pynvml.NVMLError as error:
        return f"NVML does not say how the cards are linked: {first_line(error)}"
    if any(status != pynvml.NVML_P2P_STATUS_OK for status in statuses):
        return "NVLink does not link the cards"
    return None


def _allocate(device: torch.device) -> Tensor:
    from torch.distributed import _symmetric_memory as symmetric_memory

    # Multicast can put the cards of a host out of service. Torch takes cards for one where they have the same number,
    # which is 0 in every process that sees its own card alone; `_card_obstacle` compares their identities
    os.environ.update(TORCH_SYMM_MEM_DISABLE_MULTICAST="1", TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES="1")
    buffer: Tensor = symmetric_memory.empty(MEMORY_NUMBERS, dtype=torch.float32, device=device)
    return buffer


def _connect(buffer: Tensor, group: Group) -> SymmetricMemory:
    from torch.distributed import _symmetric_memory as symmetric_memory

    world: Any = dist.group.WORLD
    store: Any = dist.distributed_c10d._get_default_store()  # whose `timeout` torch's types do not have
    before = store.timeout
    store.set_timeout(timedelta(seconds=CONNECT_SECONDS))  # of a process that waits for one that has failed
    try:
        symmetric_memory.rendezvous(buffer, world.group_name)
    finally:
        store.set_timeout(before)
    return SymmetricMemory(buffer, group.index, group.count, partial(_one_shot_sum, world.group_name))


def _one_shot_sum(group_name: str, table: Tensor, total: Tensor) -> None:
    torch.ops.symm_mem.one_shot_all_reduce_out(table, "sum", group_name, total)


def _trial_obstacle(memory: SymmetricMemory, index: int, device: torch.device) -> str | None:
    """Gather tensors that differ between processes and rounds; returns why the memory cannot be used."""
    right = True
    for number in range(3):
        for shape in TRIAL_SHAPES:
            part = torch.arange(1.0, 1 + math.prod(shape), device=device).view(shape) * (index + 1) + number
            parts = memory.gather(shape, torch.float32, part.device, lambda out, part=part: out.copy_(part))  # type: ignore[misc]
            _wait(device)
            expected = gather_parts(part)
            # All of them, also after a wrong one: the other processes wait for this one
            right = right and parts is not None and torch.equal(parts, expected)
    return None if right else "shared memory brings other numbers than were sent"


def _wait(device: torch.device) -> None:
    """Wait for the device, but not forever."""
    event, until = torch.cuda.Event(), time.monotonic() + TRIAL_SECONDS
    event.record(torch.cuda.current_stream(device))
    while not event.query():
        if time.monotonic() > until:
            raise HungError(f"an exchange over the memory of the cards has not ended within {TRIAL_SECONDS:.0f} s")
        time.sleep(1e-4)
