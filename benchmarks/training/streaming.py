"""Two trials that stream many small JPEG files: images a second, and the memory that both take.

    python -m benchmarks.training.streaming --folder /tmp/streaming

Makes the set once: 100,000 JPEG of 64 x 64 in Parquet files with row groups of 1,000, as the hub has them. Each trial
is a process that loads the set and draws batches; another process adds up their proportional set size (PSS) with that
of their loaders, several times a second. Nothing is trained: the time is that of the data alone. Processor time is
given too, which other work on the machine changes less than the time on the clock.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from lowrank.utils import OneLineParser

CLASSES, SIDE, ROWS, FILES = 10, 64, 1000, 4
BATCH = 250


def make_set(folder: Path, images: int) -> None:
    """Write the training files, and a small test file; colours and stripes, so that JPEG has something to compress."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part, count, files in (("train", images, FILES), ("test", 1000, 1)):
        for number in range(files):
            blobs = []
            for _ in range(count // files):
                coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8))
                buffer = io.BytesIO()
                coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
                blobs.append({"bytes": buffer.getvalue(), "path": None})
            struct = pa.array(blobs, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
            labels = pa.array(np.arange(len(blobs)) % CLASSES, pa.int64())
            name = f"{part}-{number:05}-of-{files:05}.parquet"
            pq.write_table(pa.table({"image": struct, "label": labels}), folder / name, row_group_size=ROWS)


def trial(folder: Path, batches: int, index: int) -> None:
    """Load the set, draw batches of one epoch, and print a line of JSON."""
    import torch

    from lowrank.data import DataSettings, epoch_order, load_data
    from lowrank.data.watched_loader import stream_images

    torch.set_num_threads(1)  # a trial's share of two cores
    start = time.perf_counter()
    statistics = {"mean": (0.5,) * 3, "std": (0.25,) * 3}  # else 50,000 images are decoded for them
    data = load_data(DataSettings(name=f"parquet:{folder}", resident_mb=0, **statistics))
    loaded, load_cpu = time.perf_counter(), _processor_seconds()
    # As a trial's epoch, but of some images, spread over the whole set
    order = epoch_order(index, 0, len(data.train))[: batches * BATCH]
    drawn, first = 0, loaded
    for _, images in stream_images(data.train, order, BATCH, torch.device("cpu"), 2, 3600):
        first = time.perf_counter() if drawn == 0 else first
        drawn += len(images)
    end = time.perf_counter()
    print(json.dumps({
        "load_s": round(loaded - start, 1), "load_cpu_s": round(load_cpu, 1), "first_batch_s": round(first - loaded, 1),
        "images": drawn, "images_per_s": round((drawn - BATCH) / (end - first)),
        "draw_cpu_s": round(_processor_seconds() - load_cpu, 1),
    }), flush=True)  # fmt: skip


def _processor_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def pss_mb(pids: set[int]) -> float:
    """Proportional set size of processes and their descendants, in MB (1e6 bytes)."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    parents = dict(tuple(map(int, line.split())) for line in listed.splitlines()[1:])
    total = 0
    for pid in parents:
        ancestor = pid
        while ancestor not in pids and ancestor in parents:
            ancestor = parents[ancestor]
        if ancestor in pids:
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:  # it has ended
                continue
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1e6


def main() -> int:
    """Run the trials and print one line of JSON."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the set is, or is made")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--batches", type=int, default=40, help=f"of {BATCH} images, by each trial")
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--trial", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.folder.is_dir():
        make_set(options.folder, options.images)
    if options.trial is not None:
        trial(options.folder, options.batches, options.trial)
        return 0
    size = sum(path.stat().st_size for path in options.folder.iterdir()) / 1e6
    start, peak = time.perf_counter(), 0.0
    command = [sys.executable, "-m", "benchmarks.training.streaming", "--folder", str(options.folder)]
    command += ["--batches", str(options.batches), "--trial"]
    trials = [
        subprocess.Popen([*command, str(index)], stdout=subprocess.PIPE, text=True) for index in range(options.trials)
    ]
    while any(process.poll() is None for process in trials):
        peak = max(peak, pss_mb({process.pid for process in trials}))
        time.sleep(0.2)
    print(json.dumps({
        "encoded_mb": round(size), "trials": [json.loads(process.communicate()[0] or "null") for process in trials],
        "peak_pss_mb": round(peak), "seconds": round(time.perf_counter() - start, 1),
        "load_average": os.getloadavg()[0],
    }))  # fmt: skip
    return max(process.returncode for process in trials)


if __name__ == "__main__":
    sys.exit(main())
