"""Checks of a whole space beyond the type of each field, so that no trial can fail for its values."""

from __future__ import annotations

from lowrank.errors import InputError, unknown
from lowrank.utils import validate_model
from sweeps.space.domains import Value
from sweeps.space.method_names import THIN_BASELINES, alternative_names, method_at, resolve_method
from sweeps.space.model import Space
from sweeps.space.settings import BudgetSettings, StartSettings
from sweeps.space.teacher_settings import TEACHER_WEIGHTS, TeacherSettings

_BATCH_FIELDS = ("train.batch_size", "train.accumulate")
OBJECTIVES = ("val_error", "params", "mult_adds")


def check_space(space: Space) -> None:
    """Check that every trial of a space could be trained.

    Args:
        space: parsed, each field of its own type.

    Raises:
        InputError: a value at an end of a domain is out of range, or two fields contradict each other.
    """
    _check_corners(space)
    _check_search(space)
    _check_allocation(space)
    _check_start(space)
    _check_teacher(space)
    for point in space.search.enqueue:
        _check_enqueued_point(space, point)


def check_process_shards(space: Space, processes: int, images: int) -> None:
    """Check that several processes can share every batch of the space evenly.

    Losses and batch statistics equal those of one process only where each process has as many images.

    Args:
        space: the space.
        processes: processes of each trial.
        images: training images of the data set; a batch is no larger.

    Raises:
        InputError: a batch cannot be shared evenly.
    """
    if processes == 1:
        return
    searched = [name for name in _BATCH_FIELDS if name in space.domains]
    points = [{name.partition(".")[2]: value} for name in searched for value in space.domains[name].corners()]
    for point in ({}, *points):
        recipe = space.recipe(point)
        batch = min(recipe.batch_size, images)
        if batch % (recipe.accumulate * processes):
            parts = f" in {recipe.accumulate} parts" if recipe.accumulate > 1 else ""
            raise InputError(
                f"the {processes} processes of a trial must share each batch evenly, but got {batch} images{parts}; "
                "choose another `train.batch_size`, or --processes-per-trial"
            )


def _check_corners(space: Space) -> None:
    """Check every end of every range against the typed settings."""
    space.recipe({})
    if "budget.relative_to" in space.domains or ("network.name" in space.domains and space.budget.relative_to):
        raise InputError(
            "budgets of one space must be shares of one network: leave `budget.relative_to` one value, or out"
        )
    if {"train.decay", "train.scaled_decay"} <= space.domains.keys():
        raise InputError("`train.scaled_decay` is a short form of `train.decay`; search one of the two")
    for name, domain in space.domains.items():
        if name.startswith("budget.") and None in domain.corners():
            raise InputError(f"`{name}` must be a number in every choice, but got null")
        for value in domain.corners():
            _check_value(space, name, value)
    for alternative in space.alternatives:
        for method_name in alternative_names(alternative):
            for key, domain in alternative[1].items():
                for value in domain.corners():
                    method_at(alternative, {"name": method_name, key: value})


def _check_value(space: Space, name: str, value: Value) -> None:
    section, _, key = name.partition(".")
    if section == "train":
        space.recipe({key: value})
    elif section == "network":
        from lowrank.networks import NetworkSettings  # imports torch, which listing spaces does without

        validate_model(NetworkSettings, {**space.network.model_dump(), key: value}, "network")
    elif section == "teacher":
        validate_model(
            TeacherSettings, {**(space.teacher.model_dump() if space.teacher else {}), key: value}, "teacher"
        )
    elif section == "start":
        validate_model(StartSettings, {**space.start.model_dump(), key: value}, "start")
    elif section == "budget":
        validate_model(BudgetSettings, {**space.budget.model_dump(), key: value}, "budget")


