"""Exports a trained trial: chooses it, loads its network, writes the files, what was measured on them, and the card.

Entry points: `select_trial.choose_trial` and `export_trial.export_trial`. Must not import `analysis.cli`, the commands,
or `analysis.reporting`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from analysis.model_export.select_trial import (
        Limits as Limits,
        choose_trial as choose_trial,
        find_completed as find_completed,
        find_trial_data as find_trial_data,
        load_trained as load_trained,
    )
    from analysis.model_export.trial_export import (
        STEPS as STEPS,
        export_trial as export_trial,
        proof_lines as proof_lines,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "select_trial": "Limits choose_trial find_completed find_trial_data load_trained",
        "trial_export": "STEPS export_trial proof_lines",
    },
)
