"""The processes that benchmarks of training ask: what they answer, and what they train."""

from __future__ import annotations

import pickle
import queue
from typing import Any

from benchmarks.training import engine_processes
from benchmarks.training.engine_processes import Bench, Case, WorkerError, make_trainer, random_images


class UnreadableError(Exception):
    """Written by a queue, it cannot be read again."""

    def __init__(self, backend: str, reason: str):
        super().__init__(f"{backend}:\n{reason}")


def test_a_process_answers_an_error_that_a_queue_cannot_carry_as_text(monkeypatch):
    def fail(bench: Bench, case: Case) -> None:
        raise UnreadableError("inductor", "no such kernel")

    monkeypatch.setattr(Bench, "compile", fail)
    asked: queue.Queue[Any] = queue.Queue()
    answers: queue.Queue[Any] = queue.Queue()
    for command in (("compile", None), None):
        asked.put(command)
    engine_processes._serve("cpu", {}, None, asked, answers)
    answer = pickle.loads(pickle.dumps(answers.get_nowait()))
    assert isinstance(answer, WorkerError)
    assert str(answer) == "UnreadableError: inductor: no such kernel"


def test_without_views_the_trainer_leaves_images_as_they_are():
    case = Case(network="resnet9", width=0.25, device="cpu", batch=4, images=8, seconds=0, method="dense", views=False)
    assert make_trainer(case, random_images(8)).augmentation.is_identity
