"""A trial as its specification, and the id that says what is really built and trained.

Two settings that round to the same ranks are one trial: the id is a hash of the network that comes out, not of the
settings that were proposed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank.data import absolute_data_name, check_data_folder
from lowrank.networks import check_own_code
from lowrank.training import Recipe
from sweeps.records.events import Role
from sweeps.records.names import TRIAL_WEIGHTS
from sweeps.space import TEACHER_SECTION, Value

REPEATABLE = ("network", "method", "train", "views", "data", "seed")  # sections without which nothing can be retrained
TEACHER_IDENTITY = ("weights", "taps", "student_taps", "views")  # fields of the teacher that make another trial


@dataclass(frozen=True)
class Trial:
    """A specification that can be trained, with its exact counts."""

    trial_id: str
    role: Role
    stratum: str
    point: dict[str, Value]
    specification: dict[str, Any]  # network, method, allocation, train, views, data, seed, teacher, start
    counts: dict[str, int]
    point_id: str = ""  # the same for repeats, which differ in nothing but the seed

    @property
    def depends_on(self) -> str | None:
        """Id of the trial of this study whose weights this one starts from; None where there is none."""
        source = str(self.specification.get("start", {}).get("from", ""))
        return source.removeprefix(TRIAL_WEIGHTS) if source.startswith(TRIAL_WEIGHTS) else None


def identify(specification: Mapping[str, Any], image_shape: tuple[int, int, int], classes: int) -> tuple[str, str]:
    """Compute the ids of a recorded specification by what today's code builds.

    It makes no tensor.

    Args:
        specification: plain data, as the journal keeps it.
        image_shape: channels, height and width of the data set's images.
        classes: of the data set.

    Returns:
        The id of the trial and that of its point.

    Raises:
        InputError: the specification names what this code does not have.
    """
    from lowrank.compression import plan_sized_network  # imports torch, which readers of records do without
    from lowrank.networks import NetworkSettings

    plan, sized = plan_sized_network(
        NetworkSettings(**specification["network"]), specification["method"], image_shape, classes,
        allocation=specification.get("allocation"),
    )  # fmt: skip
    return trial_ids(specification, Recipe(**specification["train"]), plan.signature(sized))


def trial_ids(specification: Mapping[str, Any], recipe: Recipe, signature: Any) -> tuple[str, str]:
    """Compute the ids of a trial and of its point, the trial without its seed.

    Args:
        specification: plain data, as the journal keeps it.
        recipe: the specification's section `train`, checked.
        signature: what `NetworkPlan.signature` says is built.

    Returns:
        Two hashes of 12 hexadecimal digits.
    """
    built = _identity(specification, recipe, signature)
    return _hash(built), _hash({key: value for key, value in built.items() if key != "seed"})


def _identity(specification: Mapping[str, Any], recipe: Recipe, signature: Any) -> dict[str, Any]:
    """What makes another trial: what is built and trained, wherever images, weights and teacher are stored."""
    identity = {key: value for key, value in specification.items() if key not in ("allocation", TEACHER_SECTION)}
    identity |= {"train": recipe.identity(), "method": signature, "data": specification["data"]["fingerprint"]}
    if "start" in identity:
        start = specification["start"]
        fit = {key: start[key] for key in ("how", "calibration", "seed") if key in start}  # {} for the nearest weights
        identity["start"] = {**fit, "fingerprint": start["fingerprint"]} if fit else start["fingerprint"]
    if TEACHER_SECTION in specification:
        identity[TEACHER_SECTION] = {key: specification[TEACHER_SECTION][key] for key in TEACHER_IDENTITY}
    return identity


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def check_specifications(
    specifications: Iterable[Mapping[str, Any]], *, allow_code: bool, source: str, data_dir: Path | None = None,
    typed_data: str | None = None,
) -> None:  # fmt: skip
    """Check the networks and images that recorded specifications name.

    It comes before any is made or read.

    Args:
        specifications: of trials, as a record of anybody's has them.
        allow_code: whether they may name networks in the user's own code.
        source: what has them, for the message.
        data_dir: the folder of data sets that the user has typed; None for the default.
        typed_data: the data set that the user has typed, which may lie anywhere.

    Raises:
        InputError: one names code, or images outside of the folder of data sets, and may not.
    """
    specifications = list(specifications)
    names = (name for specification in specifications for name in specification_networks(specification))
    check_own_code(names, allow_code, source=source)
    for name in sorted({str(_section(specification, "data").get("name", "")) for specification in specifications}):
        if typed_data is None or absolute_data_name(name) != absolute_data_name(typed_data):
            check_data_folder(name, data_dir, source)


def specification_networks(specification: Mapping[str, Any]) -> list[str]:
    """List the networks that are made for a trial.

    They are its own and, where the specification says it, its teacher's.

    Args:
        specification: of the trial.

    Returns:
        Their names.
    """
    teacher = _section(specification, TEACHER_SECTION)
    names = (
        _section(specification, "network").get("name"),
        teacher.get("own_network"),
        _section(teacher, "network").get("name"),
    )
    return [str(name) for name in names if name is not None]


def _section(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = content.get(name)
    return section if isinstance(section, Mapping) else {}
