"""The error of the best of many settings, corrected for the choice.

The lowest of many measured errors is low because the setting is good, and because its images and its seed were lucky.
So the choice is made again and again on a part of the images (and, where there are several, of the seeds), and the
chosen setting is measured on the rest, which the choice has not seen. The mean over many such splits is what a choice
by nine tenths of the images is worth, and with several seeds by one seed fewer. A choice by all is a little better. By
how much, is read off a choice by half of the images, which is a little worse; true errors are taken as normal for that.

Where settings got their further seeds because the first one did well (`screened`), only the further ones are measured.
They still share with the first the luck of their setting with these images: `_screening_luck`.

Of the interval the lower end is that of the chosen setting as if it had been fixed beforehand: its measured error is
too low already. The upper end is that of splits into four, whose variance is read from the two halves of the images: a
choice that nearly fails to decide makes the mean over splits less certain than that of one network.
`python -m benchmarks.calibration` shows how often both hold.

Shapes: `wrong[setting, seed, image]`. Errors in percent, differences in points.

References: S. Varma, R. Simon, "Bias in error estimation when using cross-validation for model selection", BMC
Bioinformatics 7 (2006); R. and R. J. Tibshirani, "A bias correction for the minimum error rate in cross-validation",
Annals of Applied Statistics 3 (2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from analysis.stats.inference.intervals import LEVEL
from analysis.stats.inference.paired import (
    MeanVariance,
    SeedVariance,
    WrongImages,
    combined_variance,
    difference_bounds,
    difference_p_value,
    error_bounds,
    mean_variance,
    paired_error_difference,
    seed_variance,
)

PARTITIONS = 10  # of the images, at random but always the same
FOLDS = 10  # for the estimate: the choice sees nine tenths, nearly as good as all
COARSE_FOLDS = 4  # for the upper end: steadier, and its two halves give the variance
ROUGH_FOLDS = 2  # to see how much worse a choice by fewer images is
MAX_WEIGHT = 2.0  # of the extrapolation to all images and seeds; beyond it the noise of the two splits would rule


@dataclass(frozen=True, kw_only=True)
class SelectedError:
    """The error of the setting that was chosen as the best.

    Attributes:
        chosen: its index.
        observed: its measured error in percent, which the choice makes look too low.
        mean: the error corrected for the choice.
        low: lower end of the 95 % interval.
        high: upper end.
    """

    chosen: int
    observed: float
    mean: float
    low: float
    high: float

    def around(self, error: float) -> tuple[float, float]:
        """Return the interval, made wider where an error that is shown beside it lies outside.

        Args:
            error: of the best as it was measured, in percent.

        Returns:
            Lower and upper end, in percent.
        """
        return min(self.low, error), max(self.high, error)


@dataclass(frozen=True, kw_only=True)
class SelectedDifference:
    """The difference of the chosen setting to one fixed beforehand, in points.

    Attributes:
        mean: chosen minus the other, corrected for the choice.
        low: lower end of the two-sided 95 % interval.
        high: upper end.
        upper: upper end of the one-sided 95 % interval.
        p_value: of "no difference", two-sided, of the choice by three quarters of the images.
    """

    mean: float
    low: float
    high: float
    upper: float
    p_value: float


@dataclass(frozen=True)
class _SplitErrors:
    """Shares of wrong images of the choice on what it has not seen; `halves` is [half, partition]."""

    mean: float
    halves: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _ImageVariance:
    """The variance of a measured share of wrong images over other images, without what all settings have in common.

    Attributes:
        shared: the part that all seeds of a setting have in common.
        alone: the part of each network alone.
    """

    shared: float
    alone: float


@lru_cache(maxsize=16)
def _folds(images: int, folds: int) -> NDArray[np.float32]:
    """`[image, partition * fold]`: 1 where the image belongs to the fold. The same for every call."""
    random = np.random.default_rng(0)
    member = np.zeros((images, PARTITIONS, folds), dtype=np.float32)
    for partition in range(PARTITIONS):
        member[random.permutation(images), partition, np.arange(images) % folds] = 1
    member.setflags(write=False)
    return member.reshape(images, PARTITIONS * folds)


def fold_counts(wrong: NDArray[np.bool_], folds: int) -> NDArray[np.float32]:
    """Count the wrong images in each fold.

    Args:
        wrong: `[setting, seed, image]`.
        folds: in how many parts the images are divided.

    Returns:
        `[setting, seed, partition, fold]`.
    """
    settings, seeds, images = wrong.shape
    counts = wrong.reshape(settings * seeds, images).astype(np.float32) @ _folds(images, folds)
    return counts.reshape(settings, seeds, PARTITIONS, folds)


def corrected_error(
    wrong: NDArray[np.bool_], screened: bool = False, between_seeds: SeedVariance | None = None
) -> SelectedError:  # fmt: skip
    """Return the error of the best setting, corrected for the choice.

    Args:
        wrong: `[setting, seed, image]` of all settings that compete, each with the same number of seeds.
        screened: whether the settings were chosen by their first seed to get the others; then only the others are
            measured on.
        between_seeds: the variance between seeds; None for that of these settings.

    Returns:
        Error and interval. With one seed they are those of the chosen network, with several those of its setting.

    Raises:
        ValueError: there is no setting, seed or image.
    """
    _check(wrong)
    images = wrong.shape[2]
    between_seeds = between_seeds or seed_variance(wrong)
    chosen = choose(wrong)
    fixed = mean_variance(wrong[chosen].astype(np.float64), between_seeds if wrong.shape[1] > 1 else None)
    low, _ = error_bounds(fixed.mean, fixed.variance, images, fixed.quantile(LEVEL))
    luck = _screening_luck(wrong) if screened else 0.0
    coarse = _split(wrong, COARSE_FOLDS, screened)
    moments = _moments(coarse, wrong, screened, between_seeds, plain=coarse.mean * (1 - coarse.mean))
    _, high = error_bounds(min(1.0, coarse.mean + luck), moments.variance, images, moments.quantile(LEVEL))
    mean = 100 * min(1.0, max(0.0, _chosen_error(wrong, screened, between_seeds) + luck))
    return SelectedError(chosen=chosen, observed=100 * fixed.mean, mean=mean, low=min(low, mean), high=max(high, mean))


def corrected_difference(
    wrong: NDArray[np.bool_], other: NDArray[np.bool_], screened: bool = False,
    between_seeds: SeedVariance | None = None, other_screened: bool = False,
) -> SelectedDifference:  # fmt: skip
    """Return the best setting's difference to another, corrected for the choice.

    Args:
        wrong: `[setting, seed, image]` as for `corrected_error`.
        other: `[seed, image]` of a setting that was fixed beforehand, such as a reference; a single seed beside several
            of `wrong` is that one network, whatever the seed. Or `[setting, seed, image]` of settings of which the best
            was chosen too.
        screened: as for `corrected_error`.
        between_seeds: the variance between seeds; None for that of these settings and the other.
        other_screened: the same as `screened`, of the settings in `other`.

    Returns:
        The difference with its intervals; with one seed it is that of the two networks.

    Raises:
        ValueError: there is no setting or seed, or the images differ in number.
    """
    others = other if other.ndim == 3 else other[None]
    _check(wrong)
    _check(others)
    images = wrong.shape[2]
    if others.shape[2] != images:
        raise ValueError(f"both must be measured on the same images, but got {images:,} and {others.shape[2]:,}")
    between_seeds = between_seeds or seed_variance([*wrong, *others])
    seeds_match = others.shape[1] in (1, wrong.shape[1])
    if len(wrong) == len(others) == 1 and seeds_match and not (screened or other_screened):
        return _difference_without_choice(wrong[0], others[0], between_seeds)
    luck = _screening_luck(wrong) if screened else 0.0
    luck -= _screening_luck(others) if other_screened else 0.0
    coarse = _split(wrong, COARSE_FOLDS, screened, others, other_screened)
    coarse = replace(coarse, mean=coarse.mean + luck)
    winner, base = (group[choose(group)].astype(np.float64).mean(axis=0) for group in (wrong, others))
    only_other = float((base * (1 - winner)).sum())
    only_chosen = only_other + images * coarse.mean
    if only_chosen < 0:
        only_chosen, only_other = 0.0, -images * coarse.mean
    only_chosen = min(only_chosen, images - only_other)
    plain = (only_chosen + only_other) / images - coarse.mean**2
    other_seeds = others.shape[1] if others.shape[1] > 1 else 0
    moments = _moments(coarse, wrong, screened, between_seeds, plain, other_seeds=other_seeds)
    two_sided = difference_bounds(only_chosen, only_other, images, moments, moments.quantile(LEVEL))
    _, upper = difference_bounds(only_chosen, only_other, images, moments, moments.quantile(2 * LEVEL - 1))
    chosen_error = _chosen_error(wrong, screened, between_seeds)
    mean = 100 * (chosen_error + luck - _chosen_error(others, other_screened, between_seeds))
    low, high = min(mean, two_sided[0], mean - (two_sided[1] - mean)), max(mean, two_sided[1])
    if len(others) > 1:  # either end pays for a choice, and is not inside that of the two networks as measured
        seeds = min(wrong.shape[1], others.shape[1])
        winners = wrong[choose(wrong), :seeds], others[choose(others), :seeds]
        measured = paired_error_difference(*winners, between_seeds if seeds > 1 else None)
        low, high = min(low, measured.low), max(high, 2 * mean - two_sided[0], measured.high)
    return SelectedDifference(
        mean=mean, low=max(-100.0, low), high=min(100.0, high), upper=max(mean, upper),
        p_value=difference_p_value(only_chosen, only_other, images, moments, wrong.shape[1]),
    )  # fmt: skip


def _difference_without_choice(
    first: WrongImages, second: WrongImages, between_seeds: SeedVariance | None
) -> SelectedDifference:  # fmt: skip
    if second.shape != first.shape:  # one network beside several seeds: only the first moves with the seed
        second = np.broadcast_to(second, first.shape)
        if between_seeds is not None:
            beyond = max(0.0, between_seeds.variance - between_seeds.interaction)
            between_seeds = replace(between_seeds, variance=between_seeds.interaction + beyond / 2)
    difference = paired_error_difference(first, second, between_seeds)
    one_sided = paired_error_difference(first, second, between_seeds, 2 * LEVEL - 1)
    return SelectedDifference(
        mean=difference.mean, low=difference.low, high=difference.high, upper=one_sided.high,
        p_value=difference.p_value,
    )  # fmt: skip


def choose(wrong: NDArray[np.bool_]) -> int:
    """Return the index of the setting with the lowest mean error, of equal ones the first.

    Args:
        wrong: `[setting, seed, image]`.

    Returns:
        The index.
    """
    return int(wrong.sum(axis=(1, 2)).argmin())


def _check(wrong: NDArray[np.bool_]) -> None:
    if wrong.ndim != 3 or 0 in wrong.shape:
        raise ValueError(f"errors must be [setting, seed, image], none of them empty, but got the shape {wrong.shape}")


def _split(
    wrong: NDArray[np.bool_], folds: int, screened: bool, others: NDArray[np.bool_] | None = None,
    others_screened: bool = False,
) -> _SplitErrors:  # fmt: skip
    """Choose on all folds but one, measure on that one; then the same within each half of the folds.

    What `others` choose is subtracted; a single setting there is no choice.
    """
    counts = fold_counts(wrong, folds)
    other_counts = None if others is None else fold_counts(others, folds)
    sizes = _folds(wrong.shape[2], folds).sum(axis=0).reshape(PARTITIONS, folds)

    def share(part: slice) -> NDArray[np.float64]:
        """By partition, over these folds."""
        values = _chosen_counts(counts[..., part], screened)
        if other_counts is not None:
            values = values - _chosen_counts(other_counts[..., part], others_screened)
        return np.asarray(values.sum(axis=1) / np.maximum(1, sizes[:, part].sum(axis=1)))

    half = folds // 2
    halves = np.stack([share(slice(0, half)), share(slice(half, 2 * half))])
    return _SplitErrors(mean=float(share(slice(0, folds)).mean()), halves=halves)


def _chosen_error(wrong: NDArray[np.bool_], screened: bool, between_seeds: SeedVariance | None) -> float:
    """The share of wrong images of what all images and seeds choose, on what the choice has not seen."""
    fine = _mean_over_splits(wrong, FOLDS, screened)
    if len(wrong) == 1:
        return fine
    weight = _extrapolation_weight(wrong, seed_variance_beside_screening(wrong) if screened else between_seeds)
    return fine - weight * (_mean_over_splits(wrong, ROUGH_FOLDS, screened) - fine)


def _mean_over_splits(wrong: NDArray[np.bool_], folds: int, screened: bool) -> float:
    total = _chosen_counts(fold_counts(wrong, folds), screened).sum()
    return float(total) / (PARTITIONS * wrong.shape[2])


def _extrapolation_weight(wrong: NDArray[np.bool_], between_seeds: SeedVariance | None) -> float:
    """How much better a choice by all is than one by nine tenths, in units of how much better that is than by half.

    Of normally distributed true errors of variance T, a choice by errors measured with variance v gains in proportion
    to T / sqrt(T + v) over a choice at random.
    """
    seeds = wrong.shape[1]
    image = _image_variance(wrong)
    beyond = max(0.0, between_seeds.variance - image.alone) if between_seeds is not None and seeds > 1 else 0.0

    def variance(seeds: int, share: float) -> float:
        """Of the mean error by which a setting is chosen, from so many seeds and such a share of the images."""
        return beyond / seeds + (image.shared + image.alone / seeds) / share

    full, choosing = variance(seeds, 1.0), max(1, seeds - 1)
    true = max(0.0, float(wrong.mean(axis=(1, 2)).var(ddof=1)) - full)
    if true + full <= 0:
        return 0.0
    variances = (full, variance(choosing, 1 - 1 / FOLDS), variance(choosing, 1 - 1 / ROUGH_FOLDS))
    all_images, fine, rough = ((true + value) ** -0.5 for value in variances)
    return min(MAX_WEIGHT, (all_images - fine) / (fine - rough)) if fine > rough else 0.0


def _image_variance(wrong: NDArray[np.bool_]) -> _ImageVariance:
    """From the covariances of two networks of one setting, and of two settings, over the images."""
    settings, seeds, images = wrong.shape
    centred = wrong - wrong.mean(axis=2, keepdims=True)
    sums = centred.sum(axis=1)  # [setting, image]
    own, squares = float((centred * centred).sum()), float((sums * sums).sum())
    network = own / (settings * seeds)
    same = (squares - own) / (settings * seeds * (seeds - 1)) if seeds > 1 else network
    between = settings * (settings - 1) * seeds**2
    different = (float((sums.sum(axis=0) ** 2).sum()) - squares) / between if between else 0.0
    shared, alone = (same - different, network - same) if seeds > 1 else (0.0, network - different)
    return _ImageVariance(shared=max(0.0, shared) / images**2, alone=max(0.0, alone) / images**2)


def _chosen_counts(counts: NDArray[np.float32], screened: bool) -> NDArray[np.float64]:
    """`[partition, fold]`: wrong images of the setting that the other folds (and seeds) choose, a mean over seeds.

    Settings that tie are averaged.
    """
    unseen = counts.sum(axis=3, keepdims=True) - counts
    seeds = counts.shape[1]
    if seeds == 1:
        return _at_best(unseen[:, 0], counts[:, 0])
    counts_of_all_seeds = unseen.sum(axis=1)
    measured = range(1, seeds) if screened else range(seeds)
    if len(counts) == 1:
        return np.asarray(counts[0, list(measured)].mean(axis=0), dtype=np.float64)
    return np.mean([_at_best(counts_of_all_seeds - unseen[:, seed], counts[:, seed]) for seed in measured], axis=0)


def _at_best(choice: NDArray[np.float32], measured: NDArray[np.float32]) -> NDArray[np.float64]:
    best = choice == choice.min(axis=0)
    return np.asarray((best * measured).sum(axis=0) / best.sum(axis=0), dtype=np.float64)


def _screening_luck(wrong: NDArray[np.bool_]) -> float:
    """The luck with these images that all seeds of a setting share, and by which it was chosen to be repeated.

    Measured is how far the first seeds, by which the settings were chosen, lie below the others: that is the luck of
    the first seed alone. The luck that the seeds share is to it as their variances are to each other.
    """
    settings, seeds, images = wrong.shape
    between_seeds = seed_variance_beside_screening(wrong)
    if settings < 2 or seeds < 2 or between_seeds is None or between_seeds.variance <= 0:
        return 0.0
    means = wrong.mean(axis=(1, 2))
    deviations = np.sqrt(np.maximum(means * (1 - means), 1 / images))  # small errors scatter less
    first_below = float(((wrong[:, 1:].mean(axis=(1, 2)) - wrong[:, 0].mean(axis=1)) / deviations).mean())
    chosen = _mean_over_splits(wrong, FOLDS, screened=True)
    scale = max(chosen * (1 - chosen), 1 / images) ** 0.5
    return max(0.0, first_below) * scale * min(1.0, _image_variance(wrong).shared / between_seeds.variance)


def seed_variance_beside_screening(wrong: NDArray[np.bool_]) -> SeedVariance | None:
    """Return the variance between seeds of settings that were chosen by their first seed.

    The first seeds lie below the others, because they were chosen; their mean distance is left out.

    Args:
        wrong: `[setting, seed, image]`.

    Returns:
        The variance; None where too few settings or seeds are there.
    """
    settings, seeds, _ = wrong.shape
    plain = seed_variance(wrong)
    freedom = settings * (seeds - 1) - 1
    if plain is None or freedom < 1:
        return None
    errors = wrong.mean(axis=2)
    distance = float(errors[:, 1:].mean() - errors[:, 0].mean())
    squares = plain.variance * plain.freedom - settings * distance**2 * (seeds - 1) / seeds
    return SeedVariance(variance=max(0.0, squares) / freedom, interaction=plain.interaction, freedom=freedom)


def _moments(
    split: _SplitErrors, wrong: NDArray[np.bool_], screened: bool, between_seeds: SeedVariance | None, plain: float,
    other_seeds: int = 0,
) -> MeanVariance:  # fmt: skip
    """The variance of the mean over splits: from images by the halves, from seeds by the pooled variance."""
    seeds, images = wrong.shape[1:]
    measured = max(1, seeds - (1 if screened else 0))
    by_halves = float(((split.halves[0] - split.halves[1]) ** 2).mean()) / 4
    if seeds == 1 or between_seeds is None:
        return MeanVariance(mean=split.mean, variance=max(by_halves, plain / images), freedom=max(1, images - 1))
    beyond = max(0.0, between_seeds.variance - between_seeds.interaction)
    by_seed = beyond / measured + (beyond / other_seeds if other_seeds else 0.0)
    by_image = max(by_halves, plain / images - (measured - 1) / measured * between_seeds.interaction)
    shared = between_seeds.interaction / measured
    return combined_variance(split.mean, by_image, images - 1, by_seed + shared, between_seeds.freedom, shared)


def expand_counts(errors: Sequence[float], images: int, seed: int = 0) -> NDArray[np.bool_]:
    """Lay out errors as if networks were wrong independently of each other.

    For studies that have not recorded which images were wrong.

    Args:
        errors: in percent, one a network.
        images: how many they were measured on.
        seed: of the layout.

    Returns:
        `[network, image]`, each with as many wrong images as its error says. Networks that share their wrong images
        are less easily told apart so: a choice among them is corrected too much, not too little.
    """
    random = np.random.default_rng(seed)
    wrong = np.zeros((len(errors), images), dtype=np.bool_)
    for row, error in enumerate(errors):
        wrong[row, random.permutation(images)[: round(error * images / 100)]] = True
    return wrong
