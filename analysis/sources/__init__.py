"""Where studies come from: MLflow stores, and several studies joined into one.

Entry points: `mlflow.load_from_mlflow`, `collate_studies.collate`, `push_to_mlflow.push_study`. A study's folder is
read by `sweeps.records.load`. It must not import stats, findings or what stands above them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from analysis.sources.collate_studies import (
        StudySource as StudySource,
        check_new_study as check_new_study,
        collate as collate,
        summary_lines as summary_lines,
        write_study as write_study,
    )
    from analysis.sources.integrity import (
        check_study as check_study,
        repair_command as repair_command,
        repair_study as repair_study,
    )
    from analysis.sources.mlflow import (
        find_group as find_group,
        load_from_mlflow as load_from_mlflow,
        load_typed_notes as load_typed_notes,
    )
    from analysis.sources.push_to_mlflow import (
        check_store as check_store,
        push_if_tracked as push_if_tracked,
        push_study as push_study,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "collate_studies": "StudySource check_new_study collate summary_lines write_study",
        "integrity": "check_study repair_command repair_study",
        "mlflow": "find_group load_from_mlflow load_typed_notes",
        "push_to_mlflow": "check_store push_if_tracked push_study",
    },
)
