"""What each trial of a study holds of the cluster: shares of cards, their packing, MPS, and the memory probe.

Entry points: `slots.ResourcePlanner` for a study, `memory_probe.probe_space` for `--probe-memory`.
Must not import teachers, execution or study.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from sweeps.resources.configurations import (
        LEARNING_RATE as LEARNING_RATE,
        WARM_UP_STEPS as WARM_UP_STEPS,
        trainer_maker as trainer_maker,
    )
    from sweeps.resources.gradual_packing import GradualPacking as GradualPacking
    from sweeps.resources.memory_probe import probe_space as probe_space
    from sweeps.resources.mps import PROCESSES as PROCESSES
    from sweeps.resources.packing_benchmark import ANSWER_SECONDS as ANSWER_SECONDS, POLL_SECONDS as POLL_SECONDS
    from sweeps.resources.shares import Cluster as Cluster, Share as Share, share_for as share_for
    from sweeps.resources.slots import (
        ExpectedResources as ExpectedResources,
        ResourcePlanner as ResourcePlanner,
        TrialResources as TrialResources,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "configurations": "LEARNING_RATE WARM_UP_STEPS trainer_maker",
        "gradual_packing": "GradualPacking",
        "memory_probe": "probe_space",
        "mps": "PROCESSES",
        "packing_benchmark": "ANSWER_SECONDS POLL_SECONDS",
        "shares": "Cluster Share share_for",
        "slots": "ExpectedResources ResourcePlanner TrialResources",
    },
)
