"""Two networks, or two settings of several seeds, on the same images: differences of error with intervals.

Two networks mostly fail on the same hard images. Only those on which one alone is wrong tell them apart, which is why
the difference on the same images is more certain than that of two samples. For one network each: McNemar's test and
Tango's score interval. With several seeds there are two sources of chance, the seeds and the images, and the variance
is that of a two-way layout with both at random (`mean_variance`).

A bootstrap in two levels (seed, then image) estimates the same variance, but of three seeds it sees two thirds and
knows no t quantile: `two_level_bootstrap` is here for comparison, and `python -m benchmarks.calibration` shows how
often its interval misses.

Shapes: `wrong[seed, image]` is True where the network of that seed is wrong. Errors and differences are in percent and
points; variances in `MeanVariance` are of shares (0 to 1).

References: Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
Psychometrika 12 (1947); T. Tango, "Equivalence test and confidence interval for the difference in proportions for the
paired-sample design", Statistics in Medicine 17 (1998); S. Searle, G. Casella, C. McCulloch, "Variance Components"
(1992), chapter 4, for the layout; F. Satterthwaite, Biometrics Bulletin 2 (1946), for the degrees of freedom;
A. Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1 (2007).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.stats.inference.intervals import LEVEL, Estimate, wilson_interval

WrongImages = NDArray[np.bool_]  # [seed, image]
BISECTIONS = 60


@dataclass(frozen=True, kw_only=True)
class SeedVariance:
    """How far the seed moves an error, from all settings that have several seeds.

    Attributes:
        variance: of the measured share of wrong images between seeds of one setting.
        interaction: the part of it that comes from measuring on a finite number of images.
        freedom: degrees of freedom, at least 1.
    """

    variance: float
    interaction: float
    freedom: int

    @property
    def deviation(self) -> float:
        """Standard deviation between seeds beyond the noise of the images, in points of error."""
        return 100 * math.sqrt(max(0.0, self.variance - self.interaction))


@dataclass(frozen=True, kw_only=True)
class MeanVariance:
    """The mean of values over seeds and images, and its variance.

    Attributes:
        mean: of all values.
        variance: of the mean, for another draw of seeds (if there are several) and of images.
        freedom: Satterthwaite's degrees of freedom of the variance.
    """

    mean: float
    variance: float
    freedom: float

    def quantile(self, level: float) -> float:
        """Return the t quantile that belongs to a two-sided interval of that level."""
        from scipy.special import stdtrit  # a tenth of the time that scipy.stats takes to load

        return float(stdtrit(self.freedom, 0.5 + level / 2))


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """The difference of two errors on the same images, in points.

    Attributes:
        mean: first minus second: negative means that the first is better.
        low: lower end of the two-sided 95 % interval.
        high: upper end.
        p_value: of "no difference", two-sided.
        seeds: how many both have.
        images: how many there are.
        discordant: share of the images on which one of the two is wrong alone, a mean over seeds.
    """

    mean: float
    low: float
    high: float
    p_value: float
    seeds: int
    images: int
    discordant: float

    @property
    def estimate(self) -> Estimate:
        """Mean and interval; `count` is the number of seeds that both have."""
        return Estimate(mean=self.mean, low=self.low, high=self.high, count=self.seeds)


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    Args:
        only_first: images on which the first network alone is wrong.
        only_second: images on which the second alone is wrong.

    Returns:
        The probability of a split at least as uneven if both networks are as good; 1 without such images.
    """
    from scipy.special import bdtr  # loads in a tenth of the time of scipy.stats, whose `binomtest` gives the same

    discordant = only_first + only_second
    # Of an even coin both tails are alike
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), discordant, 0.5))) if discordant else 1.0


