"""Names of the files in a study's folder, of metrics and of counts.

They are written to disk, so a constant may be renamed but its value must not change.
"""

from __future__ import annotations

JOURNAL_FILE = "journal.jsonl"
RESULTS_FILE = "results.parquet"
EPOCHS_FILE = "epochs.parquet"
NOTES_FILE = "notes.jsonl"  # what people wrote about the study, apart from the journal
SPACE_FILE = "space.yaml"
SERIES_FILE = "series.yaml"  # in the folder of a series: the content of the series file and the options of the command
LOCK_FILE = "driver.lock"
TRACKING_PROGRESS_FILE = "tracking.json"  # which store takes the records, and how much of the journal it has accepted
TRACKING_LOG_FILE = "tracking.log"  # output of the tracking process
MLFLOW_FILE = "mlflow.db"
OPTUNA_FILE = "optuna.journal"  # Optuna's own record of its proposals, which can be made again from the journal
STEP_TIMES_FILE = "step_times.json"  # measured times of training steps, by network
RANK_COSTS_FILE = "rank_costs.json"  # what ranks were measured to cost the trained network, by layer
ARTIFACTS_FOLDER = "mlflow_artifacts"
TRIALS_FOLDER = "trials"
POSTERIORS_FOLDER = "posteriors"  # of variational layers, shared by trials that differ in their budget alone
CHECKPOINT_FILE = "checkpoint.safetensors"  # in TRIALS_FOLDER / trial id
FRONT_PICTURE = "front.png"
SUMMARY_TABLE = "summary.csv"
REPORT_FOLDER = "report"
MODELS_FOLDER = "models"  # models of the front and the references, one folder a trial

INFEASIBLE_PREFIX = "infeasible-"  # of the id of a point that was never launched; its values follow
TRIAL_WEIGHTS = "trial:"  # prefix of a start from the weights of another trial of the study; its id follows

VAL_ERROR = "val_error"  # in percent
BALANCED_ERROR = "val_balanced_error"  # in percent, mean over classes of the error on their images

FULL_ERROR = "full_val_error"  # in percent, of a variational network before groups are removed

# Metrics of an epoch, where they apply (docs/background/training.md); errors in percent, losses as means over samples
EPOCH_METRICS = (
    VAL_ERROR, "val_loss", "train_error", "train_loss", "lr", "images_per_second", "epoch_seconds", "val_error_top5",
    BALANCED_ERROR,
    "loss_kl", "kl_weight", "sparsity", "compression", FULL_ERROR,
    "loss_cross_entropy", "loss_kd", "loss_attention", "loss_auxiliary", "prediction_spread", "grad_norm",
    "loss_scale", "skipped_steps", "peak_device_mb", "device_utilisation", "host_memory_mb",
    "input_seconds", "compile_seconds", "eval_seconds", "eval_compile_seconds", "report_seconds",
)  # fmt: skip

# The metrics of an epoch that describe the machine rather than the training
MACHINE_METRICS = frozenset(
    {
        "images_per_second", "epoch_seconds", "peak_device_mb", "device_utilisation", "host_memory_mb",
        "input_seconds", "compile_seconds", "eval_seconds", "eval_compile_seconds", "report_seconds",
    }
)  # fmt: skip

STAGE_METRIC_PREFIX = "grad_norm."  # of metrics for one stage of the network, such as grad_norm.stage1
LAYER_METRIC_PREFIXES = ("kl.", "alive.", "snr.")  # of metrics for one layer, such as kl.hidden.0
PART_METRIC_PREFIXES = (STAGE_METRIC_PREFIX, *LAYER_METRIC_PREFIXES)
STAGE_COLUMN = "by_stage"  # column of epochs.parquet that holds all metrics with one of these prefixes

# Sizes and costs of a trial
COUNTS = (
    "params", "mult_adds", "dense_params", "dense_mult_adds", "separable_params", "separable_mult_adds",
    "budget_gap",  # distance to the tightest limit of the budget, in that limit's unit; only where a budget is given
    "mixed_bytes",  # of the weights with the bits that their posterior variances ask for; only of variational layers
    "bytes", "step_us",  # size as safetensors, and a measured step in microseconds; only where the budget limits them
)  # fmt: skip
