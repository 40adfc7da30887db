"""Runs a search as Ray Tune experiments: trials in workers, retries, checkpoints, early stopping.

Entry points: `tuner.run_search` in the driver, `trainable.TrialTrainable` in a worker.
Must not import study.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from sweeps.execution.callbacks import ExecutionConfig as ExecutionConfig
    from sweeps.execution.initial_weights import set_initial_weights as set_initial_weights
    from sweeps.execution.spread_benchmark import measure_on_cards as measure_on_cards
    from sweeps.execution.tuner import run_search as run_search

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "callbacks": "ExecutionConfig",
        "initial_weights": "set_initial_weights",
        "spread_benchmark": "measure_on_cards",
        "tuner": "run_search",
    },
)