def tango_interval(only_first: float, only_second: float, images: float, z: float) -> tuple[float, float]:
    """Return Tango's score interval of the difference of two errors on the same images.

    Args:
        only_first: images on which the first network alone is wrong; may be a mean over seeds.
        only_second: images on which the second alone is wrong.
        images: how many there are, above 0; an effective number where the variance is known to differ.
        z: quantile: 1.96 gives a two-sided 95 % interval.

    Returns:
        Lower and upper end of first minus second, in points of error.

    Raises:
        ValueError: a count is negative, or there are more than `images`.
    """
    if min(only_first, only_second) < 0 or not images > 0 or only_first + only_second > images * (1 + 1e-9):
        raise ValueError(
            "discordant images must be between 0 and the number of images, but got "
            f"{only_first}, {only_second} of {images}"
        )
    gap = (only_first - only_second) / images
    low = _score_end(only_first, only_second, images, z, -1.0, gap)
    high = _score_end(only_first, only_second, images, -z, 1.0, gap)
    return 100 * low, 100 * high


def _score_end(b: float, c: float, n: float, target: float, outer: float, inner: float) -> float:
    """Bisect for the difference at which the score statistic is `target`; it falls as the difference grows."""
    for _ in range(BISECTIONS):
        middle = (outer + inner) / 2
        inside = _score(b, c, n, middle) < target if target > 0 else _score(b, c, n, middle) > target
        outer, inner = (outer, middle) if inside else (middle, inner)
    return (outer + inner) / 2


def _score(b: float, c: float, n: float, gap: float) -> float:
    """Tango's statistic: the observed less the supposed difference over its deviation under the supposition."""
    linear = -b - c + (2 * n - b + c) * gap
    constant = -c * gap * (1 - gap)
    share = (math.sqrt(max(0.0, linear * linear - 8 * n * constant)) - linear) / (4 * n)
    variance = n * (2 * share + gap * (1 - gap))
    excess = b - c - n * gap
    if variance <= 0:
        return math.copysign(math.inf, excess) if excess else 0.0
    return excess / math.sqrt(variance)


def seed_variance(settings: Iterable[WrongImages]) -> SeedVariance | None:
    """Pool the variance between seeds over settings, as an analysis of variance does.

    Args:
        settings: `wrong[seed, image]` of each; those of one seed say nothing and are left out.

    Returns:
        The pooled variance; None where no setting has two seeds.
    """
    squares = interaction = 0.0
    freedom = 0
    for wrong in settings:
        seeds, images = wrong.shape
        if seeds < 2:
            continue
        values = wrong.astype(np.float64)
        squares += (seeds - 1) * float(values.mean(axis=1).var(ddof=1))
        interaction += (seeds - 1) * _interaction(values) / images
        freedom += seeds - 1
    if not freedom:
        return None
    return SeedVariance(variance=squares / freedom, interaction=interaction / freedom, freedom=freedom)


def _interaction(values: NDArray[np.float64]) -> float:
    """Mean square of what neither seed nor image explains."""
    seeds, images = values.shape
    if images < 2:
        return 0.0
    residuals = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    return float((residuals * residuals).sum()) / ((seeds - 1) * (images - 1))


def mean_variance(values: NDArray[np.float64], between_seeds: SeedVariance | None = None) -> MeanVariance:
    """Return the mean of values and its variance over another draw of seeds and images.

    Args:
        values: `[seed, image]`, shares or differences of shares; seeds and images are taken as random draws.
        between_seeds: the variance between seeds of such values, pooled over settings; None for that of these alone.

    Returns:
        Mean, variance and degrees of freedom. A single seed without `between_seeds` counts as fixed: then the mean is
        that of this network.
    """
    seeds, images = values.shape
    mean = float(values.mean())
    by_image = float(values.mean(axis=0).var(ddof=1)) / images if images > 1 else 0.0
    if between_seeds is None and seeds > 1:
        of_these_seeds = float(values.mean(axis=1).var(ddof=1))
        between_seeds = SeedVariance(
            variance=of_these_seeds, interaction=_interaction(values) / images, freedom=seeds - 1
        )
    if between_seeds is None:
        return MeanVariance(mean=mean, variance=by_image, freedom=max(1, images - 1))
    by_seed = max(between_seeds.variance, between_seeds.interaction) / seeds
    shared = between_seeds.interaction / seeds  # counted in both
    return combined_variance(mean, by_image, images - 1, by_seed, between_seeds.freedom, shared)


