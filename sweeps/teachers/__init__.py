"""Teachers: their folder and model registry, their training, their caches, and how a worker asks them.

Entry points: `ensure.ensure_teacher` in the driver, `worker.make_teacher` in a worker.
Must not import execution or study.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from sweeps.teachers.cache_options import (
        CACHE_FOLDER as CACHE_FOLDER,
        NO_CACHE as NO_CACHE,
        CacheOptions as CacheOptions,
    )
    from sweeps.teachers.ensure import (
        ensure_teacher as ensure_teacher,
        register_or_explain as register_or_explain,
        train_with_progress as train_with_progress,
    )
    from sweeps.teachers.prebuild_cache import build_caches as build_caches
    from sweeps.teachers.registry import name_taken_error as name_taken_error, read_teacher as read_teacher
    from sweeps.teachers.worker import make_teacher as make_teacher

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "cache_options": "CACHE_FOLDER CacheOptions NO_CACHE",
        "ensure": "ensure_teacher register_or_explain train_with_progress",
        "prebuild_cache": "build_caches",
        "registry": "name_taken_error read_teacher",
        "worker": "make_teacher",
    },
)
