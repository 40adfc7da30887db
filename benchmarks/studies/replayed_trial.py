"""A trial that trains nothing: it gives back a recorded learning curve, at a pace. Its process never imports torch."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import zlib
from pathlib import Path
from typing import Any

from ray import tune

from sweeps.execution.trial_config import trial_config

CURVES = Path(__file__).resolve().with_name("recorded_curves.json")
PACE = "REPLAY_EPOCH_SECONDS"  # the environment variable that says how long an epoch takes (0)


def read_curves() -> list[list[dict[str, float]]]:
    """The recorded curves: for each of some trainings the metrics of its epochs."""
    return json.loads(CURVES.read_text())["curves"]


class Replayed(tune.Trainable):
    """Stands in for `sweeps.execution.trainable.TrialTrainable`; which curve it replays follows from the trial's id."""

    curves: list[list[dict[str, float]]] | None = None  # of this process

    def setup(self, config: dict[str, Any]) -> None:
        """Take up the trial; raises ImportError where this process has torch."""
        if "torch" in sys.modules:
            raise ImportError("a process that replays must not import torch")
        if Replayed.curves is None:
            Replayed.curves = read_curves()
        self.trial = trial_config(config)
        self.number = zlib.crc32(self.trial.trial_id.encode())
        self.curve = Replayed.curves[self.number % len(Replayed.curves)]
        self.epochs = self.trial.specification.train.epochs
        self.epoch = 0
        self.pace = float(os.environ.get(PACE, "0"))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another trial in the same process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One epoch, as TrialTrainable reports it; errors are shifted a little by the id, so that trials differ."""
        time.sleep(self.pace)
        result: dict[str, Any] = {"trial": self.trial.trial_id, "notices": []}
        if self.epoch == 0:
            result["attempt"] = {
                "host": socket.gethostname(), "pid": os.getpid(), "device": "replay", "from_epoch": 0,
                "start_seconds": 0.0,
            }  # fmt: skip
            result["history"] = []
        metrics = dict(self.curve[min(self.epoch, len(self.curve) - 1)])
        metrics["val_error"] += self.number % 997 / 997
        self.epoch += 1
        result |= {"epoch": self.epoch, "metrics": metrics, "val_error": metrics["val_error"]}
        if self.epoch == self.epochs:
            result |= {"done": True, "outcome": "completed", "reason": ""}
        return result

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """There is nothing to keep."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing is kept."""
