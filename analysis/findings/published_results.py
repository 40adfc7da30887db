"""Published results of the original study, and the rule by which they may be drawn beside a study's own points.

A published point is a test error. It is drawn only beside test errors, and only where network, data and splits are the
same: a network that was trained on all images says little about one that was trained on four in five. Source: "Sizes to
expect" of the 2018-19 study: WRN-28-10 on CIFAR-10, trained on 50,000 images, test errors, all with attention transfer
from a teacher of 3.2 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.records import StudyRecord

_WRN: dict[str, tuple[tuple[float, float], ...]] = {
    "tensor_train": ((0.598, 4.96), (0.690, 4.50), (1.075, 4.04), (1.840, 3.76), (2.413, 3.60)),
    "hashed": ((0.568, 4.85), (1.172, 4.06), (2.378, 3.91)),
    "shuffle": ((0.720, 4.88), (1.344, 3.99), (2.384, 3.86)),
    "bottleneck": ((0.601, 5.73), (0.851, 4.63), (1.191, 4.10), (2.345, 3.73)),
    "tucker": ((0.593, 5.37), (1.033, 4.60), (1.704, 4.06), (2.381, 3.94)),
    "acdc": ((0.609, 5.22),),
}


@dataclass(frozen=True, kw_only=True)
class EvaluationSetting:
    """On what an error was measured.

    Attributes:
        network: its name.
        data: name of the data set.
        train_images: on which the network was trained.
        test_images: on which the error was measured.
    """

    network: str
    data: str
    train_images: int
    test_images: int


@dataclass(frozen=True, kw_only=True)
class PublishedResult:
    """A published point.

    Attributes:
        method: its name.
        params: parameters.
        error: top-1 test error in percent.
        setting: on what it was measured.
    """

    method: str
    params: float
    error: float
    setting: EvaluationSetting


_STUDY = EvaluationSetting(network="wrn_28_10", data="cifar10", train_images=50_000, test_images=10_000)
PUBLISHED_RESULTS = tuple(
    PublishedResult(method=method, params=1e6 * millions, error=error, setting=_STUDY)
    for method, points in _WRN.items()
    for millions, error in points
)


def evaluation_setting(study: StudyRecord) -> EvaluationSetting:
    """Return on what a study's own test errors are measured.

    Args:
        study: the records.

    Returns:
        The setting; "" or 0 for what the records do not have.
    """
    header = study.header
    return EvaluationSetting(
        network=header.network.name, data=header.data.name,
        train_images=header.data.train_images or 0, test_images=header.data.test_images or 0,
    )  # fmt: skip


def matching_results(
    setting: EvaluationSetting, published: Sequence[PublishedResult] = PUBLISHED_RESULTS
) -> tuple[list[PublishedResult], str]:
    """Return the published points that may be drawn beside a study's own.

    Args:
        setting: of the study.
        published: all published points.

    Returns:
        The points of the same setting; and a sentence on those of the same network and data that were left out, with
        the reason ("" if there are none).
    """
    same = [point for point in published if point.setting == setting]
    near = [p for p in published if (p.setting.network, p.setting.data) == (setting.network, setting.data)]
    if same or not near:
        return same, ""
    other = near[0].setting
    return [], (
        f"{len(near)} printed test errors of {other.network} on {other.data} are not drawn: they are of networks "
        f"trained on {other.train_images:,} images and tested on {other.test_images:,}, these were trained on "
        f"{setting.train_images:,} and tested on {setting.test_images:,}."
    )
