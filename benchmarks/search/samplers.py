"""How well a search does on a recorded table of trainings, against Optuna's own samplers on the raw space.

    python -m benchmarks search

The table is a full grid (benchmarks.search.recorded_table). The question: the best front of validation error and
parameters within a limit that few of the raw settings keep. This project's search proposes budgets within the limit and
solves the rank; the others propose the rank and learn of the limit by a constraint. A trial counts when it is launched.
Hypervolume: error and log parameters, both minimised; reference 90 % error (chance) at the limit; points over the limit
have none; as a share of what the whole table holds.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow.parquet as pq

from benchmarks.measurement import PROJECT, Goal, Measurement, Options, Table
from benchmarks.search.recorded_table import CONTENT, DECAYS, DIMS, KINDS, METHODS, SCALES, TABLE
from lowrank.errors import InfeasibleError
from sweeps.records.events import Role, Status
from sweeps.records.journal import Journal
from sweeps.records.model import StudyRecord
from sweeps.records.specification import MethodSection, Trial
from sweeps.search.optuna_proposer import OptunaProposer
from sweeps.search.search import Search
from sweeps.space.parse import parse_space
from sweeps.space.points import Points
from sweeps.space.strata import make_strata
from tests.support.specifications import make_specification

PICTURE = PROJECT / "docs" / "pictures" / "search.png"
FEASIBLE = 0.06  # share of the raw settings that the limit lets pass
BUDGETS = (0.5, 0.65, 0.8, 1.0)  # of the limit: the strata
TRIALS, SEEDS, SHOWN = 60, 20, (10, 20, 40, 60)
WORST_ERROR = 90.0
TITLE = "% of the table's hypervolume after so many trials, mean and 95 % bootstrap interval"
DRAWN = 2000  # bootstrap samples
LOOKS = (  # colours that colour-blind readers tell apart (Okabe and Ito), a line and a marker each
    ("#0072B2", "-", "o"), ("#56B4E9", "--", "s"), ("#D55E00", "-", "^"), ("#CC79A7", "--", "D"), ("#555555", ":", "v"),
)  # fmt: skip
Key = tuple[str, int, float, float, str]


@dataclass(frozen=True)
class Recorded:
    """The table: every raw setting with its parameters and error (None: it cannot be built)."""

    found: dict[Key, tuple[int, float] | None]

    @property
    def limit(self) -> int:
        """The parameters that the FEASIBLE smallest share of the raw settings keep."""
        sizes = sorted(entry[0] if entry else math.inf for entry in self.found.values())
        return int(sizes[int(FEASIBLE * len(sizes))])

    @property
    def whole(self) -> float:
        """The hypervolume of every feasible setting together."""
        return hypervolume([entry for entry in self.found.values() if entry], self.limit)


def read(path: Path) -> Recorded:
    """The recorded table."""
    rows = pq.read_table(path).to_pylist()
    return Recorded({
        (row["method"], row["dims"], row["rank_scale"], row["weight_decay"], row["decay"]): (
            (row["params"], row["val_error"]) if row["params"] is not None else None
        )
        for row in rows
    })  # fmt: skip


def hypervolume(points: list[tuple[int, float]], limit: int) -> float:
    """Of (parameters, error) within the limit: area over log parameters and error, to the reference point."""
    area, best = 0.0, WORST_ERROR
    inside = sorted({(params, error) for params, error in points if params <= limit and error < WORST_ERROR})
    for params, error in inside:
        if error < best:
            area += (best - error) * (math.log(limit) - math.log(params))
            best = error
    return area


class _TableResolver:
    """Stands for sweeps.trials.resolver.Resolver: a budget is solved among the settings of the table."""

    def __init__(self, space: Any, table: Recorded):
        self.space, self.table = space, table
        self.entries: dict[str, tuple[int, float]] = {}  # size and error of each trial, by its id
        self.strata = make_strata(space, separable_params=10**9)
        self.points = Points(space)

    def resolve(self, point: dict[str, Any], repeat: int = 0, role: Role = Role.SEARCH) -> Trial:
        """The largest tabulated setting of the shape within the point's budget."""
        name, dims = str(point["method.name"]), int(point["method.dims"])
        rest = float(point["train.weight_decay"]), str(point["train.decay"])
        sizes = [(self.table.found[name, dims, scale, *rest], scale) for scale in SCALES]
        within = [(entry, scale) for entry, scale in sizes if entry and entry[0] <= point["budget.params"]]
        if not within:
            raise InfeasibleError(f"{name} in {dims} dimensions has no setting within the budget")
        entry, scale = max(within)
        setting = (name, entry[0], 0 if name == "bottleneck" else dims, *rest)
        shape = hashlib.sha256(repr(setting).encode()).hexdigest()[:16]
        specification = make_specification().model_copy(update={"method": MethodSection(name=name, rank_scale=scale)})
        self.entries[shape] = entry
        label = next(stratum.label for stratum in self.strata if stratum.contains(point))
        return Trial(shape, role, label, dict(point), specification, {"params": entry[0], "mult_adds": 1}, shape)

    def references(self, repeat: int = 0) -> tuple[list[Trial], list[str]]:
        """None."""
        return [], []


