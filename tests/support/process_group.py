"""Several processes on this machine that train together over gloo."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from lowrank.training.engine.data_parallel import DataParallelGroup
from tests.support.waiting import scaled


def run_in_group(
    count: int, work: Callable[..., Any], *arguments: Any, on_gpus: bool = False, seconds: float = 200
) -> list[Any]:  # fmt: skip
    """Call `work(group, *arguments)` in each of several new processes.

    Args:
        count: how many processes.
        work: can be pickled.
        arguments: can be pickled.
        seconds: within which each must answer, on an idle machine.
        on_gpus: give each process the GPU of its number, over NCCL; else they use gloo on the CPU.

    Returns:
        What each process returned, in their order.

    Raises:
        AssertionError: a process raised an error or did not answer in time.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(count)]
        processes = [
            context.Process(
                target=_run, args=(DataParallelGroup(index, count), folder, on_gpus, pipe[1], work, arguments)
            )
            for index, pipe in enumerate(pipes)
        ]
        for process in processes:
            process.start()
        try:
            outcomes = []
            for receive, _ in pipes:
                assert receive.poll(scaled(seconds)), f"no answer of a process within {scaled(seconds):g} s"
                outcomes.append(pickle.loads(receive.recv_bytes()))
        finally:
            for process in processes:
                process.kill()
                process.join()
    for _, error in outcomes:
        assert error is None, error
    return [outcome for outcome, _ in outcomes]


def _run(
    group: DataParallelGroup,
    folder: str,
    on_gpus: bool,
    pipe: Any,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:  # fmt: skip
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), group.count)
    if on_gpus:
        torch.cuda.set_device(group.index)
    dist.init_process_group("nccl" if on_gpus else "gloo", store=store, rank=group.index, world_size=group.count)
    outcome, error = None, None
    try:
        outcome = work(group, *arguments)
    except BaseException:
        error = traceback.format_exc()
    # Plain pickles hold their tensors; a pipe's own would leave them in this process, which is about to end
    pipe.send_bytes(pickle.dumps((outcome, error)))
