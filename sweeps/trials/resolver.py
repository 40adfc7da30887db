"""Turn a point of the space into a trial: sizes solved, counts exact, identity fixed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank.compression import (
    Allocation,
    Budget,
    FileSizeCalculator,
    NetworkPlan,
    SizedMethod,
    build_sized_student,
    network_plan,
    network_to_count,
    smallest_sizes,
    solve_allocation,
    solve_width,
)
from lowrank.data import ImageData
from lowrank.errors import InfeasibleError, InputError
from lowrank.layers import Bayesian, Dense, Method, Separable, WholeKernelMethod, make_method
from lowrank.networks import NetworkSettings, has_batch_norms, is_own_code
from lowrank.training import Recipe, augmentation_for, check_network, check_training_step
from lowrank.utils import first_line, format_counted, print_progress, validate_model
from sweeps.cluster import device_lost, out_of_memory
from sweeps.records import TRIAL_WEIGHTS, BudgetSection, Role, StartSection, TeacherSection, Trial, TrialSpec, trial_ids
from sweeps.space import (
    ALL_SIZES,
    ALLOCATIONS_BY_ERROR,
    FITTED_STARTS,
    NETWORK_WEIGHTS,
    REFERENCE_STRATUM,
    SHARE_PREFIX,
    TEACHER_WEIGHTS,
    THIN_BASELINES,
    UNCHANGED,
    Point,
    Points,
    Space,
    Stratum,
    Value,
    halving_strata,
    make_strata,
    method_at,
)
from sweeps.space.settings import BudgetSettings
from sweeps.trials.rank_allocation import RankAllocator
from sweeps.trials.step_timer import StepTimer
from sweeps.trials.teacher import ResolvedTeacher
from sweeps.trials.trained_network import builder_fingerprint, trained_epochs, weights_fingerprint

_REMOVAL_LIMITS = ("budget.params", "budget.mult_adds", "budget.bytes")
_FULL_WIDTH = (UNCHANGED, "dense", "separable")  # references of the network's own width
# Fields of a recipe that name a part of the network
_PART_FIELDS = ("freeze", "factor_lr", "body_lr", "head_lr", "drop_path", "auxiliary_weight")


class StepTimeError(InfeasibleError):
    """A training step was measured to take longer than the budget allows.

    Args:
        text: the message.
        excess: milliseconds over the budget.
    """

    def __init__(self, text: str, excess: float):
        super().__init__(text)
        self.excess = excess


class Resolver:
    """Resolves points of one space on one data set.

    It makes no tensor unless a budget limits the time of a step.

    Args:
        space: the space.
        data: its data set.
        teacher: the space's teacher; None where it has none.
        default_augmentation: fields of the augmentation that replace those that suit the data set.

    Raises:
        InputError: a recipe of the space names a part that its network does not have.
    """

    def __init__(
        self, space: Space, data: ImageData, teacher: ResolvedTeacher | None = None,
        default_augmentation: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        self.space, self.data, self.teacher = space, data, teacher
        self.default_augmentation = default_augmentation or {}
        self.image_shape, self.classes = data.image_shape, len(data.classes)
        self.size_strata = halving_strata(self.separable_params)
        self.strata = make_strata(space, self.separable_params, self.dense_params)
        self._folder: Path | None = None
        self._file_sizes: dict[NetworkSettings, FileSizeCalculator] = {}
        self._solutions: dict[tuple[Any, ...], SizedMethod] = {}
        check_recipes(space, data)

    @property
    def label_strata(self) -> tuple[Stratum, ...]:
        """The strata that trials are labelled with: those searched, or halvings of size where one search has all."""
        return self.size_strata if self.strata[0].label == ALL_SIZES else self.strata

    @cached_property
    def points(self) -> Points:
        """The points of the space; it knows the names of the groups of layers."""
        if "budget.shares" not in self.space.domains:
            return Points(self.space)
        plan = self.plan(self.space.network)
        groups = {"stage": plan.stages, "layer": plan.layers}
        names = {allocation: tuple(group.name for group in groups[allocation]) for allocation in groups}
        return Points(self.space, names)

    def plan(self, network: NetworkSettings) -> NetworkPlan:
        """Trace a network on this data set's images.

        Args:
            network: any network, not only the space's own.

        Returns:
            Its layers that can be substituted.
        """
        return network_plan(network, self.image_shape, self.classes)

    def file_size(self, network: NetworkSettings) -> FileSizeCalculator:
        """Give what calculates the size of a network's file.

        Args:
            network: any network, not only the space's own.

        Returns:
            The calculator, made once for each network.
        """
        if network not in self._file_sizes:
            counted = network_to_count(network, self.image_shape, self.classes)
            self._file_sizes[network] = FileSizeCalculator(counted, self.plan(network))
        return self._file_sizes[network]

    @property
    def plain_network(self) -> NetworkSettings:
        """The space's own network, of which references and separable methods keep the stem."""
        return _keeping_stem(self.space.network)

    @cached_property
    def dense_params(self) -> int:
        """Parameters of the space's own network."""
        return self.plan(self.plain_network).params(Dense())

    @cached_property
    def separable_params(self) -> int:
        """Parameters of the separable form of the space's own network."""
        return self.plan(self.plain_network).params(Separable())

    # Points

    def resolve(self, point: Point, repeat: int = 0, role: Role = Role.SEARCH) -> Trial:
        """Resolve a point to a trial.

        Args:
            point: dotted name -> value.
            repeat: index of the seed.
            role: why the trial is trained.

        Returns:
            The trial.

        Raises:
            InfeasibleError: no network meets the point's constraints; the text says why.
        """
        network = self._network(point)
        alternative = self.space.alternatives[int(point.get("alternative") or 0)]
        method = method_at(alternative, _under(point, "method"))
        if not isinstance(method, WholeKernelMethod):
            network = _keeping_stem(network)
        name = str(point.get("method.name", alternative[0].get("name", "")))
        budget = self.budget(point)
        sized: SizedMethod = method
        if name in THIN_BASELINES:
            network = solve_width(network, self.image_shape, self.classes, method, budget)
        elif isinstance(method, Bayesian):
            self._check_removal(network, method, budget, point)
        elif self.space.has_budget:
            sized = self._solved(network, method, budget, point)
        elif (reason := self.plan(network).infeasible(method)) is not None:
            raise InfeasibleError(reason)
        recipe = self.space.recipe(_under(point, "train"), network.name)
        trial = self._trial(network, sized, recipe, {**point}, role, repeat, budget, self._start(point, method))
        if not isinstance(method, Bayesian):
            return trial
        first = {name: domain.corners()[0] for name, domain in self.space.domains.items() if name in _REMOVAL_LIMITS}
        if all(point[name] == value for name, value in first.items()):
            return trial
        try:  # one training meets all budgets: the trials of the others wait for that of the first
            return replace(trial, same_training=self.resolve({**point, **first}, repeat, role).trial_id)
        except InfeasibleError:
            return trial

    def _network(self, point: Point) -> NetworkSettings:
        return NetworkSettings(**{**self.space.network.model_dump(), **_under(point, "network")})

    def training_cost(self, point: Point) -> float:
        """Estimate how long a point trains beside others, without solving its sizes.

        Args:
            point: dotted name -> value.

        Returns:
            Epochs times mult-adds of the dense network: structured layers are mostly rebuilt and run like dense ones.
        """
        network = self._network(point)
        recipe = self.space.recipe(_under(point, "train"), network.name)
        return float(recipe.epochs * self.plan(network).mult_adds(Dense()))

    def _check_removal(self, network: NetworkSettings, method: Bayesian, budget: Budget, point: Point) -> None:
        """Raise InfeasibleError if no removal of groups can meet a budget."""
        if self._limits(point).step_ms is not None:
            raise InfeasibleError(f"{method.name}: the step of its training says nothing of the network that is left")
        if any(getattr(budget, f"{name}_min") for name in ("params", "mult_adds", "bytes")):
            raise InfeasibleError(f"{method.name}: sizes follow from training, so that no budget can have a minimum")
        if point.get("budget.allocation", self.space.budget.allocation) != "even":
            raise InfeasibleError(f"{method.name}: training shares the budget out; `budget.allocation` must be even")
        smallest = smallest_sizes(network, self.image_shape, self.classes)
        if smallest is None and (budget.mult_adds is not None or budget.bytes is not None):
            raise InfeasibleError(
                f"{method.name}: groups of {network.name} are only masked, which changes neither mult-adds nor bytes"
            )
        for name, size in (smallest or {}).items():
            if (limit := getattr(budget, name)) is not None and size > limit:
                raise InfeasibleError(f"{method.name} cannot be that small: its minimum is {size:,} {name}")

    def _solved(self, network: NetworkSettings, method: Method, budget: Budget, point: Point) -> SizedMethod:
        plan, allocation = self.plan(network), point.get("budget.allocation", self.space.budget.allocation)
        shares = [name for name in point if name.startswith(SHARE_PREFIX)]
        weights = {name.removeprefix(SHARE_PREFIX): float(point[name] or 0) for name in shares}
        key = (network, method, budget, allocation, tuple(weights.items()))
        if key not in self._solutions:  # many points differ in nothing that decides a size
            file_size = self.file_size(network) if _limits_bytes(budget) else None
            if allocation in ALLOCATIONS_BY_ERROR:
                if not isinstance(method, WholeKernelMethod):
                    raise InfeasibleError(f"{method.name}: `budget.allocation: {allocation}` needs whole kernels")
                solution = self.rank_allocator.solve(method, str(allocation), budget, weights, file_size)
                self._solutions[key] = solution
                return solution
            self._solutions[key] = solve_allocation(plan, method, budget, allocation, weights, file_size)  # type: ignore[arg-type]  # checked when read
        return self._solutions[key]

    @cached_property
    def rank_allocator(self) -> RankAllocator:
        """Shares budgets out by what ranks cost the trained network; made at its first use."""
        allocator = RankAllocator(
            self.space, self.data, self.plan(self.space.network), self._fingerprint, print_progress
        )
        if self._folder is not None:
            allocator.use_folder(self._folder)
        return allocator

    def expected_output_errors(self, trial: Trial) -> dict[str, float] | None:
        """Look up how far the outputs of a trial's layers will be off after the fit, before any training.

        Args:
            trial: of this space.

        Returns:
            By name of the layer, the root of the share of the outputs' variance that is missed, with the layers before
            it unchanged; None unless ranks are shared out by what they cost.
        """
        specification = trial.specification
        if specification.allocation is None or specification.allocation.by not in ALLOCATIONS_BY_ERROR:
            return None
        sized = specification.model(self.image_shape, self.classes).sized(self.plan(self.space.network))
        assert isinstance(sized, Allocation)
        name = str(trial.point.get("method.name", specification.method.name))
        return self.rank_allocator.output_errors(name, sized)

    @cached_property
    def step_timer(self) -> StepTimer:
        """Measures steps; made at its first use."""
        batch = min(self.space.recipe({}).batch_size, len(self.data.train))
        timer = StepTimer(self.image_shape, self.classes, batch)
        if self._folder is not None:
            timer.use_folder(self._folder)
        return timer

    def use_folder(self, folder: Path) -> None:
        """Keep what is measured in a study's folder, and take over what that has.

        Args:
            folder: of the study; it may be missing yet.
        """
        self._folder = folder
        for name in ("step_timer", "rank_allocator"):
            if name in self.__dict__:
                getattr(self, name).use_folder(folder)

    def close(self) -> None:
        """Free what measuring ranks needs; it is made again if more has to be measured."""
        if "rank_allocator" in self.__dict__:
            self.rank_allocator.close()

    def budget(self, point: Point) -> Budget:
        """Give a point's limits as counts.

        Args:
            point: dotted name -> value.

        Returns:
            The limits; shares are taken of the space's own network, whatever width the point has.
        """
        values = self._limits(point)
        reference = self._reference_count(values.relative_to)

        def limit(name: str) -> int | None:
            value: float | None = getattr(values, name)
            return None if value is None else int(value * reference(name.removesuffix("_min")))

        upper = {name: limit(name) for name in ("params", "mult_adds", "bytes")}
        lower = {f"{name}_min": limit(f"{name}_min") for name in upper}
        for name, value in upper.items():
            if value is not None and values.window:
                lower[f"{name}_min"] = max(lower[f"{name}_min"] or 0, int(values.window * value))
        return Budget(**upper, **lower)

    def _limits(self, point: Point) -> BudgetSettings:
        return self.space.budget.model_copy(update=dict(_under(point, "budget")))

    def _reference_count(self, relative_to: str | None) -> Callable[[str], float]:
        """By what a limit of each name is multiplied: the count of the form of which it is a share, else 1."""
        form = {"dense": Dense(), "separable": Separable()}.get(relative_to or "")
        network = self.plain_network
        if form is None:
            return lambda name: 1
        plan = self.plan(network)
        counts: dict[str, Callable[[], float]] = {
            "params": lambda: plan.params(form), "mult_adds": lambda: plan.mult_adds(form),
            "bytes": lambda: self.file_size(network).measure(form).bytes,
            "step_ms": lambda: self.step_timer.milliseconds(network, plan, form),
        }  # fmt: skip
        return lambda name: counts[name]()

    def _step(self, network: NetworkSettings, sized: SizedMethod, point: Point) -> dict[str, int]:
        """The measured step in microseconds where a budget limits it; raises StepTimeError when it takes longer."""
        values = self._limits(point)
        if values.step_ms is None:
            return {}
        limit = values.step_ms * self._reference_count(values.relative_to)("step_ms")
        try:
            milliseconds = self.step_timer.milliseconds(network, self.plan(network), sized)
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error):
                reason = "does not fit into this machine's memory"
            elif device_lost(error) or isinstance(error, BrokenProcessPool):
                reason = f"could not be measured: {first_line(error)}"
            else:
                raise
            # How much too slow it is nobody knows: as much again as is allowed
            raise StepTimeError(f"a training step {reason}", limit) from error
        if milliseconds > limit:
            reason = f"a training step takes {milliseconds:.2f} ms on this machine, over the budget of {limit:.2f} ms"
            raise StepTimeError(reason, milliseconds - limit)
        return {"step_us": round(1000 * milliseconds)}

    # References

    def reference(self, name: str, repeat: int = 0) -> Trial:
        """Make the trial of a reference network of full width under the space's recipe.

        Searched fields are at their defaults. Its decay is never scaled, because it has no factors. Where trials start
        from the weights of a file, it does too; `unchanged` is that trained network itself, not trained any further.

        Args:
            name: `dense`, `separable` or `unchanged`.
            repeat: index of the seed.

        Returns:
            The trial.
        """
        method = Separable() if name == "separable" else Dense()
        recipe, point = self.space.reference_recipe(), dict[str, Value]({"method.name": name})
        if name == UNCHANGED:
            recipe = recipe.model_copy(update={"epochs": 0})
        start = self._start_section("dense") if self.space.starts_trained else None
        return self._trial(self.plain_network, method, recipe, point, Role.REFERENCE, repeat, None, start)

    def references(self, repeat: int = 0) -> tuple[list[Trial], list[str]]:
        """Make the trials of all reference networks, those that are solved for a size at the budget of every stratum.

        The trained network itself is evaluated once, whatever the seed.

        Args:
            repeat: index of the seed.

        Returns:
            The trials, and a line for each that cannot be trained.
        """
        references, impossible = self._references(repeat)
        return references, [f"{name} at {label}: {reason}" for (name, label), reason in impossible.items()]

    def impossible_references(self) -> dict[tuple[str, str], str]:
        """Say which references cannot be trained.

        Returns:
            The reason by the reference's name and the label of the stratum for whose budget it is solved.
        """
        return self._references(0)[1]

    def _references(self, repeat: int) -> tuple[list[Trial], dict[tuple[str, str], str]]:
        references, impossible = {}, {}
        for name in self.space.references:
            if name in _FULL_WIDTH:
                trials = [self.reference(name, 0 if name == UNCHANGED else repeat)]
            else:
                trials = []
                for stratum in self.strata:
                    try:
                        trials.append(self._sized_reference(name, stratum, repeat))
                    except InfeasibleError as error:
                        impossible[name, stratum.label] = str(error)
            references.update({trial.trial_id: trial for trial in trials})
        return list(references.values()), impossible

    def _sized_reference(self, name: str, stratum: Stratum, repeat: int) -> Trial:
        limits = dict(stratum.fixed) or ({stratum.budget: stratum.interval[1]} if stratum.budget else {})
        point: dict[str, Value] = {"method.name": name, **limits}
        budget, method = self.budget(point), make_method({"name": THIN_BASELINES.get(name, name)})
        network = self.plain_network
        sized: SizedMethod = method
        if name in THIN_BASELINES:
            network = solve_width(network, self.image_shape, self.classes, method, budget)
        else:
            sized = self._solved(network, method, budget, {"budget.allocation": "even"})
        recipe = self.space.scratch_recipe()
        return self._trial(network, sized, recipe, point, Role.REFERENCE, repeat, budget, None)

    # Trials

    def _trial(
        self, network: NetworkSettings, sized: SizedMethod, recipe: Recipe, point: dict[str, Value], role: Role,
        repeat: int, budget: Budget | None, start: StartSection | None,
    ) -> Trial:  # fmt: skip
        if recipe.epochs == 0:  # nothing is learned, from a teacher neither
            recipe = recipe.model_copy(update=dict.fromkeys(TEACHER_WEIGHTS, 0.0))
        plan = self.plan(network)
        full_plan = self.plan(_keeping_stem(network) if "network.name" in self.space.domains else self.plain_network)
        counts = count(plan, sized, full_plan)
        limits = None
        if isinstance(sized, Bayesian):
            counts, limits = _at_most(counts, budget), _removal_limits(budget)
        else:
            counts |= self._budgeted(network, sized, budget)
        if role is not Role.REFERENCE:
            counts |= self._step(network, sized, point)
        label = REFERENCE_STRATUM
        if role is not Role.REFERENCE:
            label = self._stratum(point, counts["params"]).label
        specification = self._specification(network, sized, recipe, repeat)
        if (teacher := self._teacher(recipe, network, point)) is not None:
            specification = specification.model_copy(update={"teacher": teacher})
        if start is not None:
            specification = specification.model_copy(update={"start": start})
        if limits is not None:
            specification = specification.model_copy(update={"budget": limits})
        trial_id, point_id = trial_ids(specification, plan.signature(sized))
        return Trial(trial_id, role, label, point, specification, counts, point_id)

    def _specification(
        self, network: NetworkSettings, sized: SizedMethod, recipe: Recipe, repeat: int
    ) -> TrialSpec:  # fmt: skip
        """The sections with all of their fields given: a later default must not change what was trained."""
        views = augmentation_for(
            recipe, self.data.name, self.image_shape, self.space.search.seed, self.default_augmentation
        )
        return TrialSpec.parse({
            "network": network.model_dump(mode="json"), **self.plan(network).settings(sized),
            "train": recipe.model_dump(mode="json"), "views": views.model_dump(mode="json"),
            "data": {**self.data.settings.model_dump(mode="json"), "fingerprint": self.data.fingerprint},
            "seed": self.space.search.seed + repeat,
        })  # fmt: skip

    def _budgeted(self, network: NetworkSettings, sized: SizedMethod, budget: Budget | None) -> dict[str, int]:
        """The unused part of a budget, and the bytes on disk where it limits them."""
        if budget is None:
            return {}
        file_size = self.file_size(network) if _limits_bytes(budget) else None
        gap = budget.gap(self.plan(network), sized, file_size)
        counts = {} if gap is None else {"budget_gap": gap}
        return counts | ({"bytes": file_size.measure(sized).bytes} if file_size else {})

    def _start(self, point: Point, method: Method) -> StartSection | None:
        """From which weights a point starts; None where they are random."""
        how = str(point.get("start.how", self.space.start.how))
        if how == "scratch":
            return None
        if point.get("method.name") in THIN_BASELINES:
            raise InfeasibleError("a thinner network cannot start from the weights of the full one")
        if how in FITTED_STARTS and not isinstance(method, WholeKernelMethod):
            raise InfeasibleError(
                f"{method.name}: `start: {how}` fits factors of whole kernels; `start: dense` would do"
            )
        return self._start_section(how)

    def _start_section(self, how: str) -> StartSection:
        """The place of the initial weights and their hash, and how a student takes them over."""
        fit: dict[str, str | int] = {}
        if how in FITTED_STARTS:
            fit = {"how": how, "calibration": self.space.start.calibration, "seed": self.space.search.seed}
        if self.space.start.weights is None:
            trial_id = self.reference("dense").trial_id
            return validate_model(
                StartSection, {"from": f"{TRIAL_WEIGHTS}{trial_id}", "fingerprint": trial_id, **fit}, "start"
            )
        epochs = {} if self._trained_epochs is None else {"epochs": self._trained_epochs}
        source = {"from": self.space.start.weights, "fingerprint": self._fingerprint}
        return validate_model(StartSection, {**source, **fit, **epochs}, "start")

    @cached_property
    def _trained_epochs(self) -> int | None:
        if self.space.start.weights == NETWORK_WEIGHTS:
            return None
        return trained_epochs(Path(str(self.space.start.weights)))

    @cached_property
    def _fingerprint(self) -> str:
        if self.space.start.weights == NETWORK_WEIGHTS:
            return builder_fingerprint(self.space.network, self.image_shape, self.classes)
        trial_id = StartSection.trial_of(str(self.space.start.weights))
        if trial_id is not None:  # a recorded trial is trained again
            return trial_id
        path = Path(str(self.space.start.weights))
        if not path.is_file():
            raise InputError(f"`start.weights`: there is no file {path}")
        return weights_fingerprint(path)

    def _teacher(self, recipe: Recipe, network: NetworkSettings, point: Point) -> TeacherSection | None:
        """The section of the teacher; None where the recipe does not use it."""
        if self.teacher is None:
            return None
        views = point.get("teacher.views", self.teacher.settings.views)
        return self.teacher.section(recipe, network, None if views is None else int(views), self.data)

    def _stratum(self, point: Point, params: int) -> Stratum:
        """The stratum of the point's own budget; where sizes are not proposed in strata, the one of its size."""
        searched = next((stratum for stratum in self.strata if stratum.contains(point)), None)
        return searched or next(stratum for stratum in self.size_strata if params <= stratum.limit)