def solved(sampler: str) -> Callable[[Recorded, int, int], Iterator[tuple[int, float]]]:
    """This project's own search, with its proposer, journal and strata, over the table."""

    def launched(table: Recorded, seed: int, trials: int) -> Iterator[tuple[int, float]]:
        budgets = [float(int(share * table.limit)) for share in BUDGETS]
        method = {key: value for key, value in CONTENT["method"].items() if key != "rank_scale"}
        content = {
            **CONTENT, "method": method, "budget": {"params": {"choice": budgets}},
            "search": {"trials": trials, "seed": seed, "stop": "none", "sampler": sampler},
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            resolver: Any = _TableResolver(parse_space("replay", content), table)
            proposer = OptunaProposer(resolver.space, Path(folder), resolver.points)
            journal = Journal(Path(folder) / "journal.jsonl")
            search = Search(resolver.space, resolver, proposer, journal, StudyRecord())
            while (trial := search.next()) is not None:
                params, error = resolver.entries[trial.trial_id]
                yield params, error
                search.write_epoch(trial.trial_id, 1, {"val_error": error})
                search.finish(trial.trial_id, Status.COMPLETED)
            journal.close()

    return launched


def raw(sampler: Callable[[int], Any]) -> Callable[[Recorded, int, int], Iterator[tuple[int, float]]]:
    """Optuna on the raw space, two objectives, the limit as a constraint; what is proposed is launched."""

    def launched(table: Recorded, seed: int, trials: int) -> Iterator[tuple[int, float]]:
        study = optuna.create_study(sampler=sampler(seed), directions=["minimize", "minimize"])
        for _ in range(trials):
            trial = study.ask()
            key = (
                trial.suggest_categorical("method", METHODS), trial.suggest_categorical("dims", DIMS),
                SCALES[trial.suggest_int("scale", 0, len(SCALES) - 1)],
                DECAYS[trial.suggest_int("weight_decay", 0, len(DECAYS) - 1)],
                trial.suggest_categorical("decay", KINDS),
            )  # fmt: skip
            params, error = table.found[key] or (10**9, WORST_ERROR)
            trial.set_constraint("size", math.log(params / table.limit))
            yield params, error
            study.tell(trial, [error, math.log(params)])

    return launched


SEARCHERS: dict[str, Callable[[Recorded, int, int], Iterator[tuple[int, float]]]] = {
    "this project, TPE in strata": solved("tpe"),
    "this project, random in strata": solved("random"),
    "Optuna, constrained TPE": raw(lambda seed: optuna.samplers.TPESampler(seed=seed)),
    "Optuna, constrained NSGA-II": raw(lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=20)),
    "random on the raw space": raw(lambda seed: optuna.samplers.RandomSampler(seed=seed)),
}


