"""Checks of a whole space beyond the type of each field, so that no trial can fail because of an invalid value."""

from __future__ import annotations

from collections.abc import Mapping

from lowrank.errors import InputError, show_value, unknown
from lowrank.utils import validate_model
from sweeps.space.domains import Value
from sweeps.space.method_names import (
    REFERENCES,
    THIN_BASELINES,
    UNCHANGED,
    alternative_names,
    method_at,
    resolve_method,
)
from sweeps.space.model import Space
from sweeps.space.points import SHARES_FIELD, Points, check_grid_size
from sweeps.space.settings import (
    ALLOCATIONS_BY_ERROR,
    FITTED_STARTS,
    NETWORK_WEIGHTS,
    START,
    TEACHER_WEIGHTS,
    BudgetSettings,
    StartSettings,
    TeacherSettings,
)

_BATCH_FIELDS = ("train.batch_size", "train.accumulate")
OBJECTIVES = ("val_error", "params", "mult_adds")


def check_space(space: Space) -> None:
    """Check that the settings of every trial of a space are valid.

    Args:
        space: the parsed space; the type of each field is checked already.

    Raises:
        InputError: a value of a domain is invalid, a field that another one needs is missing, two fields contradict
            each other, or an enqueued point is not in the space.
    """
    _check_corners(space)
    _check_search(space)
    _check_allocation(space)
    _check_start(space)
    _check_teacher(space)
    for point in space.search.enqueue:
        _check_enqueued_point(space, point)


def check_process_shards(space: Space, processes: int, images: int) -> None:
    """Check that the processes of a trial can share every batch of the space evenly.

    Losses and batch statistics equal those of a single process only if each process has the same number of images.

    Args:
        space: the space.
        processes: number of processes of each trial.
        images: number of training images of the data set; a batch has at most that many.

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
    """Check the ends of every range, and every value of a choice, against the typed settings."""
    space.recipe({})
    if "budget.relative_to" in space.domains:
        raise InputError(
            "budgets must be shares of one network, but `budget.relative_to` is searched; give it one value"
        )
    if "network.name" in space.domains and space.budget.relative_to:
        raise InputError(
            "budgets must be shares of one network, but `network.name` is searched; give it one value, or leave "
            "`budget.relative_to` out"
        )
    if {"train.decay", "train.scaled_decay"} <= space.domains.keys():
        raise InputError(
            "`train.scaled_decay` is a short form of `train.decay`, but both are searched; search one of the two"
        )
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
    """Check one value of a searched field by building the settings of its section with it."""
    section, _, key = name.partition(".")
    if section == "train":
        space.recipe({key: value})
    elif section == "network":
        from lowrank.networks import NetworkSettings  # here, since it imports torch and listing spaces does not

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
    names = [str(name) for alternative in space.alternatives for name in alternative_names(alternative)]
    if "bayesian" in names and space.search.stop != "none":
        raise InputError(
            "bayesian is small only after its training, so that no trial of it may end early: `search.stop` must be "
            f"none, but got {space.search.stop}"
        )
    if space.search.sampler == "grid":
        sections = (space.domains, *(domains for _, domains in space.alternatives))
        continuous = [name for section in sections for name, domain in section.items() if domain.count() is None]
        if continuous:
            raise InputError(f"a grid needs finite domains; `{continuous[0]}` is continuous: give a step or a choice")
        if SHARES_FIELD not in space.domains:  # whose groups only the network tells
            check_grid_size(Points(space).size())
        if space.search.repeats > 1 and space.search.stop != "none":
            raise InputError(
                "a grid with `search.repeats` compares means over seeds and needs all of them trained to their end: "
                f"`search.stop` must be none, but got {space.search.stop}"
            )
    elif len(space.alternatives) > 1:
        raise InputError(
            f"a list of `method` sections needs `search.sampler: grid`, but got {space.search.sampler}; "
            "use the grid, or one section that searches `method.name`"
        )
    if len(set(space.search.objectives)) != len(space.search.objectives) or "val_error" not in space.search.objectives:
        raise InputError(
            f"`search.objectives` must hold val_error, and no name twice, but got "
            f"{show_value(list(space.search.objectives))}; choose from: {', '.join(OBJECTIVES)}"
        )


def _check_scales(space: Space) -> None:
    """Check that each size is set by the budget or by the method's scale, and not by both."""
    thin = [name for name in space.references if name in THIN_BASELINES]
    sized = [name for name in space.references if name not in REFERENCES]
    if sized and not space.has_budget:
        raise InputError(f"the reference {sized[0]} needs a size: give `budget.params`, from which it is solved")
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
                raise InputError(
                    f"{name} needs a size: give `budget.params`, from which it is solved, or `method.{scale}`"
                )
    if thin and not space.has_budget:
        raise InputError(f"{thin[0]} needs a size: give `budget.params`, from which the network's width is solved")
    if thin and "network.width" in space.domains:
        raise InputError(f"`network.width` is solved from `budget` for {thin[0]}; search one of the two")


