"""Which images each seed of a setting classified wrongly, lined up for comparisons on the same images.

Letters: S seeds, N images of a split. Position n of two arrays is the same image: the fingerprint of the data fixes the
order of a split, and arrays of other lengths are never lined up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.stats.front import setting_ids
from analysis.stats.inference.paired import PairedDifference, SeedVariance, paired_error_difference, seed_variance
from sweeps.records import StudyRecord, completed_trials, wrong_images

WrongBySeed = Mapping[int, NDArray[np.bool_]]  # seed -> bool (N,), True where the network was wrong


@dataclass(frozen=True, kw_only=True)
class PairedImages:
    """Two settings on the same images, over the seeds of both.

    Attributes:
        seeds: in ascending order.
        first: bool (S, N), True where the first setting was wrong.
        second: likewise, of the second setting.
    """

    seeds: tuple[int, ...]
    first: NDArray[np.bool_]
    second: NDArray[np.bool_]


def wrong_by_setting(study: StudyRecord, split: str = "val") -> dict[str, dict[int, NDArray[np.bool_]]]:
    """Read which images the completed trials of a study classified wrongly.

    Args:
        study: the records.
        split: "val" or "test".

    Returns:
        Id of the setting (`FrontPoint.setting`) -> seed -> bool (N,). Trials without such a record are left out: those
        of older versions, and those that were not evaluated on the split.

    Raises:
        InputError: a record is damaged.
    """
    settings: dict[str, dict[int, NDArray[np.bool_]]] = defaultdict(dict)
    sized = [trial for trial in study.trials.values() if "params" in trial.counts and not trial.broken]
    ids = setting_ids(sized)  # of the trials that `collect_points` takes
    for trial in completed_trials(sized):
        wrong = wrong_images(study, trial.trial_id, split)
        if wrong is not None:
            settings[ids[trial.trial_id]].setdefault(trial.seed or 0, wrong)
    return dict(settings)


def pair_images(first: WrongBySeed, second: WrongBySeed) -> PairedImages | None:
    """Line up two settings, seed by seed and image by image.

    Args:
        first: of one setting, from `wrong_by_setting`.
        second: of another setting of the same data and split.

    Returns:
        The seeds that both have; None where they share none, or their numbers of images differ.
    """
    seeds = tuple(sorted(set(first) & set(second)))
    if not seeds or not _is_one_length([*first.values(), *second.values()]):
        return None
    return PairedImages(
        seeds=seeds,
        first=np.stack([first[seed] for seed in seeds]),
        second=np.stack([second[seed] for seed in seeds]),
    )


def stack_seeds(wrong: WrongBySeed) -> NDArray[np.bool_] | None:
    """Stack the seeds of one setting.

    Args:
        wrong: from `wrong_by_setting`.

    Returns:
        bool (S, N), the lowest seed first; None where there are no seeds or their numbers of images differ.
    """
    if not wrong or not _is_one_length(wrong.values()):
        return None
    return np.stack([wrong[seed] for seed in sorted(wrong)])


def stack_settings(settings: Sequence[WrongBySeed]) -> NDArray[np.bool_] | None:
    """Stack settings over the seeds that all of them have.

    Args:
        settings: from `wrong_by_setting`; one or more.

    Returns:
        bool (settings, S, N), the lowest seed first. Where they share no seed, equally many of each are taken, as by
        `same_images_difference`. None where one has no seed, or their numbers of images differ.
    """
    if not set.intersection(*(set(wrong) for wrong in settings)):
        settings = [_numbered(wrong) for wrong in settings]
    seeds = sorted(set.intersection(*(set(wrong) for wrong in settings)))
    if not seeds or not _is_one_length([wrong[seed] for wrong in settings for seed in seeds]):
        return None
    return np.stack([np.stack([wrong[seed] for seed in seeds]) for wrong in settings])


def pooled_seed_variance(settings: Iterable[WrongBySeed]) -> SeedVariance | None:
    """Pool the variance between seeds over settings.

    Args:
        settings: from `wrong_by_setting`; those of one seed say nothing.

    Returns:
        The variance; None where no setting has two seeds.
    """
    stacks = [stack_seeds(wrong) for wrong in settings]
    return seed_variance([stack for stack in stacks if stack is not None])


def same_images_difference(
    first: WrongBySeed, second: WrongBySeed, between_seeds: SeedVariance | None = None
) -> PairedDifference | None:  # fmt: skip
    """Compare two settings on the same images, over the seeds of both.

    Args:
        first: of one setting, from `wrong_by_setting`.
        second: of another setting of the same data and split.
        between_seeds: variance between seeds, pooled over settings; None for that of these differences alone.

    Returns:
        First minus second in points of error. Where they share no seed, as two studies may not, equally many seeds of
        each are taken in ascending order: the images are the same. None without seeds, or with other numbers of images.
    """
    pair = pair_images(first, second)
    if pair is None and not set(first) & set(second):
        pair = pair_images(_numbered(first), _numbered(second))
    return None if pair is None else paired_error_difference(pair.first, pair.second, between_seeds)


def pairing_sentence(paired: int, differences: int) -> str:
    """Say whether differences are of the same images.

    Args:
        paired: how many of them are.
        differences: how many are shown.

    Returns:
        One sentence; "" where no difference is shown.
    """
    if not differences:
        return ""
    if paired == differences:
        return (
            "Differences are on the same validation images, with 95 % intervals: of one seed Tango's, of several over "
            "seeds and images."
        )
    if not paired:
        return "Differences are not paired by image: the records do not say which images were wrong."
    return (
        f"{paired} of {differences} differences are on the same validation images; of the others the records do not "
        "say which images were wrong, and they are not paired by image."
    )


def _numbered(wrong: WrongBySeed) -> WrongBySeed:
    return {number: wrong[seed] for number, seed in enumerate(sorted(wrong))}


def _is_one_length(arrays: Iterable[NDArray[np.bool_]]) -> bool:
    return len({len(array) for array in arrays}) == 1