def combined_variance(
    mean: float, by_image: float, image_freedom: float, by_seed: float, seed_freedom: float, shared: float
) -> MeanVariance:  # fmt: skip
    """Add the variances from images and from seeds, less what both count, with Satterthwaite's degrees of freedom.

    Args:
        mean: of the values.
        by_image: variance of the mean over images.
        image_freedom: its degrees of freedom.
        by_seed: variance of the mean over seeds.
        seed_freedom: its degrees of freedom.
        shared: the part that both hold.

    Returns:
        The mean with its variance, which is not below that from the images.
    """
    variance = max(by_image, by_image + by_seed - shared)
    parts = by_seed**2 / max(1.0, seed_freedom) + by_image**2 / max(1.0, image_freedom)
    freedom = variance**2 / parts if parts > 0 else image_freedom
    return MeanVariance(mean=mean, variance=variance, freedom=max(1.0, freedom))


def mean_error_interval(
    wrong: WrongImages, between_seeds: SeedVariance | None = None, level: float = LEVEL
) -> tuple[float, float, float]:  # fmt: skip
    """Return the error of a setting that was fixed beforehand, with its interval.

    Wilson's interval, with as many images as would give the variance of the mean over seeds and images.

    Args:
        wrong: `[seed, image]`.
        between_seeds: pooled over settings; None for that of this one alone.
        level: of the two-sided interval.

    Returns:
        Error, lower and upper end, in percent.
    """
    moments = mean_variance(wrong.astype(np.float64), between_seeds)
    low, high = error_bounds(moments.mean, moments.variance, wrong.shape[1], moments.quantile(level))
    return 100 * moments.mean, low, high


def error_bounds(mean: float, variance: float, images: int, quantile: float) -> tuple[float, float]:
    """Return Wilson's interval of a share of wrong images whose variance is known.

    Args:
        mean: the share.
        variance: of the share; 0 for that of independent images.
        images: how many there are.
        quantile: of the two-sided interval.

    Returns:
        Lower and upper end, in percent.
    """
    plain = mean * (1 - mean)
    return wilson_interval(100 * mean, plain / variance if plain > 0 and variance > 0 else images, quantile)


