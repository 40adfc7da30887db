"""Search spaces: YAML files read and checked into frozen objects, their points and their strata of size.

Entry points: `sweeps.space.parse.read_space` and `sweeps.space.model.Space`.
Importing this package loads neither torch nor Optuna nor Ray; functions that need one of them import it.
Must not import any other package of `sweeps`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from sweeps.space.checks import check_process_shards as check_process_shards
    from sweeps.space.domains import Value as Value
    from sweeps.space.files import (
        available_spaces as available_spaces,
        find_space as find_space,
        read_yaml as read_yaml,
    )
    from sweeps.space.method_names import (
        REFERENCES as REFERENCES,
        THIN_BASELINES as THIN_BASELINES,
        UNCHANGED as UNCHANGED,
        alternative_names as alternative_names,
        method_at as method_at,
    )
    from sweeps.space.model import Space as Space
    from sweeps.space.parse import (
        apply_overrides as apply_overrides,
        parse_space as parse_space,
        parse_teacher_space as parse_teacher_space,
        read_space as read_space,
        resolve_content as resolve_content,
        space_from_content as space_from_content,
        teacher_space as teacher_space,
        with_absolute_data as with_absolute_data,
        with_absolute_network as with_absolute_network,
    )
    from sweeps.space.points import SHARE_PREFIX as SHARE_PREFIX, Points as Points
    from sweeps.space.run_options import (
        AUTO as AUTO,
        DEFAULT_OUT as DEFAULT_OUT,
        DEFAULT_SAMPLE as DEFAULT_SAMPLE,
        FIXED_QUESTION as FIXED_QUESTION,
        FOLDER_OPTIONS as FOLDER_OPTIONS,
        GPU_SHARING as GPU_SHARING,
        RunOptions as RunOptions,
        Task as Task,
        flag as flag,
    )
    from sweeps.space.settings import (
        ALLOCATIONS_BY_ERROR as ALLOCATIONS_BY_ERROR,
        FITTED_STARTS as FITTED_STARTS,
        NETWORK_WEIGHTS as NETWORK_WEIGHTS,
        SEARCHABLE_FIELD as SEARCHABLE_FIELD,
        START as START,
        TEACHER_SECTION as TEACHER_SECTION,
        TEACHER_WEIGHTS as TEACHER_WEIGHTS,
        ResourceSettings as ResourceSettings,
        SearchSettings as SearchSettings,
        TeacherSettings as TeacherSettings,
        parse_time as parse_time,
    )
    from sweeps.space.strata import (
        ALL_SIZES as ALL_SIZES,
        REFERENCE_STRATUM as REFERENCE_STRATUM,
        Point as Point,
        Stratum as Stratum,
        halving_strata as halving_strata,
        make_strata as make_strata,
    )
    from sweeps.space.study_config import (
        RetrainOrigin as RetrainOrigin,
        StoredOptions as StoredOptions,
        StudyConfig as StudyConfig,
    )
    from sweeps.space.trust import (
        check_options as check_options,
        check_trust as check_trust,
        names_data as names_data,
        names_typed as names_typed,
        own_networks as own_networks,
        permission_options as permission_options,
        permissions_text as permissions_text,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "checks": "check_process_shards",
        "domains": "Value",
        "files": "available_spaces find_space read_yaml",
        "method_names": "REFERENCES THIN_BASELINES UNCHANGED alternative_names method_at",
        "model": "Space",
        "parse": (
            "apply_overrides parse_space parse_teacher_space read_space resolve_content space_from_content "
            "teacher_space with_absolute_data with_absolute_network"
        ),
        "points": "Points SHARE_PREFIX",
        "run_options": (
            "AUTO DEFAULT_OUT DEFAULT_SAMPLE FIXED_QUESTION FOLDER_OPTIONS GPU_SHARING RunOptions Task flag"
        ),
        "settings": (
            "ALLOCATIONS_BY_ERROR FITTED_STARTS NETWORK_WEIGHTS ResourceSettings SEARCHABLE_FIELD START SearchSettings "
            "TEACHER_SECTION TEACHER_WEIGHTS TeacherSettings parse_time"
        ),
        "strata": "ALL_SIZES Point REFERENCE_STRATUM Stratum halving_strata make_strata",
        "study_config": "RetrainOrigin StoredOptions StudyConfig",
        "trust": ("check_options check_trust names_data names_typed own_networks permission_options permissions_text"),
    },
)