def _check_batch_norms(space: Space, data: ImageData, recipes: Sequence[Recipe]) -> None:
    """Check that each part of a batch has two images, where the network takes statistics over them."""
    trained = [recipe for recipe in recipes if recipe.epochs > 0]
    images = min((min(recipe.batch_size, len(data.train)) for recipe in trained), default=2)
    parts = max((recipe.accumulate for recipe in trained), default=1)
    if images // parts >= 2:
        return
    network = network_to_count(space.network, data.image_shape, len(data.classes))
    if has_batch_norms(network):
        raise InputError(
            f"batch norms of {space.network.name} need at least 2 images in each part of a batch, but got {images} "
            f"in {format_counted(parts, 'part')}; choose a larger `train.batch_size` or a smaller `train.accumulate`"
        )


def _check_training_steps(space: Space, data: ImageData, recipes: Sequence[Recipe]) -> None:
    """Check that the user's own networks can be trained, before the first trial starts."""
    if not any(recipe.epochs for recipe in recipes):
        return
    for network in {network.name: network for network in space.corner_networks()}.values():
        if is_own_code(network.name):
            with torch.random.fork_rng(devices=[]):
                built = network_to_count(network, data.image_shape, len(data.classes))
                for line in check_training_step(built, network.name, data.image_shape, len(data.classes)):
                    print(line, file=sys.stderr, flush=True)