def paired_error_difference(
    first: WrongImages, second: WrongImages, between_seeds: SeedVariance | None = None, level: float = LEVEL
) -> PairedDifference:  # fmt: skip
    """Compare two settings on the same images.

    With one seed each that compares the two networks, by McNemar's test and Tango's interval. With several seeds it
    compares the settings, by Tango's interval with as many images as would give the variance over seeds and images.

    Args:
        first: `wrong[seed, image]`; row i of both settings is of the same seed.
        second: likewise, of the same shape.
        between_seeds: variance between seeds, pooled over settings; None for that of these differences alone.
        level: of the two-sided interval.

    Returns:
        First minus second. An interval may hold 0 where the p-value is below 1 - `level`, and the other way round, by
        a hair: they are of two tests.

    Raises:
        ValueError: the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"both must have the same seeds and images, but got {first.shape} and {second.shape}")
    seeds, images = first.shape
    only_first = float((first & ~second).sum()) / seeds
    only_second = float((second & ~first).sum()) / seeds
    discordant = (only_first + only_second) / images
    if seeds == 1:
        from scipy.special import ndtri

        low, high = tango_interval(only_first, only_second, images, float(ndtri(0.5 + level / 2)))
        p_value = mcnemar_p_value(round(only_first), round(only_second))
        gap = 100 * (only_first - only_second) / images
        return PairedDifference(
            mean=gap, low=low, high=high, p_value=p_value, seeds=1, images=images, discordant=discordant
        )
    gaps = first.astype(np.float64) - second.astype(np.float64)
    moments = mean_variance(gaps, _of_difference(between_seeds, gaps))
    low, high = difference_bounds(only_first, only_second, images, moments, moments.quantile(level))
    return PairedDifference(
        mean=100 * moments.mean,
        low=low,
        high=high,
        p_value=two_sided_p_value(moments),
        seeds=seeds,
        images=images,
        discordant=discordant,
    )


def _of_difference(between_seeds: SeedVariance | None, gaps: NDArray[np.float64]) -> SeedVariance | None:
    """The variance between seeds of a difference: that of both settings, as if the shared seed did not help."""
    if between_seeds is None:
        return None
    beyond = 2 * max(0.0, between_seeds.variance - between_seeds.interaction)
    interaction = _interaction(gaps) / gaps.shape[1]
    return SeedVariance(variance=beyond + interaction, interaction=interaction, freedom=between_seeds.freedom)


def difference_bounds(
    only_first: float, only_second: float, images: int, moments: MeanVariance, quantile: float
) -> tuple[float, float]:  # fmt: skip
    """Return Tango's interval of a difference whose variance is known.

    Args:
        only_first: images on which the first alone is wrong, a mean over seeds.
        only_second: images on which the second alone is wrong.
        images: how many there are.
        moments: the difference with its variance.
        quantile: of the two-sided interval.

    Returns:
        Lower and upper end, in points.
    """
    return tango_interval(*_effective_counts(only_first, only_second, images, moments), quantile)


def _effective_counts(
    only_first: float, only_second: float, images: int, moments: MeanVariance
) -> tuple[float, float, float]:  # fmt: skip
    """The counts of as many images as would give the variance."""
    gap = (only_first - only_second) / images
    plain = ((only_first + only_second) / images - gap * gap) / images
    scale = plain / moments.variance if plain > 0 and moments.variance > 0 else 1.0
    return scale * only_first, scale * only_second, scale * images


def difference_p_value(only_first: float, only_second: float, images: int, moments: MeanVariance, seeds: int) -> float:
    """Return the p-value of "no difference" where the variance is known.

    Args:
        only_first: images on which the first alone is wrong, a mean over seeds.
        only_second: images on which the second alone is wrong.
        images: how many there are.
        moments: the difference with its variance.
        seeds: of each.

    Returns:
        Of one seed that of McNemar's exact test, with as many images as would give the variance; of several that of
        Student's t.
    """
    if seeds > 1:
        return two_sided_p_value(moments)
    first, second, _ = _effective_counts(only_first, only_second, images, moments)
    return mcnemar_p_value(round(first), round(second))


def two_sided_p_value(moments: MeanVariance) -> float:
    """Return the p-value of "the mean is 0" by Student's t.

    Args:
        moments: mean, variance, degrees of freedom.

    Returns:
        Between 0 and 1; a mean without any variance has 0, or 1 if it is 0.
    """
    from scipy.special import stdtr

    if moments.variance <= 0:
        return 1.0 if moments.mean == 0 else 0.0
    return float(2 * stdtr(moments.freedom, -abs(moments.mean) / math.sqrt(moments.variance)))


def two_level_bootstrap(
    values: NDArray[np.float64], draws: int = 1000, seed: int = 0, level: float = LEVEL
) -> tuple[float, float]:  # fmt: skip
    """Return the percentile interval of the mean from a bootstrap over seeds, then images.

    Args:
        values: `[seed, image]`.
        draws: how many.
        seed: of the draws.
        level: of the two-sided interval.

    Returns:
        Lower and upper end, in the unit of the values. Of few seeds it is too narrow.
    """
    random = np.random.default_rng(seed)
    seeds, images = values.shape
    seed_weights = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    image_weights = random.multinomial(images, np.full(images, 1 / images), size=draws) / images
    means = np.einsum("ds,si,di->d", seed_weights, values, image_weights, optimize=True)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)
