"""Carry a study's journal into MLflow and the Arrow tables, in a process of its own.

`TrackingProcess` starts that process, `python -m sweeps.tracking STUDY_DIR` is its command, `Follower` does the work.
The driver imports this package and must not pay for MLflow: only functions import it. Must not import Ray, Optuna,
torch at import, nor any package of sweeps but `records` and `utils`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from sweeps.tracking.mlflow_store import (
        MESSAGE_LENGTH as MESSAGE_LENGTH,
        make_client as make_client,
        milliseconds as milliseconds,
        outages as outages,
        quiet_mlflow as quiet_mlflow,
    )
    from sweeps.tracking.process import TrackingProcess as TrackingProcess, check_study_store as check_study_store
    from sweeps.tracking.uri import (
        TRACKING_VARIABLE as TRACKING_VARIABLE,
        check_tracking_uri as check_tracking_uri,
        environment_uri as environment_uri,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "mlflow_store": "MESSAGE_LENGTH make_client milliseconds outages quiet_mlflow",
        "process": "TrackingProcess check_study_store",
        "uri": "TRACKING_VARIABLE check_tracking_uri environment_uri",
    },
)