def _warn_of_sgd(space: Space, data: ImageData, recipes: Sequence[Recipe]) -> None:
    """Say which optimizer to take, where SGD would train on the weights of a network without batch norms."""
    if space.start.weights is None or not any(recipe.epochs and recipe.optimizer == "sgd" for recipe in recipes):
        return
    network = network_to_count(space.network, data.image_shape, len(data.classes))
    if not has_batch_norms(network):
        layer_norms = "layer norms and " * any(isinstance(module, nn.LayerNorm) for module in network.modules())
        print(
            f"{space.network.name} has {layer_norms}no batch norms: SGD may undo its training; "
            "try --set train.optimizer=adamw --set train.lr=0.0001 --set train.weight_decay=0.05, and "
            "--set train.shift=0 --set train.cutout=0 if it was not trained on such images",
            file=sys.stderr,
            flush=True,
        )


def _keeping_stem(network: NetworkSettings) -> NetworkSettings:
    """The network without `substitute_all`, which is for factors of whole kernels alone."""
    return network.model_copy(update={"substitute_all": False})


def _at_most(counts: dict[str, int], budget: Budget | None) -> dict[str, int]:
    """Bound the counts of a network whose sizes follow from its training, until the trial ends."""
    limits = {name: getattr(budget, name) for name in ("params", "mult_adds")} if budget is not None else {}
    return counts | {name: min(counts[name], limit) for name, limit in limits.items() if limit is not None}