def _check_search(space: Space) -> None:
    _check_scales(space)
    if space.search.sampler == "grid":
        sections = (space.domains, *(domains for _, domains in space.alternatives))
        continuous = [name for section in sections for name, domain in section.items() if domain.grid() is None]
        if continuous:
            raise InputError(f"a grid needs finite domains; `{continuous[0]}` is continuous: give a step or a choice")
        if space.search.repeats > 1 and space.search.stop != "none":
            raise InputError("a grid of repeats compares means over seeds, so none may end early: `search.stop: none`")
    elif len(space.alternatives) > 1:
        raise InputError("a list of `method` sections needs `search.sampler: grid`; otherwise search `method.name`")
    if len(set(space.search.objectives)) != len(space.search.objectives) or "val_error" not in space.search.objectives:
        raise InputError(
            f"`search.objectives` must hold val_error, each once, of {', '.join(OBJECTIVES)}; "
            f"but got {list(space.search.objectives)}"
        )


def _check_scales(space: Space) -> None:
    """A size comes from the budget or from the method's own scale, never from both or from neither."""
    thin = [name for name in space.references if name in THIN_BASELINES]
    for literals, domains in space.alternatives:
        names = alternative_names((literals, domains))
        thin += [str(name) for name in names if name in THIN_BASELINES]
        for name in names:
            scale = resolve_method(str(name)).scale
            if scale is None:
                continue
            is_set = scale in literals or scale in domains
            if space.has_budget and is_set:
                raise InputError(f"`method.{scale}` is solved from `budget`; give one of the two")
            if not space.has_budget and not is_set:
                raise InputError(f"{name} needs a size: give `budget.params` (solved) or `method.{scale}`")
    if thin and not space.has_budget:
        raise InputError(f"{thin[0]} needs a size: give `budget.params`, to which the network's width is solved")
    if thin and "network.width" in space.domains:
        raise InputError(f"`network.width` is solved from `budget` for {thin[0]}; search one of the two")


def _check_allocation(space: Space) -> None:
    """Shares belong to an allocation, an allocation to a budget of one network."""
    domain = space.domains.get("budget.allocation")
    allocations = domain.corners() if domain else (space.budget.allocation,)
    uneven = [allocation for allocation in allocations if allocation != "even"]
    if space.budget.shares is not None:
        raise InputError(f"`budget.shares` must be a domain, one weight a group, but got {space.budget.shares:g}")
    if "budget.shares" in space.domains and not uneven:
        raise InputError("`budget.shares` needs `budget.allocation` to be stage or layer")
    if uneven and not space.has_budget:
        raise InputError(f"`budget.allocation: {uneven[0]}` shares out a budget; give `budget.params`")
    if uneven and "network.name" in space.domains:
        raise InputError("`budget.allocation` shares out the layers of one network; leave `network.name` one value")


def _check_start(space: Space) -> None:
    domain = space.domains.get("start.how")
    dense = "dense" in (domain.corners() if domain else (space.start.how,))
    if dense and space.start.weights is None and "dense" not in space.references:
        raise InputError(
            "`start: dense` needs trained weights: give `start.weights`, or train them here by `references: [dense]`"
        )
    if "start.weights" in space.domains:
        raise InputError("`start.weights` must be one file")
    if dense and any(name.startswith("network.") for name in space.domains):
        raise InputError("`start: dense` needs one network, whose weights are trained; leave `network` one value each")


def _check_enqueued_point(space: Space, point: dict[str, object]) -> None:
    """An enqueued point names searched fields, with values of their domains."""
    domains = space.searched_domains(0)
    for name, value in point.items():
        if name.startswith("share.") and "budget.shares" in domains:
            is_inside = domains["budget.shares"].contains(value)
        elif name in domains:
            is_inside = domains[name].contains(value)
        else:
            raise unknown("field of `search.enqueue`, which is not searched:", name, domains)
        if not is_inside:
            raise InputError(f"`search.enqueue`: `{name}` must lie in its domain, but got {value!r}")


def _check_teacher(space: Space) -> None:
    """A teacher needs a weight in the recipe, and a weight needs a teacher."""
    weights = [field for field in TEACHER_WEIGHTS if space.largest(field) > 0]
    if weights and space.teacher is None:
        raise InputError(f"`train.{weights[0]}` above 0 needs a `teacher`; name one, or set it to 0")
    if space.teacher is not None and not weights:
        raise InputError("`teacher` is never asked: give `train.attention_weight` (the study's is 1000) or "
                         "`train.kd_weight` a value above 0, or leave `teacher` out")  # fmt: skip
