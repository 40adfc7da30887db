"""Measures for `--plan` with which error trials begin that start from trained weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from lowrank.data import ImageData, eval_batches
from lowrank.utils import INTERVAL, Countdown
from sweeps.records import Trial
from sweeps.trials import make_student

SECONDS = 120.0
"""Of processor time: after them `--plan` begins no further measurement, because a fit can take a minute on a CPU."""
BATCH = 512
"""Validation images that are evaluated at once."""


class InitialErrors:
    """The validation error of students after their start and before any training.

    Args:
        data: the data set.
        seconds: of processor time, after which no further measurement begins.
        progress: called with one line for a measurement, at most every other second; on a terminal also with lines on
            how far it is.

    Attributes:
        measured: percent, by stratum and by the setting's name.
        unmeasured: how many settings were not measured, because time was up.
    """

    def __init__(
        self, data: ImageData, seconds: float = SECONDS, progress: Callable[[str], None] = lambda message: None
    ):
        self.measured: dict[str, dict[str, float]] = {}
        self.unmeasured = 0
        self._data, self._seconds, self._spent = data, seconds, 0.0
        self._progress, self._printed = progress, -INTERVAL
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._seen: set[tuple[str, str]] = set()

    def add(self, name: str, trial: Trial) -> None:
        """Measure the error of a trial's student, unless it cannot be known yet.

        Args:
            name: of the trial's setting; one trial is measured for each name and stratum.
            trial: one that starts from another trial's weights, or from none, is passed over.
        """
        start = trial.specification.start
        if start is None or start.trial_id is not None or (trial.stratum, name) in self._seen:
            return
        self._seen.add((trial.stratum, name))
        if self._spent >= self._seconds:
            self.unmeasured += 1
            return
        if time.monotonic() - self._printed >= INTERVAL:
            self._printed = time.monotonic()
            self._progress(f"measuring errors before any training: {name}, {trial.stratum}")
        began = time.process_time()
        self.measured.setdefault(trial.stratum, {})[name] = self._error(trial)
        self._spent += time.process_time() - began

    @torch.no_grad()
    def _error(self, trial: Trial) -> float:
        from sweeps.execution import set_initial_weights  # imports Ray, which most plans do without

        student, _ = make_student(trial.specification, self._data)
        student.to(self._device)
        set_initial_weights(student, trial.specification, self._data, study_dir="", progress=self._progress)
        student.eval()
        wrong = torch.zeros((), dtype=torch.int64, device=self._device)
        batches = math.ceil(len(self._data.val) / BATCH)
        countdown = Countdown(self._progress, "evaluating, batch", batches, announced=True)
        for images, labels, *_ in countdown.over(eval_batches(self._data, "val", self._device, BATCH)):
            wrong += (student(images).argmax(1) != labels).sum()
        return 100 * int(wrong) / len(self._data.val)
