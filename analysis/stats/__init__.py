"""Numbers of a study with their uncertainty: fronts, intervals, paired differences, importance, hypervolume.

Entry point: `front.collect_points`, which turns records into the points that the other modules take. It must not import
findings, reporting or what stands above them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from analysis.stats.conditions import (
        MixedField as MixedField,
        check_equal as check_equal,
        differing_fields as differing_fields,
        mixed_fields as mixed_fields,
        mixed_text as mixed_text,
    )
    from analysis.stats.equal_size import (
        ErrorsBySeed as ErrorsBySeed,
        MethodAtSize as MethodAtSize,
        SizeLevel as SizeLevel,
        errors_by_seed as errors_by_seed,
        paired_difference as paired_difference,
        size_level as size_level,
        size_limit as size_limit,
    )
    from analysis.stats.expected_best import ExpectedBest as ExpectedBest, expected_bests as expected_bests
    from analysis.stats.factors import BUDGET as BUDGET, METHOD as METHOD
    from analysis.stats.front import (
        DENSE as DENSE,
        SEPARABLE as SEPARABLE,
        UNCHANGED as UNCHANGED,
        FrontPoint as FrontPoint,
        ShareBase as ShareBase,
        SizeMeasure as SizeMeasure,
        Stratum as Stratum,
        best_by_method as best_by_method,
        best_point as best_point,
        collect_points as collect_points,
        find_reference as find_reference,
        pareto_front as pareto_front,
        references as references,
        share_base as share_base,
        split_common_extras as split_common_extras,
        study_strata as study_strata,
        taught_by as taught_by,
        trials_off_front as trials_off_front,
        validation_images as validation_images,
    )
    from analysis.stats.front_comparison import (
        COST_UNITS as COST_UNITS,
        FrontComparison as FrontComparison,
        compare_fronts as compare_fronts,
        parse_reference as parse_reference,
    )
    from analysis.stats.hypervolume import HypervolumeGrowth as HypervolumeGrowth, ReferencePoint as ReferencePoint
    from analysis.stats.importance import (
        Importance as Importance,
        field_importances as field_importances,
        searched_settings as searched_settings,
    )
    from analysis.stats.inference.intervals import (
        Estimate as Estimate,
        image_p_value as image_p_value,
        newcombe_interval as newcombe_interval,
        t_test_p_value as t_test_p_value,
        wilson_interval as wilson_interval,
    )
    from analysis.stats.inference.margins import (
        AsGood as AsGood,
        as_good_sizes as as_good_sizes,
        default_margin as default_margin,
    )
    from analysis.stats.inference.multiple import (
        ALARM_LEVEL as ALARM_LEVEL,
        count_compared as count_compared,
        holm_p_values as holm_p_values,
    )
    from analysis.stats.inference.paired import (
        PairedDifference as PairedDifference,
        SeedVariance as SeedVariance,
    )
    from analysis.stats.inference.selection import (
        SelectedDifference as SelectedDifference,
        SelectedError as SelectedError,
        corrected_difference as corrected_difference,
        corrected_error as corrected_error,
        expand_counts as expand_counts,
    )
    from analysis.stats.paired_effects import (
        ALL_ELSE_EQUAL as ALL_ELSE_EQUAL,
        PairedEffect as PairedEffect,
        find_paired_effects as find_paired_effects,
    )
    from analysis.stats.seeds import (
        RepeatedSetting as RepeatedSetting,
        group_by_setting as group_by_setting,
        is_screened as is_screened,
        repeated_settings as repeated_settings,
    )
    from analysis.stats.study_bests import BestDifference as BestDifference, best_differences as best_differences
    from analysis.stats.versus import (
        compare_values as compare_values,
        comparison_table as comparison_table,
        reference_lines as reference_lines,
    )
    from analysis.stats.wrong_images import (
        WrongBySeed as WrongBySeed,
        pairing_sentence as pairing_sentence,
        pooled_seed_variance as pooled_seed_variance,
        same_images_difference as same_images_difference,
        stack_settings as stack_settings,
        wrong_by_setting as wrong_by_setting,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "study_bests": "BestDifference best_differences",
        "conditions": "MixedField check_equal differing_fields mixed_fields mixed_text",
        "equal_size": "ErrorsBySeed MethodAtSize SizeLevel errors_by_seed paired_difference size_level size_limit",
        "expected_best": "ExpectedBest expected_bests",
        "factors": "BUDGET METHOD",
        "front": (
            "DENSE FrontPoint SEPARABLE ShareBase SizeMeasure Stratum UNCHANGED best_by_method best_point "
            "collect_points find_reference pareto_front references share_base split_common_extras study_strata "
            "taught_by trials_off_front validation_images"
        ),
        "front_comparison": "COST_UNITS FrontComparison compare_fronts parse_reference",
        "hypervolume": "HypervolumeGrowth ReferencePoint",
        "importance": "Importance field_importances searched_settings",
        "inference.intervals": "Estimate image_p_value newcombe_interval t_test_p_value wilson_interval",
        "inference.margins": "AsGood as_good_sizes default_margin",
        "inference.multiple": "ALARM_LEVEL count_compared holm_p_values",
        "inference.paired": "PairedDifference SeedVariance",
        "paired_effects": "ALL_ELSE_EQUAL PairedEffect find_paired_effects",
        "seeds": "RepeatedSetting group_by_setting is_screened repeated_settings",
        "inference.selection": "SelectedDifference SelectedError corrected_difference corrected_error expand_counts",
        "versus": "compare_values comparison_table reference_lines",
        "wrong_images": (
            "WrongBySeed pairing_sentence pooled_seed_variance same_images_difference stack_settings wrong_by_setting"
        ),
    },
)
