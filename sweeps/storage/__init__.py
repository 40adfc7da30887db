"""Keep a study at a URI (`--storage`), so that it outlives its machines.

`mirror_study` claims a study and stores its folder as it grows; `fetch_study` brings it back, as does
`python -m sweeps.storage`. Modules: `remote` (objects under a URI), `parts`, `claims`, `lease`, `fetch`, `mirror`.
Must not import Ray, Optuna, MLflow, torch, nor any package of sweeps but `records` and `utils`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from sweeps.storage.fetch import fetch_study as fetch_study, stored_study_folder as stored_study_folder
    from sweeps.storage.mirror import StudyMirror as StudyMirror, mirror_study as mirror_study
    from sweeps.storage.remote import (
        Storage as Storage,
        child_uri as child_uri,
        list_stored_studies as list_stored_studies,
        storage_uri as storage_uri,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "fetch": "fetch_study stored_study_folder",
        "mirror": "StudyMirror mirror_study",
        "remote": "Storage child_uri list_stored_studies storage_uri",
    },
)
