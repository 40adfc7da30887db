"""Names and schema of what `--probe-memory` measures."""

from __future__ import annotations

import pyarrow as pa

from sweeps.records.events import Status

# One row a distinct configuration, on the device that its trials will use. MB are 1e6 bytes;
# `largest_batch` is 0 where none fits; `limited` says that a larger one was seen not to fit.
FIT_SCHEMA = pa.schema(
    [
        ("trial_id", pa.string()), ("stratum", pa.string()), ("network", pa.string()), ("method", pa.string()),
        ("params", pa.int64()), ("parameters", pa.string()), ("configuration", pa.string()), ("teacher", pa.string()),
        ("host", pa.string()), ("device", pa.string()), ("share", pa.float64()), ("precision", pa.string()),
        ("batch_size", pa.int64()), ("status", pa.string()), ("reason", pa.string()), ("peak_mb", pa.float64()),
        ("step_seconds", pa.float64()), ("images_per_second", pa.float64()), ("largest_batch", pa.int64()),
        ("limited", pa.bool_()), ("measured_at", pa.float64()),
    ]
)  # fmt: skip
FITS, OUT_OF_MEMORY, FAILED = "fits", str(Status.OUT_OF_MEMORY), str(Status.FAILED)  # values of `status`
FIT_FOLDER = "fit"  # in the folder of studies; one Parquet file a space
