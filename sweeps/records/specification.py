"""A trial as its specification, and the id that says what is really built and trained.

Two settings that round to the same ranks are one trial: the id is a hash of the network that comes out, not of what
was asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowrank.training.recipe import Recipe
from sweeps.records.events import Role
from sweeps.space.domains import Value
from sweeps.space.teacher_settings import TEACHER_SECTION

if TYPE_CHECKING:
    from lowrank.data import ImageData

REPEATABLE = ("network", "method", "train", "views", "data", "seed")  # what a specification needs to be trained again
TRIAL_WEIGHTS = "trial:"  # of a specification's start: the weights of this study's trial of that id
TEACHER_IDENTITY = ("weights", "taps", "student_taps", "views")  # what of the section makes another trial


@dataclass(frozen=True)
class Trial:
    """A specification that can be trained, with its exact counts."""

    trial_id: str
    role: Role
    stratum: str
    point: dict[str, Value]
    specification: dict[str, Any]  # network, method, allocation, train, views, data, seed, teacher, start: all it takes
    counts: dict[str, int]
    point_id: str = ""  # the same for repeats, which differ in nothing but the seed

    @property
    def depends_on(self) -> str | None:
        """The trial of this study whose weights this one starts from; None where there is none."""
        source = str(self.specification.get("start", {}).get("from", ""))
        return source.removeprefix(TRIAL_WEIGHTS) if source.startswith(TRIAL_WEIGHTS) else None


def identify(specification: Mapping[str, Any], data: ImageData) -> tuple[str, str]:
    """The id of a trial and of its point by what this code builds and trains of a specification; makes no tensor."""
    from lowrank.compression.trace import plan_sized_network  # brings torch, which readers of records do without
    from lowrank.networks.registry import NetworkSettings

    plan, sized = plan_sized_network(
        NetworkSettings(**specification["network"]), specification["method"], data.image_shape, len(data.classes),
        allocation=specification.get("allocation"),
    )  # fmt: skip
    return trial_ids(specification, Recipe(**specification["train"]), plan.signature(sized))


def trial_ids(specification: Mapping[str, Any], recipe: Recipe, signature: Any) -> tuple[str, str]:
    """The id of a trial and of its point (the trial without its seed).

    Args:
        specification: plain data, as the journal keeps it.
        recipe: the specification's own, checked.
        signature: what `NetworkPlan.signature` says is built.

    Returns:
        Two hashes of 12 hexadecimal digits.
    """
    built = _built(specification, recipe, signature)
    return _hashed(built), _hashed({key: value for key, value in built.items() if key != "seed"})


def _built(specification: Mapping[str, Any], recipe: Recipe, signature: Any) -> dict[str, Any]:
    """What makes a trial another one: what is built and trained, wherever images, weights and teacher lie."""
    found = {key: value for key, value in specification.items() if key not in ("allocation", "teacher")}
    found |= {"train": recipe.identity(), "method": signature, "data": specification["data"]["fingerprint"]}
    if "start" in found:
        found["start"] = specification["start"]["fingerprint"]
    return found | _teacher_identity(specification)


def _teacher_identity(specification: Mapping[str, Any]) -> dict[str, Any]:
    """What of a specification's teacher makes it another trial; {} where there is none."""
    section = specification.get(TEACHER_SECTION)
    return {} if section is None else {TEACHER_SECTION: {key: section[key] for key in TEACHER_IDENTITY}}


def _hashed(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
