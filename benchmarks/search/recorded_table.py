"""The table that searches are compared on: a full grid of narrow ResNet-9 on the digits, each network trained once.

    python -m benchmarks.search.recorded_table            (trains what is missing; may be stopped and started again)

Grid: 4 methods x 2 to 4 dimensions x 10 rank scales x 3 weight decays x 2 kinds of decay; settings that build the same
network are trained once and stand in every row. 600 training images, 8 epochs, width 0.25, seed 0.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lowrank.utils import OneLineParser
from sweeps.records.specification import TrialSpec

TABLE = Path(__file__).resolve().with_suffix(".parquet")
PARTS = TABLE.with_suffix(".jsonl")  # what has been trained so far; removed once the table is whole
METHODS = ("tensor_train", "tucker", "cp", "bottleneck")
DIMS = (2, 3, 4)
SCALES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
DECAYS = (1e-4, 1e-3, 1e-2)
KINDS = ("plain", "scaled")
CONTENT: dict[str, Any] = {
    "question": "Which shape is best at which size?",
    "data": {"name": "digits", "train_images": 600},
    "network": {"name": "resnet9", "width": 0.25},
    "train": {"epochs": 8, "weight_decay": {"choice": list(DECAYS)}, "decay": {"choice": list(KINDS)}},
    "method": {
        "name": {"choice": list(METHODS)}, "dims": {"choice": list(DIMS)}, "rank_scale": {"choice": list(SCALES)},
    },
    "search": {"sampler": "grid", "trials": 100_000, "stop": "none"},
}  # fmt: skip
Row = dict[str, Any]


def rows() -> tuple[list[Row], dict[str, dict[str, Any]]]:
    """Every point of the grid with its trial's id and size (id None: infeasible), and the specification of each id."""
    from lowrank.data import DataSettings, load_data
    from lowrank.errors import InfeasibleError
    from sweeps.space.parse import parse_space
    from sweeps.trials.resolver import Resolver

    resolver = Resolver(parse_space("search_table", CONTENT), load_data(DataSettings(**CONTENT["data"])))
    grid, specifications = [], {}
    for method, dims, scale, decay, kind in itertools.product(METHODS, DIMS, SCALES, DECAYS, KINDS):
        row: Row = {"method": method, "dims": dims, "rank_scale": scale, "weight_decay": decay, "decay": kind}
        point = {
            "method.name": method, "method.dims": dims, "method.rank_scale": scale, "train.weight_decay": decay,
            "train.decay": kind,
        }  # fmt: skip
        try:
            trial = resolver.resolve(point)
        except InfeasibleError:
            grid.append({**row, "trial_id": None, "params": None, "mult_adds": None})
            continue
        specifications[trial.trial_id] = trial.specification
        counts = {name: trial.counts[name] for name in ("params", "mult_adds")}
        grid.append({**row, "trial_id": trial.trial_id, **counts})
    return grid, specifications


def _train(job: tuple[str, TrialSpec]) -> tuple[str, float]:
    import torch

    from sweeps.trials.build import load_trial_data, make_trainer

    torch.set_num_threads(1)
    trial_id, specification = job
    trainer = make_trainer(specification, load_trial_data(specification, None), "cpu")
    error = 100.0
    for _ in range(trainer.recipe.epochs):
        error = trainer.train_epoch()["val_error"]
    return trial_id, error


def _trained() -> dict[str, float]:
    if not PARTS.exists():
        return {}
    lines = [json.loads(line) for line in PARTS.read_text().splitlines() if line.endswith("}")]
    return {line["trial_id"]: line["val_error"] for line in lines}


def main(arguments: list[str] | None = None) -> None:
    """Train what is missing and write the table when it is whole."""
    parser = OneLineParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N")
    parser.add_argument("--limit", type=int, metavar="N", help="train at most so many now")
    options = parser.parse_args(arguments)
    grid, specifications = rows()
    jobs = [job for job in specifications.items() if job[0] not in _trained()][: options.limit]
    print(f"{len(grid)} rows, {len(specifications)} networks, {len(jobs)} to train now", flush=True)
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool, PARTS.open("a") as parts:
        for done, (trial_id, error) in enumerate(pool.imap_unordered(_train, jobs), start=1):
            parts.write(json.dumps({"trial_id": trial_id, "val_error": error}) + "\n")
            parts.flush()
            if done % 50 == 0:
                print(f"{done} of {len(jobs)}", flush=True)
    errors = _trained()
    if specifications.keys() <= errors.keys():
        pq.write_table(pa.Table.from_pylist([{**row, "val_error": errors.get(row["trial_id"])} for row in grid]), TABLE)
        PARTS.unlink()
        print(f"written: {TABLE}")


if __name__ == "__main__":
    main()
