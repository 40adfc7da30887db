"""Teachers for students: their files, their outputs, a cache of those, and the losses that compare both.

Entry points: `find_teacher` and `load_teacher`; `LiveTeacher` and `CachedTeacher` give a teacher's outputs;
`fill_cache` computes them once per host; `distillation_loss` and `attention_loss` compare them with a student's.
Must not import `lowrank.training`, `deployment` or a command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lowrank.distillation.cache import (
        MAX_IDLE_SECONDS as MAX_IDLE_SECONDS,
        CacheKey as CacheKey,
        CacheSource as CacheSource,
        Notify as Notify,
        TeacherCache as TeacherCache,
        fill_cache as fill_cache,
    )
    from lowrank.distillation.cache_file import Layout as Layout
    from lowrank.distillation.cached_teacher import CachedTeacher as CachedTeacher
    from lowrank.distillation.losses import attention_loss as attention_loss, distillation_loss as distillation_loss
    from lowrank.distillation.teacher import (
        BatchSignals as BatchSignals,
        LiveTeacher as LiveTeacher,
        Signals as Signals,
        Sizes as Sizes,
        Taps as Taps,
        Teacher as Teacher,
        common_sizes as common_sizes,
        default_taps as default_taps,
        tap_sizes as tap_sizes,
    )
    from lowrank.distillation.teacher_files import (
        RECORD_FILE as RECORD_FILE,
        WEIGHTS_FILE as WEIGHTS_FILE,
        BuiltAs as BuiltAs,
        TeacherRecord as TeacherRecord,
        TeacherWeights as TeacherWeights,
        find_teacher as find_teacher,
        is_bare as is_bare,
        load_teacher as load_teacher,
        read_record as read_record,
        teacher_from_weights as teacher_from_weights,
        teacher_names as teacher_names,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "cache": "CacheKey CacheSource MAX_IDLE_SECONDS Notify TeacherCache fill_cache",
        "cache_file": "Layout",
        "cached_teacher": "CachedTeacher",
        "losses": "attention_loss distillation_loss",
        "teacher": "BatchSignals LiveTeacher Signals Sizes Taps Teacher common_sizes default_taps tap_sizes",
        "teacher_files": (
            "BuiltAs RECORD_FILE TeacherRecord TeacherWeights WEIGHTS_FILE find_teacher is_bare load_teacher "
            "read_record teacher_from_weights teacher_names"
        ),
    },
)
