"""What a report says, as typed records and sentences: answers, failures, costs, curves, comparisons.

Entry points: `answer.answers` and one function a module, such as `cost.study_cost`. Nothing is drawn or written here.
It must not import reporting, model_export or cli.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from analysis.findings.cost import OutcomeCost as OutcomeCost, StudyCost as StudyCost, study_cost as study_cost
    from analysis.findings.curves import (
        LearningCurve as LearningCurve,
        evenly_spaced as evenly_spaced,
        learning_curves as learning_curves,
    )
    from analysis.findings.failures import (
        Failure as Failure,
        FailureGroup as FailureGroup,
        group_failures as group_failures,
        list_failures as list_failures,
    )
    from analysis.findings.heatmap import Cell as Cell, HeatMap as HeatMap, heat_maps as heat_maps
    from analysis.findings.provenance import (
        Provenance as Provenance,
        TrackingLink as TrackingLink,
        study_provenance as study_provenance,
        tracking_link as tracking_link,
        tracking_uri as tracking_uri,
    )
    from analysis.findings.published_results import (
        PublishedResult as PublishedResult,
        evaluation_setting as evaluation_setting,
        matching_results as matching_results,
    )
    from analysis.findings.reproduce import (
        ReproduceCommand as ReproduceCommand,
        reproduce_commands as reproduce_commands,
    )
    from analysis.findings.stopping_audit import audit_text as audit_text
    from analysis.findings.study_answers.answer import (
        Answer as Answer,
        PointComparison as PointComparison,
        answer_text as answer_text,
        answers as answers,
        common_sentence as common_sentence,
        comparisons_sentence as comparisons_sentence,
        compress_answer as compress_answer,
        describe_size_level as describe_size_level,
    )
    from analysis.findings.study_answers.certainty import (
        ChosenDifference as ChosenDifference,
        Evidence as Evidence,
        chosen_difference as chosen_difference,
        describe_equivalence as describe_equivalence,
        equivalence as equivalence,
        selected_error as selected_error,
        study_evidence as study_evidence,
    )
    from analysis.findings.study_answers.undecided import undecided_sentence as undecided_sentence
    from analysis.findings.study_comparison import (
        StudyComparison as StudyComparison,
        compare_studies as compare_studies,
    )
    from analysis.findings.study_diff import (
        FieldDifference as FieldDifference,
        field_differences as field_differences,
    )
    from analysis.findings.test_errors import (
        PointSeries as PointSeries,
        SettingTestError as SettingTestError,
        measured_test_errors as measured_test_errors,
        series_of_test_errors as series_of_test_errors,
    )
    from analysis.findings.time_profile import (
        TimeProfile as TimeProfile,
        profile_lines as profile_lines,
        profile_study as profile_study,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "study_answers.answer": (
            "Answer PointComparison answer_text answers common_sentence comparisons_sentence compress_answer "
            "describe_size_level"
        ),
        "study_answers.certainty": (
            "ChosenDifference Evidence chosen_difference describe_equivalence equivalence selected_error study_evidence"
        ),
        "study_answers.undecided": "undecided_sentence",
        "cost": "OutcomeCost StudyCost study_cost",
        "curves": "LearningCurve evenly_spaced learning_curves",
        "failures": "Failure FailureGroup group_failures list_failures",
        "heatmap": "Cell HeatMap heat_maps",
        "provenance": "Provenance TrackingLink study_provenance tracking_link tracking_uri",
        "published_results": "PublishedResult evaluation_setting matching_results",
        "reproduce": "ReproduceCommand reproduce_commands",
        "stopping_audit": "audit_text",
        "study_diff": "FieldDifference field_differences",
        "study_comparison": "StudyComparison compare_studies",
        "test_errors": "PointSeries SettingTestError measured_test_errors series_of_test_errors",
        "time_profile": "TimeProfile profile_lines profile_study",
    },
)