def _removal_limits(budget: Budget | None) -> BudgetSection | None:
    """The upper limits of a budget as a specification has them; None where there are none."""
    if budget is None or all(limit is None for limit in (budget.params, budget.mult_adds, budget.bytes)):
        return None
    return BudgetSection(params=budget.params, mult_adds=budget.mult_adds, bytes=budget.bytes)


def _limits_bytes(budget: Budget) -> bool:
    return budget.bytes is not None or budget.bytes_min is not None


def _under(point: Point, section: str) -> dict[str, Value]:
    prefix = f"{section}."
    return {name.removeprefix(prefix): value for name, value in point.items() if name.startswith(prefix)}


def count(plan: NetworkPlan, sized: SizedMethod, full_plan: NetworkPlan) -> dict[str, int]:
    """Count what is built beside the dense and the separable form of the full network.

    Args:
        plan: of the network that is built.
        sized: what it is built with.
        full_plan: of the space's own network, whatever width the point has.

    Returns:
        Parameters and mult-adds (for one image) by their names in the records.
    """
    counts = {"params": plan.params(sized), "mult_adds": plan.mult_adds(sized)}
    for prefix, form in (("dense", Dense()), ("separable", Separable())):
        counts |= {f"{prefix}_params": full_plan.params(form), f"{prefix}_mult_adds": full_plan.mult_adds(form)}
    return counts


