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

PATIENCE = 200.0  # seconds for all of it


def together(count: int, work: Callable[..., Any], *arguments: Any, cards: bool = False) -> list[Any]:
    """What `work(ranks, *arguments)` returns in each of `count` new processes, by rank; raises what one raised.

    With `cards` each has the card of its number, over NCCL.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(count)]
        processes = [
            context.Process(
                target=_run, args=(DataParallelGroup(index, count), folder, cards, pipe[1], work, arguments)
            )
            for index, pipe in enumerate(pipes)
        ]
        for process in processes:
            process.start()
        try:
            found = []
            for receive, _ in pipes:
                assert receive.poll(PATIENCE), "a rank is silent"
                found.append(pickle.loads(receive.recv_bytes()))
        finally:
            for process in processes:
                process.kill()
                process.join()
    for _, error in found:
        assert error is None, error
    return [result for result, _ in found]


def _run(
    ranks: DataParallelGroup, folder: str, cards: bool, pipe: Any, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), ranks.count)
    if cards:
        torch.cuda.set_device(ranks.index)
    dist.init_process_group("nccl" if cards else "gloo", store=store, rank=ranks.index, world_size=ranks.count)
    found, error = None, None
    try:
        found = work(ranks, *arguments)
    except BaseException:
        error = traceback.format_exc()
    # Plain pickles hold their tensors; a pipe's own would leave them in this process, which is about to end
    pipe.send_bytes(pickle.dumps((found, error)))
