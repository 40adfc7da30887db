"""`python -m benchmarks.calibration`: how often the sentences of an answer are right, by simulated studies.

Errors of settings, seeds and images are drawn from known truths, and the functions of `analysis` and `sweeps` that
judge real studies judge these. Each kind of study is drawn again and again with fixed seeds. A table says

* of an interval: in how many studies it holds the truth (at least 94.3 %, for a nominal 95 %);
* of a claim that is not true: in how many studies it is made (at most 5.6 %);
* of an error of a setting that was chosen as the best: reported minus true error in the mean, in standard deviations
  between seeds (at most 0.1);
* of a claim that is true: in how many studies it is made, beside an oracle that knows what was not chosen by chance.

The truth: network k of seed s is wrong on image i where `offset_k + seed_ks + image_i + setting_ki + rest_ksi` is above
0, all but the offset normal. So the error of a network on all images there are, and that of a setting over all seeds,
are known in closed form. Of the variance over images 0.6 is shared by all networks, 0.15 by the seeds of one setting:
two networks of 3 % error share about half of their wrong images.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from threadpoolctl import threadpool_limits

from analysis.stats import find_paired_effects
from analysis.stats.inference.intervals import wilson_interval
from analysis.stats.inference.margins import as_good_sizes
from analysis.stats.inference.paired import (
    mean_error_interval,
    paired_error_difference,
    seed_variance,
    two_level_bootstrap,
)
from analysis.stats.inference.selection import choose, corrected_difference, corrected_error, expand_counts
from benchmarks.measurement import Goal, Measurement, Options, Table, processor
from lowrank.utils import OneLineParser
from lowrank.utils.processes import usable_cores
from sweeps.records import (
    HeaderData,
    Role,
    Status,
    StudyHeader,
    StudyRecord,
    TrialRecord,
    competing_points,
    encode_wrong_images,
    front_settings,
)
from tests.support.specifications import make_specification

COVERAGE_GOAL, ALARM_GOAL, BIAS_GOAL = 94.3, 5.6, 0.1
SHARED, BY_SETTING = 0.6, 0.15  # parts of the variance over images
SEED_POINTS = 0.4  # standard deviation between seeds, in points of error at an error of 3 %
SETTINGS = 24
STUDIES = 10_000
QUICK_STUDIES = 4  # to see that it works: they say nothing of the rates


@dataclass(frozen=True)
class Truth:
    """What is drawn: `offsets` of settings (probit), how far seeds move them, how many images."""

    offsets: NDArray[np.float64]
    seeds: int = 1
    images: int = 288
    seed_deviation: float = SEED_POINTS / 100 / float(np.exp(-(ndtri(0.03) ** 2) / 2) / np.sqrt(2 * np.pi))


@dataclass(frozen=True)
class Drawn:
    """A study: which images were wrong, and the true errors, in percent."""

    wrong: NDArray[np.bool_]  # [setting, seed, image]
    networks: NDArray[np.float64]  # [setting, seed]
    settings: NDArray[np.float64]  # [setting]


def draw(truth: Truth, random: np.random.Generator) -> Drawn:
    """Draw a study."""
    settings = len(truth.offsets)
    level = truth.offsets[:, None] + truth.seed_deviation * random.standard_normal((settings, truth.seeds))
    image = np.sqrt(SHARED) * random.standard_normal(truth.images, dtype=np.float32)
    by_setting = np.sqrt(BY_SETTING) * random.standard_normal((settings, 1, truth.images), dtype=np.float32)
    by_network = np.sqrt(1 - SHARED - BY_SETTING) * random.standard_normal(
        (settings, truth.seeds, truth.images), dtype=np.float32
    )
    wrong = by_network + (by_setting + image) > -level[:, :, None].astype(np.float32)
    mean = truth.offsets / np.sqrt(1 + truth.seed_deviation**2)
    return Drawn(wrong, 100 * ndtr(level), 100 * ndtr(mean))


def offsets(random: np.random.Generator, count: int, spread: float, error: float = 3.0) -> NDArray[np.float64]:
    """Draw probits of settings whose true errors scatter by `spread` points about `error` percent."""
    centre = float(ndtri(error / 100))
    slope = float(np.exp(-(centre**2) / 2) / np.sqrt(2 * np.pi))
    return centre + spread / 100 / slope * random.standard_normal(count)


def probit(*errors: float) -> NDArray[np.float64]:
    """The offsets of settings of these true errors over all seeds, in percent."""
    deviation = Truth(np.zeros(1)).seed_deviation
    return np.asarray(ndtri(np.asarray(errors) / 100)) * np.sqrt(1 + deviation**2)


@dataclass
class Tally:
    """What was counted over the studies of a kind."""

    studies: int = 0
    held: int = 0  # intervals that hold the truth
    false_alarms: int = 0
    claims: int = 0  # true ones that were made
    oracle: int = 0  # true ones that an oracle would make
    excess: list[float] = field(default_factory=list)  # reported minus true, in points
    observed_excess: list[float] = field(default_factory=list)  # without any correction
    widths: list[float] = field(default_factory=list)

    def interval(self, low: float, high: float, truth: float) -> None:
        """Count an interval, in percent."""
        self.held += low <= truth <= high
        self.widths.append(high - low)


@dataclass(frozen=True)
class Row:
    """A line of the table; None where a kind has no such figure."""

    name: str
    studies: int
    coverage: float | None = None
    alarms: float | None = None
    bias: float | None = None
    naive_bias: float | None = None
    width: float | None = None
    power: float | None = None
    oracle: float | None = None
    has_goal: bool = True
    seconds: float = 0.0

    @property
    def missed(self) -> list[str]:
        """The goals that it does not meet, in words."""
        if not self.has_goal:
            return []
        missed = []
        if self.coverage is not None and self.coverage < COVERAGE_GOAL:
            missed.append(f"coverage {self.coverage:.1f} % is below {COVERAGE_GOAL} %")
        if self.alarms is not None and self.alarms > ALARM_GOAL:
            missed.append(f"false alarms {self.alarms:.1f} % are above {ALARM_GOAL} %")
        if self.bias is not None and abs(self.bias) > BIAS_GOAL:
            missed.append(f"reported minus true is {self.bias:+.2f} deviations, above {BIAS_GOAL}")
        return missed


Study = Callable[[np.random.Generator, Tally], None]


@dataclass(frozen=True)
class Kind:
    """A kind of study: what is drawn and judged, and which figures of the tally it has."""

    name: str
    study: Study
    figures: str  # of: coverage alarms bias power
    has_goal: bool = True  # False: a method that is not used, shown for comparison
    share: float = 1.0  # of the studies, where one takes long


def measure(kind: Kind, studies: int, seed: int) -> Row:
    """Draw and judge the studies of a kind.

    Args:
        kind: of study.
        studies: how many.
        seed: of all that is drawn.

    Returns:
        The line of the table.
    """
    tally, start = Tally(), time.perf_counter()
    with threadpool_limits(1):  # many small products, which threads make slower
        for child in np.random.SeedSequence(seed).spawn(studies):
            kind.study(np.random.default_rng(child), tally)
    figures = kind.figures.split()
    share = 100 / studies

    def mean(values: list[float], scale: float = 1.0) -> float | None:
        return float(np.mean(values)) / scale if values else None

    return Row(
        name=kind.name, studies=studies,
        coverage=tally.held * share if "coverage" in figures else None,
        alarms=tally.false_alarms * share if "alarms" in figures else None,
        bias=mean(tally.excess, SEED_POINTS) if "bias" in figures else None,
        naive_bias=mean(tally.observed_excess, SEED_POINTS) if "bias" in figures else None,
        width=mean(tally.widths), power=tally.claims * share if "power" in figures else None,
        oracle=tally.oracle * share if "power" in figures else None, has_goal=kind.has_goal,
        seconds=time.perf_counter() - start,
    )  # fmt: skip


# One network or setting that was fixed beforehand


def one_network(images: int) -> Study:
    def study(random: np.random.Generator, tally: Tally) -> None:
        drawn = draw(Truth(offsets(random, 1, 1.0), images=images), random)
        low, high = wilson_interval(100 * float(drawn.wrong.mean()), images)
        tally.interval(low, high, drawn.networks[0, 0])

    return study


def two_networks(images: int, gap: float) -> Study:
    """Two networks of one seed: an alarm is a p-value below 0.05 with equal errors."""

    def study(random: np.random.Generator, tally: Tally) -> None:
        drawn = draw(Truth(probit(3.0, 3.0 + gap), images=images, seed_deviation=0.0), random)
        difference = paired_error_difference(drawn.wrong[0], drawn.wrong[1])
        tally.interval(difference.low, difference.high, drawn.networks[0, 0] - drawn.networks[1, 0])
        tally.false_alarms += difference.p_value < 0.05 and gap == 0

    return study


def repeated_setting(images: int, method: str) -> Study:
    """One of four settings of three seeds, fixed beforehand; the truth is that over all seeds and images."""

    def study(random: np.random.Generator, tally: Tally) -> None:
        drawn = draw(Truth(offsets(random, 4, 0.4), seeds=3, images=images), random)
        if method == "bootstrap":
            low, high = (100 * end for end in two_level_bootstrap(drawn.wrong[0].astype(float), 200))
        else:
            pooled = seed_variance(drawn.wrong) if method == "pooled" else None
            _, low, high = mean_error_interval(drawn.wrong[0], pooled)
        tally.interval(low, high, drawn.settings[0])

    return study


def two_settings(images: int, gap: float) -> Study:
    """Two of four settings of three seeds each, with the variance between seeds pooled over the four."""

    def study(random: np.random.Generator, tally: Tally) -> None:
        drawn = draw(Truth(probit(3.0, 3.0 + gap, 2.5, 3.5), seeds=3, images=images), random)
        difference = paired_error_difference(drawn.wrong[0], drawn.wrong[1], seed_variance(drawn.wrong))
        tally.interval(difference.low, difference.high, drawn.settings[0] - drawn.settings[1])
        tally.false_alarms += difference.p_value < 0.05 and gap == 0

    return study


# The best of many


def best_of_many(images: int, spread: float, settings: int = SETTINGS, error: float = 3.0) -> Study:
    """The best of many settings of one seed each: the truth is the error of the chosen network."""

    def study(random: np.random.Generator, tally: Tally) -> None:
        drawn = draw(Truth(offsets(random, settings, spread, error), images=images), random)
        selected = corrected_error(drawn.wrong)
        truth = drawn.networks[selected.chosen, 0]
        tally.interval(selected.low, selected.high, truth)
        tally.excess.append(selected.mean - truth)
        tally.observed_excess.append(selected.observed - truth)

    return study


def best_without_images(images: int, spread: float) -> Study:
    """As above, where an old study has not recorded which images were wrong."""

    def study(random: np.random.Generator, tally: Tally) -> None:
        drawn = draw(Truth(offsets(random, SETTINGS, spread), images=images), random)
        errors = [100 * float(share) for share in drawn.wrong[:, 0].mean(axis=1)]
        selected = corrected_error(expand_counts(errors, images)[:, None])
        truth = drawn.networks[int(np.argmin(errors)), 0]
        tally.interval(selected.low, selected.high, truth)

    return study


def best_naive(images: int, spread: float) -> Study:
    def study(random: np.random.Generator, tally: Tally) -> None:
        drawn = draw(Truth(offsets(random, SETTINGS, spread), images=images), random)
        chosen = choose(drawn.wrong)
        error = 100 * float(drawn.wrong[chosen].mean())
        tally.interval(*wilson_interval(error, images), drawn.networks[chosen, 0])
        tally.excess.append(error - drawn.networks[chosen, 0])
        tally.observed_excess.append(error - drawn.networks[chosen, 0])

    return study


def grid_with_seeds(images: int, spread: float, seeds: int) -> Study:
    """The best of eight settings of a grid, each with all seeds: the truth is the error over all seeds."""

    def study(random: np.random.Generator, tally: Tally) -> None:
        drawn = draw(Truth(offsets(random, 8, spread), seeds=seeds, images=images), random)
        selected = corrected_error(drawn.wrong)
        tally.interval(selected.low, selected.high, drawn.settings[selected.chosen])
        tally.excess.append(selected.mean - drawn.settings[selected.chosen])
        tally.observed_excess.append(selected.observed - drawn.settings[selected.chosen])

    return study


def as_record(drawn: Drawn, sizes: NDArray[np.int_]) -> StudyRecord:
    """The first seed of a drawn study as the records of a search."""
    study = StudyRecord()
    for setting in range(len(sizes)):
        _add(study, drawn, sizes, setting, 0, Role.SEARCH)
    return study


def _add(study: StudyRecord, drawn: Drawn, sizes: NDArray[np.int_], setting: int, seed: int, role: Role) -> None:
    trial_id = f"{setting}-{seed}"
    study.trials[trial_id] = TrialRecord(
        trial_id=trial_id, role=role, status=Status.COMPLETED, parameters={"setting": setting},
        specification=make_specification(seed=seed), point_id=str(setting), counts={"params": int(sizes[setting])},
        epochs={1: {"val_error": 100 * float(drawn.wrong[setting, seed].mean())}},
    )  # fmt: skip


def repeat_front(drawn: Drawn, sizes: NDArray[np.int_], seeds: int) -> list[int]:
    """Repeat the front as a search does, until it stands still; the settings that may stand on it."""
    study = as_record(drawn, sizes)
    while True:
        before = len(study.trials)
        for setting in front_settings(study, seeds, SETTINGS):
            for seed in range(1, seeds):
                if f"{setting['setting']}-{seed}" not in study.trials:
                    _add(study, drawn, sizes, setting["setting"], seed, Role.REPEAT)
        if len(study.trials) == before:
            break
    return sorted(int(seeds[0].point_id) for seeds in competing_points(study.trials.values()))


def repeated_front(images: int, spread: float, slope: float, seeds: int = 3) -> Study:
    """A search of many sizes whose front is repeated: the best of those with all seeds, over all seeds and images.

    `slope` is how much the true error falls in points from the smallest to the largest size.
    """

    def study(random: np.random.Generator, tally: Tally) -> None:
        sizes = np.sort(random.integers(1_000, 100_000, SETTINGS))
        centre = offsets(random, SETTINGS, spread, 3.0 + slope / 2)
        centre = centre - slope / 100 / 0.08 * np.linspace(0, 1, SETTINGS)
        drawn = draw(Truth(centre, seeds=seeds, images=images), random)
        complete = repeat_front(drawn, sizes, seeds)
        selected = corrected_error(drawn.wrong[complete], screened=True)
        truth = drawn.settings[complete[selected.chosen]]
        tally.interval(selected.low, selected.high, truth)
        tally.excess.append(selected.mean - truth)
        tally.observed_excess.append(selected.observed - truth)

    return study


# As good as the reference


def as_good(images: int, seeds: int, gap: float, margin: float = 0.75) -> Study:
    """The smallest of 12 sizes that is "not more than a margin worse" than a reference of 3 %.

    All settings are `gap` points worse than it. A claim is false where the claimed setting is worse by more than the
    margin; the oracle tests the one setting that is best in truth.
    """

    def study(random: np.random.Generator, tally: Tally) -> None:
        truths = probit(*([3.0 + gap] * 12), 3.0)
        drawn = draw(Truth(truths, seeds=seeds, images=images, seed_deviation=0.0 if seeds == 1 else 0.0588), random)
        reference, wrong = drawn.wrong[12], drawn.wrong[:12]
        claims = as_good_sizes(wrong, list(range(1, 13)), reference, margin)
        if claims:
            error = drawn.networks[claims[-1].chosen, 0] if seeds == 1 else drawn.settings[claims[-1].chosen]
            base = drawn.networks[12, 0] if seeds == 1 else drawn.settings[12]
            tally.false_alarms += error - base > margin + 1e-9
        tally.claims += bool(claims)
        fixed = corrected_difference(wrong[:1], reference)
        tally.oracle += fixed.upper <= margin

    return study


# The best against another network


def chosen_against(images: int, others: int, seeds: int = 1, settings: int = SETTINGS) -> Study:
    """The best of many settings against another one, or the best of a few others, all of them equally good.

    An alarm is a p-value below 0.05. Networks of one seed are drawn without a deviation between seeds, because it is
    their own errors that are compared.
    """

    def study(random: np.random.Generator, tally: Tally) -> None:
        truth = Truth(probit(*[3.0] * (settings + others)), seeds=seeds, images=images)
        drawn = draw(replace(truth, seed_deviation=0.0) if seeds == 1 else truth, random)
        wrong, rivals = drawn.wrong[:settings], drawn.wrong[settings:]
        difference = corrected_difference(wrong, rivals)
        errors = drawn.networks[:, 0] if seeds == 1 else drawn.settings
        tally.interval(difference.low, difference.high, errors[choose(wrong)] - errors[settings + choose(rivals)])
        tally.false_alarms += difference.p_value < 0.05

    return study


# Many effects


def no_effect(images: int, seeds: int, *, recorded: bool = True) -> Study:
    """Four factors of two or three values and none with an effect, 24 random trials: is any called better or worse?

    `recorded` says whether the records say which images were wrong.
    """
    levels = (2, 2, 2, 3)

    def study(random: np.random.Generator, tally: Tally) -> None:
        record = StudyRecord(header=StudyHeader(data=HeaderData(val_images=images)))
        rows = [tuple(int(random.integers(level)) for level in levels) for _ in range(SETTINGS)]
        rows = list(dict.fromkeys(rows))
        drawn = draw(Truth(np.full(len(rows), float(ndtri(0.03))), seeds=seeds, images=images), random)
        for number, row in enumerate(rows):
            for seed in range(seeds):
                fields = {f"train.field{index}": value for index, value in enumerate(row)}
                trial_id = f"{number}-{seed}"
                record.trials[trial_id] = TrialRecord(
                    trial_id=trial_id, status=Status.COMPLETED, parameters=fields, point_id=str(number),
                    specification=make_specification(seed=seed), counts={"params": 1000},
                    epochs={1: {"val_error": 100 * float(drawn.wrong[number, seed].mean())}},
                    wrong_images={"val": encode_wrong_images(drawn.wrong[number, seed])} if recorded else {},
                )  # fmt: skip
        tally.false_alarms += any(effect.verdict() in ("better", "worse") for effect in find_paired_effects(record))

    return study


KINDS = (
    Kind("one network, 288 images: Wilson", one_network(288), "coverage"),
    Kind("one network, 2,000 images: Wilson", one_network(2000), "coverage"),
    Kind("two equal networks, 288 images: McNemar, Tango", two_networks(288, 0.0), "coverage alarms"),
    Kind("two networks 1 point apart, 288 images: Tango", two_networks(288, 1.0), "coverage"),
    Kind("two networks 1 point apart, 2,000 images: Tango", two_networks(2000, 1.0), "coverage"),
    Kind("a setting of 3 seeds, 288 images: pooled", repeated_setting(288, "pooled"), "coverage"),
    Kind("a setting of 3 seeds, 2,000 images: pooled", repeated_setting(2000, "pooled"), "coverage"),
    Kind("a setting of 3 seeds, 2,000 images: alone", repeated_setting(2000, "alone"), "coverage"),
    Kind("  the same: bootstrap in two levels (not used)", repeated_setting(2000, "bootstrap"), "coverage",
         has_goal=False, share=0.04),
    Kind("two equal settings of 3 seeds, 288 images", two_settings(288, 0.0), "coverage alarms"),
    Kind("two settings of 3 seeds 1 point apart, 2,000 images", two_settings(2000, 1.0), "coverage"),
    Kind("best of 24 equal, 288 images", best_of_many(288, 0.0), "coverage bias"),
    Kind("  the same: its own Wilson interval (not used)", best_naive(288, 0.0), "coverage bias", False),
    Kind("best of 24, 0.4 points apart, 288 images", best_of_many(288, 0.4), "coverage bias"),
    Kind("best of 24, 1 point apart, 288 images", best_of_many(288, 1.0), "coverage bias"),
    Kind("best of 24, 1 point apart, 2,000 images", best_of_many(2000, 1.0), "coverage bias"),
    Kind("best of 24 equal, 2,000 images", best_of_many(2000, 0.0), "coverage bias"),
    Kind("best of 100, 0.4 points apart, 288 images", best_of_many(288, 0.4, 100), "coverage bias"),
    Kind("best of 3, 0.4 points apart, 288 images", best_of_many(288, 0.4, 3), "coverage bias"),
    Kind("best of 24 equal, 288 images, counts alone", best_without_images(288, 0.0), "coverage"),
    Kind("best of 24, 1 point apart, 288 images, counts alone", best_without_images(288, 1.0), "coverage"),
    Kind("grid of 8, 3 seeds, equal, 288 images", grid_with_seeds(288, 0.0, 3), "coverage bias"),
    Kind("grid of 8, 3 seeds, 0.4 apart, 2,000 images", grid_with_seeds(2000, 0.4, 3), "coverage bias"),
    Kind("front repeated with 3 seeds, equal, 288 images", repeated_front(288, 0.0, 0.0), "coverage bias"),
    Kind("front repeated with 3 seeds, falling, 288 images", repeated_front(288, 0.4, 4.0), "coverage bias"),
    Kind("front repeated with 3 seeds, 0.4 apart, 2,000 images", repeated_front(2000, 0.4, 2.0), "coverage bias"),
    Kind("front repeated with 2 seeds, 0.4 apart, 288 images", repeated_front(288, 0.4, 2.0, 2), "coverage bias"),
    Kind("as good as: all 0.751 worse, margin 0.75, 288 images", as_good(288, 1, 0.7501), "alarms"),
    Kind("as good as: all 0.751 worse, margin 0.75, 2,000 images", as_good(2000, 1, 0.7501), "alarms"),
    Kind("as good as: all 0.751 worse, 3 seeds, 2,000 images", as_good(2000, 3, 0.7501), "alarms"),
    Kind("as good as: all equal, margin 0.75, 288 images", as_good(288, 1, 0.0), "power"),
    Kind("as good as: all equal, margin 0.75, 2,000 images", as_good(2000, 1, 0.0), "power"),
    Kind("as good as: all equal, 3 seeds, 2,000 images", as_good(2000, 3, 0.0), "power"),
    Kind("best of 24 against one as good, 288 images", chosen_against(288, 1), "coverage alarms"),
    Kind("best of 24 against the best of 3, 288 images", chosen_against(288, 3), "coverage alarms"),
    Kind("best of 8 against one as good, 3 seeds, 288 images", chosen_against(288, 1, 3, 8), "coverage alarms"),
    Kind("best of 8 against the best of 3, 3 seeds, 2,000 images", chosen_against(2000, 3, 3, 8), "coverage alarms"),
    Kind("effects of four factors without any, one seed", no_effect(2000, 1), "alarms"),
    Kind("effects of four factors without any, three seeds", no_effect(2000, 3), "alarms"),
    Kind("effects of four factors, counts alone, three seeds", no_effect(2000, 3, recorded=False), "alarms"),
)  # fmt: skip


def measure_all(studies: int, seed: int = 0, only: str = "", processes: int = 1) -> Iterator[Row]:
    """Yield the table's lines in its order, each as soon as it is measured.

    The seed of a kind is the same whatever else is measured.
    """
    numbers = [number for number, kind in enumerate(KINDS) if only in kind.name]
    measure_kind = partial(_measure_number, studies=studies, seed=seed)
    if processes == 1:
        yield from map(measure_kind, numbers)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(measure_kind, numbers)


def _measure_number(number: int, studies: int, seed: int) -> Row:
    kind = KINDS[number]
    return measure(kind, max(1, round(kind.share * studies)), seed * 1000 + number)


def run(options: Options) -> Measurement:
    """Measure all kinds, for `python -m benchmarks calibration`; `--repeats` is the number of studies of each."""
    studies = QUICK_STUDIES if options.quick else options.repeated(STUDIES)
    rows = list(measure_all(studies, options.seed))
    goals = [] if options.quick else [goal for row in rows if row.has_goal for goal in _goals(row)]
    columns = ("kind of study", "studies", "coverage %", "false alarms %", "bias", "naive bias", "claims %", "oracle %")
    cells = [
        (row.name, row.studies, row.coverage, row.alarms, row.bias, row.naive_bias, row.power, row.oracle)
        for row in rows
    ]
    table = Table(
        title="How often the sentences of an answer are right", columns=columns,
        rows=[dict(zip(columns, values, strict=True)) for values in cells],
    )  # fmt: skip
    return Measurement(name="calibration", settings={"seed": options.seed}, tables=[table], goals=goals)


def _goals(row: Row) -> Iterator[Goal]:
    """The goals of a row, each as a number that must not be above a limit."""
    name = row.name.strip()
    if row.coverage is not None:
        missing = 100 - row.coverage
        yield Goal(what=f"{name}: intervals without the truth", limit=100 - COVERAGE_GOAL, found=missing, unit="%")
    if row.alarms is not None:
        yield Goal(what=f"{name}: false alarms", limit=ALARM_GOAL, found=row.alarms, unit="%")
    if row.bias is not None:
        yield Goal(what=f"{name}: reported minus true", limit=BIAS_GOAL, found=abs(row.bias), unit="deviations")


def table_header(load_before: float, load_after: float) -> list[str]:
    """What stands above the table in a file: when, where and with what it was made, and the goals."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy"))
    command = shlex.join(["python", "-m", "benchmarks.calibration", *sys.argv[1:]])
    return [
        "How often the sentences of an answer are right: simulated studies, seeds fixed.",
        f"{time.strftime('%Y-%m-%d')}; {processor()}, {usable_cores()} cores; Python {platform.python_version()}, "
        f"{packages}; {command}",
        f"Load {load_before:.1f} before and {load_after:.1f} after, of which one core is this command's: above that, "
        "the last column (seconds of the clock) is no measurement.",
        f"Goals: coverage at least {COVERAGE_GOAL} %, false alarms at most {ALARM_GOAL} %, bias at most {BIAS_GOAL} "
        f"standard deviations between seeds ({SEED_POINTS} points).",
        "Rows with fewer studies than the others are of kinds that take longer.",
        "",
    ]


