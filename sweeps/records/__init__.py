"""What a study keeps on disk: journal, tables, and the typed records that both give back.

Entry points: `sweeps.records.load.load_study`, `sweeps.records.journal.Journal`, `sweeps.records.specification`.
Importing this package loads neither torch nor Optuna nor Ray. `analysis` reads studies through it.
Of sweeps it may import `sweeps.space` and `sweeps.utils` only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from sweeps.records.annotations import (
        GROUP_TAG as GROUP_TAG,
        MAX_NOTE_LENGTH as MAX_NOTE_LENGTH,
        Note as Note,
        NoteKind as NoteKind,
        append_note as append_note,
        check_group as check_group,
        check_note as check_note,
        notes_to_bytes as notes_to_bytes,
        open_todos as open_todos,
        parse_notes as parse_notes,
        parse_tags as parse_tags,
        read_notes as read_notes,
    )
    from sweeps.records.events import (
        TERMINAL as TERMINAL,
        Event as Event,
        EventFields as EventFields,
        Role as Role,
        Status as Status,
        TestLook as TestLook,
    )
    from sweeps.records.fronts import (
        best_trials as best_trials,
        competing_points as competing_points,
        completed_trials as completed_trials,
        decidable_difference as decidable_difference,
        front as front,
        front_first_seeds as front_first_seeds,
        front_settings as front_settings,
        front_trials as front_trials,
        group_by_point as group_by_point,
        mean_error as mean_error,
        model_trials as model_trials,
        non_dominated_points as non_dominated_points,
        point_key as point_key,
        searched_points as searched_points,
    )
    from sweeps.records.header import (
        HeaderData as HeaderData,
        HeaderHardware as HeaderHardware,
        HeaderNetwork as HeaderNetwork,
        HeaderStratum as HeaderStratum,
        HeaderTeacher as HeaderTeacher,
        StudyHeader as StudyHeader,
    )
    from sweeps.records.image_errors import (
        decode_wrong_images as decode_wrong_images,
        encode_wrong_images as encode_wrong_images,
        wrong_images as wrong_images,
    )
    from sweeps.records.journal import (
        BusyError as BusyError,
        FullDiskError as FullDiskError,
        Journal as Journal,
        JournalReader as JournalReader,
        StudyLostError as StudyLostError,
        damage_error as damage_error,
        find_optuna_damage as find_optuna_damage,
        is_study_disk_full as is_study_disk_full,
        locked_journal as locked_journal,
        seal_line as seal_line,
        study_lock as study_lock,
        truncate_torn_line as truncate_torn_line,
    )
    from sweeps.records.load import (
        STUDIES_FOLDER as STUDIES_FOLDER,
        StudyEvents as StudyEvents,
        StudyHistory as StudyHistory,
        find_study as find_study,
        find_trial as find_trial,
        fold_journal as fold_journal,
        is_study as is_study,
        list_studies as list_studies,
        load_history as load_history,
        load_study as load_study,
        read_group as read_group,
        read_rank_costs as read_rank_costs,
        read_step_times as read_step_times,
    )
    from sweeps.records.model import (
        SPLITS as SPLITS,
        Handle as Handle,
        StudyRecord as StudyRecord,
        TrialRecord as TrialRecord,
        apply_event as apply_event,
        count_test_looks as count_test_looks,
        describe_damage as describe_damage,
        intern_names as intern_names,
        resolve_number_format as resolve_number_format,
    )
    from sweeps.records.names import (
        ARTIFACTS_FOLDER as ARTIFACTS_FOLDER,
        BALANCED_ERROR as BALANCED_ERROR,
        CHECKPOINT_FILE as CHECKPOINT_FILE,
        EPOCHS_FILE as EPOCHS_FILE,
        FRONT_PICTURE as FRONT_PICTURE,
        FULL_ERROR as FULL_ERROR,
        INFEASIBLE_PREFIX as INFEASIBLE_PREFIX,
        JOURNAL_FILE as JOURNAL_FILE,
        LAYER_METRIC_PREFIXES as LAYER_METRIC_PREFIXES,
        MACHINE_METRICS as MACHINE_METRICS,
        MLFLOW_FILE as MLFLOW_FILE,
        MODELS_FOLDER as MODELS_FOLDER,
        NOTES_FILE as NOTES_FILE,
        OPTUNA_FILE as OPTUNA_FILE,
        POSTERIORS_FOLDER as POSTERIORS_FOLDER,
        RANK_COSTS_FILE as RANK_COSTS_FILE,
        REPORT_FOLDER as REPORT_FOLDER,
        RESULTS_FILE as RESULTS_FILE,
        SERIES_FILE as SERIES_FILE,
        SPACE_FILE as SPACE_FILE,
        STEP_TIMES_FILE as STEP_TIMES_FILE,
        SUMMARY_TABLE as SUMMARY_TABLE,
        TRACKING_LOG_FILE as TRACKING_LOG_FILE,
        TRACKING_PROGRESS_FILE as TRACKING_PROGRESS_FILE,
        TRIAL_WEIGHTS as TRIAL_WEIGHTS,
        TRIALS_FOLDER as TRIALS_FOLDER,
        VAL_ERROR as VAL_ERROR,
    )
    from sweeps.records.reasons import reasons_by_method as reasons_by_method
    from sweeps.records.specification import (
        ITSELF as ITSELF,
        AllocationSection as AllocationSection,
        BudgetSection as BudgetSection,
        DataSection as DataSection,
        JsonObject as JsonObject,
        MethodSection as MethodSection,
        StartSection as StartSection,
        TeacherSection as TeacherSection,
        Trial as Trial,
        TrialSpec as TrialSpec,
        check_specifications as check_specifications,
        identify as identify,
        trial_ids as trial_ids,
    )
    from sweeps.records.study_folders import (
        check_studies_folder as check_studies_folder,
        find_study_folder as find_study_folder,
        hold_new_study_folder as hold_new_study_folder,
        hold_study_folder as hold_study_folder,
        new_study_folder as new_study_folder,
        read_space_file as read_space_file,
        resume_command as resume_command,
        studies_root as studies_root,
        write_space_file as write_space_file,
    )
    from sweeps.records.tables import (
        FAILED as FAILED,
        FIT_FOLDER as FIT_FOLDER,
        FIT_SCHEMA as FIT_SCHEMA,
        FITS as FITS,
        OUT_OF_MEMORY as OUT_OF_MEMORY,
        epochs_to_table as epochs_to_table,
        read_tables as read_tables,
        results_to_table as results_to_table,
        start_kind as start_kind,
        study_fields as study_fields,
        study_from_fields as study_from_fields,
        trial_fields as trial_fields,
        trial_from_fields as trial_from_fields,
        write_tables as write_tables,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "annotations": (
            "GROUP_TAG MAX_NOTE_LENGTH Note NoteKind append_note check_group check_note notes_to_bytes open_todos "
            "parse_notes parse_tags read_notes"
        ),
        "events": "Event EventFields Role Status TERMINAL TestLook",
        "fronts": (
            "best_trials competing_points completed_trials decidable_difference front front_first_seeds front_settings "
            "front_trials group_by_point mean_error model_trials non_dominated_points point_key searched_points"
        ),
        "header": "HeaderData HeaderHardware HeaderNetwork HeaderStratum HeaderTeacher StudyHeader",
        "image_errors": "decode_wrong_images encode_wrong_images wrong_images",
        "journal": (
            "BusyError FullDiskError Journal JournalReader StudyLostError damage_error "
            "find_optuna_damage is_study_disk_full locked_journal seal_line study_lock truncate_torn_line"
        ),
        "load": (
            "STUDIES_FOLDER StudyEvents StudyHistory find_study find_trial fold_journal is_study list_studies "
            "load_history load_study read_group read_rank_costs read_step_times"
        ),
        "model": (
            "Handle SPLITS StudyRecord TrialRecord apply_event count_test_looks describe_damage "
            "intern_names resolve_number_format"
        ),
        "names": (
            "ARTIFACTS_FOLDER BALANCED_ERROR CHECKPOINT_FILE EPOCHS_FILE FRONT_PICTURE FULL_ERROR INFEASIBLE_PREFIX "
            "JOURNAL_FILE LAYER_METRIC_PREFIXES POSTERIORS_FOLDER "
            "MACHINE_METRICS MLFLOW_FILE MODELS_FOLDER NOTES_FILE OPTUNA_FILE RANK_COSTS_FILE REPORT_FOLDER "
            "RESULTS_FILE SERIES_FILE SPACE_FILE STEP_TIMES_FILE SUMMARY_TABLE TRACKING_LOG_FILE "
            "TRACKING_PROGRESS_FILE TRIALS_FOLDER TRIAL_WEIGHTS VAL_ERROR"
        ),
        "reasons": "reasons_by_method",
        "specification": (
            "AllocationSection BudgetSection DataSection ITSELF JsonObject MethodSection StartSection TeacherSection "
            "Trial TrialSpec check_specifications identify trial_ids"
        ),
        "study_folders": (
            "check_studies_folder find_study_folder hold_new_study_folder hold_study_folder new_study_folder "
            "read_space_file resume_command studies_root write_space_file"
        ),
        "tables": (
            "FAILED FITS FIT_FOLDER FIT_SCHEMA OUT_OF_MEMORY epochs_to_table read_tables results_to_table start_kind "
            "study_fields study_from_fields trial_fields trial_from_fields write_tables"
        ),
    },
)