@dataclass(frozen=True)
class Curves:
    """One searcher: shares of the table's hypervolume (seeds x trials), share of launched trials over the limit."""

    name: str
    volumes: np.ndarray
    infeasible: float

    def interval(self) -> np.ndarray:
        """95 % interval (2 x trials: low, high) of the mean over seeds at each trial: percentiles of bootstrap means.

        Seeds are drawn with replacement (Efron, "Bootstrap methods", Annals of Statistics 7, 1979), so the interval
        stays where shares can be.
        """
        seeds = len(self.volumes)
        drawn = np.random.default_rng(0).integers(seeds, size=(DRAWN, seeds))
        return np.percentile(self.volumes[drawn].mean(axis=1), [2.5, 97.5], axis=0)


def replay(name: str, table: Recorded, seeds: int, trials: int) -> Curves:
    """Replay one searcher with several seeds."""
    volumes, over, count = [], 0, 0
    for seed in range(seeds):
        seen: list[tuple[int, float]] = []
        curve = []
        for params, error in SEARCHERS[name](table, seed, trials):
            seen.append((params, error))
            curve.append(hypervolume(seen, table.limit) / table.whole)
        over += sum(params > table.limit for params, _ in seen)
        count += len(seen)
        volumes.append(curve + curve[-1:] * (trials - len(curve)))
    return Curves(name, np.array(volumes), over / count)


def run(options: Options, table: Recorded | None = None, picture: Path | None = PICTURE) -> Measurement:
    """Replay every searcher; a picture of the curves is drawn where the table is the recorded one."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    table = table or read(TABLE)
    seeds, trials = (1, 12) if options.quick else (options.repeated(SEEDS), TRIALS)
    searchers = [replay(name, table, seeds, trials) for name in SEARCHERS]
    shown = [number for number in SHOWN if number <= trials] or [trials]
    rows = [
        {"searcher": curves.name, "infeasible %": 100 * curves.infeasible}
        | {f"after {n}": _percent(curves, n) for n in shown}
        for curves in searchers
    ]
    if picture is not None and not options.quick:
        draw(searchers, table, picture)
    columns = ("searcher", "infeasible %", *(f"after {number}" for number in shown))
    feasible = np.mean([entry is not None and entry[0] <= table.limit for entry in table.found.values()])
    return Measurement(
        name="search", settings={"limit": table.limit, "feasible": f"{feasible:.1%}", "seeds": seeds, "trials": trials},
        tables=[Table(title=TITLE, columns=columns, rows=rows)],
        goals=[Goal(what="infeasible among launched, this project", limit=0, found=searchers[0].infeasible, unit="")],
        notes=[f"{len(table.found):,} raw settings, of which {feasible:.1%} keep {table.limit:,} parameters"],
    )  # fmt: skip


def _percent(curves: Curves, number: int) -> str:
    mean, (low, high) = 100 * curves.volumes[:, number - 1].mean(), 100 * curves.interval()[:, number - 1]
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def draw(searchers: list[Curves], table: Recorded, path: Path) -> None:
    """Mean hypervolume against launched trials, with 95 % intervals over seeds; every colour has a line of its own."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for curves, (colour, style, marker) in zip(searchers, LOOKS, strict=True):
        trials, (low, high) = np.arange(1, curves.volumes.shape[1] + 1), 100 * curves.interval()
        label = f"{curves.name}: {curves.infeasible:.0%} of its trials over the limit"
        axes.plot(
            trials, 100 * curves.volumes.mean(axis=0), label=label, color=colour, ls=style, lw=1.8, marker=marker,
            markevery=(9, 10), ms=5,
        )  # fmt: skip
        axes.fill_between(trials, low, high, color=colour, alpha=0.13, lw=0)
    axes.set_xlim(1, len(trials))
    axes.set_ylim(0, 101)
    axes.set_xlabel("launched trials")
    axes.set_ylabel("hypervolume, % of the whole table's")
    axes.set_title(
        f"ResNet-9 on the digits, at most {table.limit:,} parameters: "
        f"mean and 95 % interval of {len(searchers[0].volumes)} seeds", fontsize=10.5,
    )  # fmt: skip
    # Below, because the curves leave no corner free
    figure.legend(frameon=False, loc="outside lower center", ncols=1, fontsize=9)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
