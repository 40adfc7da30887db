"""What a proposal costs beyond Optuna's own work, at 1,000 past trials: resolving, counting, looking up, journaling.

    python -m benchmarks proposals

WRN-28-10 with ten searched parameters, three of them the shares of a budget among stages, in one stratum. Optuna's own
work (`Study.ask` and every `suggest`) is timed inside the very same proposals.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import optuna

from benchmarks.measurement import Goal, Measurement, Options, Table, median
from lowrank.data import DataSettings, load_data
from sweeps.records.events import Event, Status
from sweeps.records.journal import Journal
from sweeps.records.model import StudyRecord, apply_event
from sweeps.search.optuna_proposer import OptunaProposer
from sweeps.search.proposer import Outcome, OutcomeKind
from sweeps.search.search import Search
from sweeps.space.parse import parse_space
from sweeps.space.points import Points
from sweeps.space.strata import Stratum
from sweeps.trials.resolver import Resolver

LIMIT = 5.0  # ms beyond Optuna's own
PAST, PROPOSALS = 1000, 30
CONTENT = {
    "question": "What does a proposal cost?",
    "network": {"name": "wrn_28_10"},
    "train": {
        "weight_decay": {"log_uniform": [1e-5, 1e-2]}, "lr": {"log_uniform": [0.01, 1.0]},
        "decay_multiplier": {"log_uniform": [0.1, 10.0]}, "label_smoothing": {"uniform": [0.0, 0.2]},
    },
    "method": {"name": {"choice": ["tensor_train", "tucker", "bottleneck", "shuffle"]}, "dims": {"int": [2, 5]}},
    "budget": {"params": {"log_uniform": [0.2, 0.4]}, "relative_to": "separable", "allocation": "stage"},
    "search": {"trials": 100_000, "stop": "none"},
}  # fmt: skip


class _TimedPoints(Points):
    """Points whose drawing is timed: it is Optuna's suggesting and a loop over names."""

    def suggest(self, stratum: Stratum, trial: optuna.Trial) -> dict[str, Any]:
        start = time.perf_counter()
        point = super().suggest(stratum, trial)
        _SPENT.append(time.perf_counter() - start)
        return point


_SPENT: list[float] = []


def _timed(study: optuna.Study) -> None:
    ask = study.ask

    def timed(*args: Any, **named: Any) -> optuna.Trial:
        start = time.perf_counter()
        try:
            return ask(*args, **named)
        finally:
            _SPENT.append(time.perf_counter() - start)

    study.ask = timed  # type: ignore[method-assign]


def _past(search: Search, stratum: Stratum, count: int) -> None:
    """So many ended trials, in the sampler's memory and on record."""
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for number in range(count):
        point = search.resolver.points.suggest(stratum, drawn.ask())
        error = 3.0 + 100 * abs(float(point["train.weight_decay"] or 0) - 1e-3) + (number % 13) / 7
        search.proposer.learn(stratum, point, Outcome(OutcomeKind.COMPLETE, (error,), 1), f"past/{number}")  # type: ignore[attr-defined]
        name = f"past-{number}"
        apply_event(search.record, {
            "event": Event.PROPOSED, "time": float(number), "trial": name, "role": "search", "stratum": stratum.label,
            "parameters": point, "specification": {}, "counts": {"params": 1}, "proposal": {"number": number},
        })  # fmt: skip
        apply_event(search.record, {
            "event": Event.FINISHED, "time": float(number), "trial": name, "status": str(Status.COMPLETED),
        })  # fmt: skip


def run(options: Options) -> Measurement:
    """Time proposals; milliseconds."""
    past, count = (30, 3) if options.quick else (PAST, options.repeated(PROPOSALS))
    with tempfile.TemporaryDirectory() as folder:
        space = parse_space("proposals", CONTENT)
        resolver = Resolver(space, load_data(DataSettings()))
        points = _TimedPoints(space, resolver.points.groups)
        proposer = OptunaProposer(space, Path(folder), points)
        journal = Journal(Path(folder) / "journal.jsonl")
        search = Search(space, resolver, proposer, journal, StudyRecord())
        stratum = resolver.strata[0]
        _past(search, stratum, past)
        _timed(proposer.optuna_study(stratum.label))
        totals, by_optuna = [], []
        for turn in range(count + 2):
            _SPENT.clear()
            start = time.perf_counter()
            trial = search.next()
            taken = time.perf_counter() - start
            assert trial is not None
            search.finish(trial.trial_id, Status.FAILED, "not trained here")
            if turn >= 2:  # the first two fill caches
                totals.append(1000 * taken)
                by_optuna.append(1000 * sum(_SPENT))
        journal.close()
    beyond = [total - by_optuna_alone for total, by_optuna_alone in zip(totals, by_optuna, strict=True)]
    rows = [
        {"what": name, "median ms": median(values), "slowest ms": max(values)}
        for name, values in (("a proposal", totals), ("of it Optuna's own", by_optuna), ("beyond it", beyond))
    ]
    table = Table(title=f"proposals at {past:,} past trials", columns=("what", "median ms", "slowest ms"), rows=rows)
    goal = Goal(what="a proposal beyond Optuna's own, median", limit=LIMIT, found=median(beyond), unit="ms")
    return Measurement(
        name="proposals", settings={"past": past, "proposals": count, "parameters": 10, "network": "wrn_28_10"},
        tables=[table], goals=[] if options.quick else [goal],
    )  # fmt: skip