def _check_allocation(space: Space) -> None:
    """Check that `budget.shares` has an uneven allocation, and that one a budget and a single network."""
    uneven = [allocation for allocation in space.allocations if allocation != "even"]
    if space.budget.shares is not None:
        raise InputError(
            "`budget.shares` must be a domain, such as {log_uniform: [0.5, 2]}, from which each stage or layer gets a "
            f"weight, but got {space.budget.shares:g}"
        )
    if "budget.shares" in space.domains and not uneven:
        raise InputError("`budget.shares` needs `budget.allocation` to be stage or layer, but got even")
    by_error = [allocation for allocation in uneven if allocation in ALLOCATIONS_BY_ERROR]
    if by_error and not space.starts_trained:
        raise InputError(
            f"`budget.allocation: {by_error[0]}` asks what ranks cost a trained network: give its weights by "
            "`--weights FILE` or `start.weights`, and a `start` other than scratch"
        )
    if by_error and not _has_whole_kernel_method(space):
        raise InputError(
            f"`budget.allocation: {by_error[0]}` needs a method that factorises whole kernels; choose from: "
            f"{', '.join(_whole_kernel_names())}"
        )
    if uneven and not space.has_budget:
        raise InputError(f"`budget.allocation: {uneven[0]}` needs a budget to distribute; give `budget.params`")
    if uneven and "network.name" in space.domains:
        raise InputError(
            f"`budget.allocation: {uneven[0]}` needs one network, but `network.name` is searched; give it one value"
        )


def _check_start(space: Space) -> None:
    """Check that trials which start from a trained dense network have its weights."""
    trained = [kind for kind in space.start_kinds if kind != "scratch"]
    if trained and space.start.weights is None and "dense" not in space.references:
        raise InputError(
            f"`start: {trained[0]}` needs trained weights: give them by `--weights FILE` or `start.weights` "
            f"({NETWORK_WEIGHTS}: those that the network itself is built with), or train them here by "
            "`references: [dense]`"
        )
    for name in space.domains:
        if name.startswith("start.") and name != "start.how":
            raise InputError(f"`{name}` must be one value, but it is searched; of a start `start.how` can")
    searched = [name for name in space.domains if name.startswith("network.")]
    if trained and searched:
        raise InputError(
            f"`start: {trained[0]}` needs the weights of one network, but `{searched[0]}` is searched; give it one "
            "value"
        )
    fitted = [kind for kind in trained if kind in FITTED_STARTS]
    if fitted and not _has_whole_kernel_method(space):
        raise InputError(
            f"`start: {fitted[0]}` needs a method that factorises whole kernels; choose from: "
            f"{', '.join(_whole_kernel_names())}; `start: dense` takes the nearest weights of any method"
        )
    if UNCHANGED in space.references and not space.starts_trained:
        raise InputError(
            f"the reference {UNCHANGED} is a trained network: give its weights by `--weights FILE` or `start.weights`, "
            "and a `start` other than scratch"
        )
    space.reference_recipe()
    space.scratch_recipe()


def _whole_kernel_names() -> list[str]:
    from lowrank.layers import METHODS, WholeKernelMethod  # imports torch, which listing spaces does without

    return [name for name in METHODS if issubclass(METHODS[name], WholeKernelMethod)]


def _has_whole_kernel_method(space: Space) -> bool:
    names = {str(name) for alternative in space.alternatives for name in alternative_names(alternative)}
    return not names.isdisjoint(_whole_kernel_names())


def _check_enqueued_point(space: Space, point: Mapping[str, Value]) -> None:
    """Check that an enqueued point names searched fields only, with values of their domains."""
    domains = space.searched_domains(0)
    for name, value in point.items():
        if name.startswith("share.") and "budget.shares" in domains:
            is_inside = domains["budget.shares"].contains(value)
        elif name in domains:
            is_inside = domains[name].contains(value)
        else:
            raise unknown("field of `search.enqueue`, which is not searched:", name, domains)
        if not is_inside:
            raise InputError(f"`search.enqueue`: `{name}` must lie in its domain, but got {show_value(value)}")


def _check_teacher(space: Space) -> None:
    """Check that a space with a teacher gives its losses a weight, and that such a weight has a teacher."""
    if space.teacher is not None and space.teacher.weights == START and not space.starts_trained:
        raise InputError(
            f"`teacher.weights: {START}` is the network that trials start from: give its weights by `--weights FILE` "
            "or `start.weights`, and a `start` other than scratch"
        )
    if space.teacher is not None and (space.teacher.weights, space.start.weights) == (START, NETWORK_WEIGHTS):
        raise InputError(
            f"`teacher.weights: {START}` needs a file of weights, but `start.weights` is {NETWORK_WEIGHTS}; save the "
            "weights to a file, or name another teacher"
        )
    weights = [field for field in TEACHER_WEIGHTS if space.largest(field) > 0]
    if weights and space.teacher is None:
        raise InputError(f"`train.{weights[0]}` above 0 needs a `teacher`; name one, or set it to 0")
    if space.teacher is not None and not weights:
        raise InputError("`teacher` needs a loss with a weight above 0: give `train.attention_weight` (1000 in the "
                         "published study) or `train.kd_weight`, or leave `teacher` out")  # fmt: skip
