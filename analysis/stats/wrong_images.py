"""Which images each seed of a setting classified wrongly, lined up for comparisons on the same images.

Letters: S seeds, N images of a split. Position n of two arrays is the same image: the fingerprint of the data fixes the
order of a split, and arrays of other lengths are never lined up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.stats.front import setting_ids
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
            settings[ids[trial.trial_id]].setdefault(int(trial.specification.get("seed") or 0), wrong)
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


def _is_one_length(arrays: Iterable[NDArray[np.bool_]]) -> bool:
    return len({len(array) for array in arrays}) == 1