HEADINGS = ("studies", "coverage", "false alarms", "bias", "naive bias", "width", "claims", "oracle", "s")


def heading(width: int) -> str:
    """The first line of the table."""
    return f"{'kind of study':{width}} " + " ".join(f"{text:>12}" for text in HEADINGS)


def line(row: Row, width: int) -> str:
    """One line of the table."""
    cells = (
        f"{row.studies:,}", _cell(row.coverage, " %"), _cell(row.alarms, " %"), _cell(row.bias, "", "+.2f"),
        _cell(row.naive_bias, "", "+.2f"), _cell(row.width, "", ".2f"), _cell(row.power, " %"),
        _cell(row.oracle, " %"), f"{row.seconds:.0f}",
    )  # fmt: skip
    return f"{row.name:{width}} " + " ".join(f"{cell:>12}" for cell in cells)


def _cell(value: float | None, unit: str, form: str = ".1f") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return 1 if a goal is missed, else 0."""
    parser = OneLineParser(prog="python -m benchmarks.calibration", description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=STUDIES, metavar="N", help=f"of each kind ({STUDIES:,})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="TEXT", help="only the kinds whose name holds TEXT")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="kinds measured at once (1)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table there too")
    args = parser.parse_args(arguments)
    only = args.only or ""
    kinds = tuple(kind for kind in KINDS if only in kind.name)
    width = max((len(kind.name) for kind in kinds), default=0)
    lines = [heading(width)]
    print(lines[0], flush=True)
    missed = []
    load_before = os.getloadavg()[0]
    for row in measure_all(args.studies, args.seed, only, args.processes):
        lines.append(line(row, width))
        print(lines[-1], flush=True)
        missed += [f"missed: {row.name.strip()}: {text}" for text in row.missed]
    verdict = missed or ["every goal is met"]
    print(*verdict, sep="\n")
    if args.out:
        header = table_header(load_before, os.getloadavg()[0])
        args.out.write_text("\n".join([*header, *lines, "", *verdict]) + "\n")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