def check_recipes(space: Space, data: ImageData) -> None:
    """Check that the network has the parts that recipes name, and what augmentation leaves of the images.

    Every end of the searched fields is looked at.

    The separable form of the space's network stands for all methods, whose modules have the same names. It is built
    only where a recipe names a part.

    Args:
        space: the space.
        data: its data set.

    Raises:
        InputError: a recipe names a part that the network does not have, or shifts or cuts out too much; or a network
            of the user's cannot be trained.
    """
    default = Recipe()
    points = [{}, *({name.removeprefix("train."): value} for name, domain in space.domains.items()
                    if name.startswith("train.") for value in domain.corners())]  # fmt: skip
    recipes = [space.recipe(point) for point in points]
    for recipe in recipes:
        augmentation_for(recipe, data.name, data.image_shape, space.search.seed)
    _check_batch_norms(space, data, recipes)
    _check_training_steps(space, data, recipes)
    _warn_of_sgd(space, data, recipes)
    naming_parts = [
        recipe for recipe in recipes if any(getattr(recipe, field) != getattr(default, field) for field in _PART_FIELDS)
    ]
    if not naming_parts:
        return
    student = build_sized_student(space.network, {"name": "separable"}, data.image_shape, len(data.classes))
    for recipe in naming_parts:
        check_network(student.network, recipe, len(data.classes), data.image_shape)
