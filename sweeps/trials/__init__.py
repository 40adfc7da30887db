"""From a point of a search space to a trial: sizes solved, counts exact, identity fixed, student and trainer built.

Entry points: `sweeps.trials.resolver.Resolver` and `sweeps.trials.build.make_trainer`.
Must not import Ray, Optuna or MLflow; of sweeps it may import `space`, `utils`, `records` and `cluster` only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from sweeps.trials.build import (
        load_trial_data as load_trial_data,
        make_student as make_student,
        make_trainer as make_trainer,
        variational_settings as variational_settings,
    )
    from sweeps.trials.feasibility import (
        corner_points as corner_points,
        left_out_lines as left_out_lines,
        reachable_strata as reachable_strata,
    )
    from sweeps.trials.planned_teacher import (
        UNTRAINED as UNTRAINED,
        describe_teacher as describe_teacher,
        with_teacher_name as with_teacher_name,
    )
    from sweeps.trials.resolver import Resolver as Resolver, StepTimeError as StepTimeError
    from sweeps.trials.teacher import (
        ResolvedTeacher as ResolvedTeacher,
        built_as as built_as,
        resolve_teacher as resolve_teacher,
        without_teacher as without_teacher,
    )
    from sweeps.trials.trained_network import (
        check_fingerprint as check_fingerprint,
        check_start as check_start,
        fetch_weights as fetch_weights,
        load_initial_network as load_initial_network,
        load_trained_network as load_trained_network,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "build": "load_trial_data make_student make_trainer variational_settings",
        "feasibility": "corner_points left_out_lines reachable_strata",
        "planned_teacher": "UNTRAINED describe_teacher with_teacher_name",
        "resolver": "Resolver StepTimeError",
        "teacher": "ResolvedTeacher built_as resolve_teacher without_teacher",
        "trained_network": ("check_fingerprint check_start fetch_weights load_initial_network load_trained_network"),
    },
)
