"""From a point of the space to a trial's specification: sizes solved, counts exact, identity fixed."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

from lowrank.compression.allocation import SizedMethod
from lowrank.compression.budget import Budget, solve_allocation, solve_width
from lowrank.compression.file_size import FileSizeCalculator
from lowrank.compression.plan import NetworkPlan
from lowrank.compression.substitution import build_sized_student
from lowrank.compression.trace import network_plan, network_to_count
from lowrank.data import AugmentationSettings, ImageData, default_augmentation
from lowrank.errors import InfeasibleError, InputError
from lowrank.layers import Dense, Method, Separable
from lowrank.layers.registry import make_method
from lowrank.networks.registry import NetworkSettings
from lowrank.training.optimizer import check_network
from lowrank.training.recipe import Recipe
from sweeps.records.events import Role
from sweeps.records.specification import TRIAL_WEIGHTS, Trial, trial_ids
from sweeps.space.domains import Value
from sweeps.space.method_names import THIN_BASELINES, method_at
from sweeps.space.model import Space
from sweeps.space.points import SHARE_PREFIX, Points
from sweeps.space.strata import ALL_SIZES, REFERENCE_STRATUM, Point, Stratum, halving_strata, make_strata
from sweeps.trials.step_timer import StepTimer
from sweeps.trials.teacher import ResolvedTeacher

_OF_PARTS = ("freeze", "factor_lr", "body_lr", "head_lr", "drop_path", "auxiliary_weight")


class StepTimeError(InfeasibleError):
    """A training step was measured to take longer than the budget allows; `excess` is by how many milliseconds."""

    def __init__(self, text: str, excess: float):
        super().__init__(text)
        self.excess = excess


class Resolver:
    """Resolves points of one space on one data set; makes no tensor, unless a budget asks for a step's time.

    Raises InputError when the space's recipes do not fit its network.
    """

    def __init__(self, space: Space, data: ImageData, teacher: ResolvedTeacher | None = None):
        self.space, self.data, self.teacher = space, data, teacher
        self.image_shape, self.classes = data.image_shape, len(data.classes)
        self.size_strata = halving_strata(self.separable_params)
        self.strata = make_strata(space, self.separable_params)
        self.step_timer = StepTimer(self.image_shape, self.classes, min(space.recipe({}).batch_size, len(data.train)))
        self._disks: dict[NetworkSettings, FileSizeCalculator] = {}
        self._solutions: dict[tuple[Any, ...], SizedMethod] = {}
        check_recipes(space, data)

    @property
    def label_strata(self) -> tuple[Stratum, ...]:
        """The strata that trials are labelled with: those searched, or halvings of size where all are one search."""
        return self.size_strata if self.strata[0].label == ALL_SIZES else self.strata

    @cached_property
    def points(self) -> Points:
        """The points of the space, the groups of its network's layers named."""
        if "budget.shares" not in self.space.domains:
            return Points(self.space)
        plan = self.plan(self.space.network)
        names = {"stage": plan.stages, "layer": plan.layers}
        return Points(self.space, {kind: tuple(group.name for group in groups) for kind, groups in names.items()})

    def plan(self, network: NetworkSettings) -> NetworkPlan:
        """The network's sites for this data set's images and classes."""
        return network_plan(network, self.image_shape, self.classes)

    def disk(self, network: NetworkSettings) -> FileSizeCalculator:
        """What measures the network's file."""
        if network not in self._disks:
            counted = network_to_count(network, self.image_shape, self.classes)
            self._disks[network] = FileSizeCalculator(counted, self.plan(network))
        return self._disks[network]

    @cached_property
    def separable_params(self) -> int:
        """Parameters of the separable form of the space's own network."""
        return self.plan(self.space.network).params(Separable())

    # Points

    def resolve(self, point: Point, repeat: int = 0, role: Role = Role.SEARCH) -> Trial:
        """The trial at `point` with the seed of its `repeat`; raises InfeasibleError with the reason if it has none."""
        network = NetworkSettings(**{**self.space.network.model_dump(), **_under(point, "network")})
        alternative = self.space.alternatives[int(point.get("alternative") or 0)]
        method = method_at(alternative, _under(point, "method"))
        name = str(point.get("method.name", alternative[0].get("name", "")))
        budget = self.budget(point)
        sized: SizedMethod = method
        if name in THIN_BASELINES:
            network = solve_width(network, self.image_shape, self.classes, method, budget)
        elif self.space.solves:
            sized = self._solved(network, method, budget, point)
        elif (reason := self.plan(network).infeasible(method)) is not None:
            raise InfeasibleError(reason)
        recipe = self.space.recipe(_under(point, "train"), network.name)
        return self._trial(network, sized, recipe, {**point}, role, repeat, budget)

    def _solved(self, network: NetworkSettings, method: Method, budget: Budget, point: Point) -> SizedMethod:
        plan, sharing = self.plan(network), point.get("budget.allocation", self.space.budget.allocation)
        weights = {
            name.removeprefix(SHARE_PREFIX): float(v or 0) for name, v in point.items() if name.startswith(SHARE_PREFIX)
        }
        key = (network, method, budget, sharing, tuple(weights.items()))
        if key not in self._solutions:  # many points differ in nothing that decides a size
            disk = self.disk(network) if _asks_for_bytes(budget) else None
            self._solutions[key] = solve_allocation(plan, method, budget, sharing, weights, disk)  # type: ignore[arg-type]  # checked when read
        return self._solutions[key]

    def budget(self, point: Point) -> Budget:
        """The point's limits as counts; shares are of the space's own network, whatever width the point has."""
        values = self._limits(point)
        whole = self._whole(values["relative_to"])

        def limit(name: str) -> int | None:
            value = values[name]
            return None if value is None else int(value * whole(name.removesuffix("_min")))

        found = {name: limit(name) for name in ("params", "mult_adds", "bytes")}
        least = {f"{name}_min": limit(f"{name}_min") for name in found}
        for name, most in found.items():
            if most is not None and values["window"]:
                least[f"{name}_min"] = max(least[f"{name}_min"] or 0, int(values["window"] * most))
        return Budget(**found, **least)

    def _limits(self, point: Point) -> dict[str, Any]:
        return {**self.space.budget.model_dump(), **_under(point, "budget")}

    def _whole(self, relative_to: str | None) -> Any:
        """By what a limit of each name is multiplied: the counts of the form that limits are shares of, else 1."""
        form = {"dense": Dense(), "separable": Separable()}.get(relative_to or "")
        network = self.space.network
        if form is None:
            return lambda name: 1
        plan = self.plan(network)
        counts = {
            "params": lambda: plan.params(form), "mult_adds": lambda: plan.mult_adds(form),
            "bytes": lambda: self.disk(network).measure(form).bytes,
            "step_ms": lambda: self.step_timer.milliseconds(network, plan, form),
        }  # fmt: skip
        return lambda name: counts[name]()

    def _step(self, network: NetworkSettings, sized: SizedMethod, point: Point) -> dict[str, int]:
        """The measured step in microseconds where a budget limits it; raises StepTimeError when it takes longer."""
        values = self._limits(point)
        if values["step_ms"] is None:
            return {}
        limit = values["step_ms"] * self._whole(values["relative_to"])("step_ms")
        taken = self.step_timer.milliseconds(network, self.plan(network), sized)
        if taken > limit:
            reason = f"a training step takes {taken:.2f} ms on this machine, over the budget of {limit:.2f} ms"
            raise StepTimeError(reason, taken - limit)
        return {"step_us": round(1000 * taken)}

    # References

    def reference(self, name: str, repeat: int = 0) -> Trial:
        """A reference network (a method of one size) under the space's own recipe, searched fields at their defaults.

        Its decay is never scaled: it has no factors.
        """
        kind = {"dense": Dense, "separable": Separable}[name]
        recipe, point = self.space.recipe({}), dict[str, Value]({"method.name": name})
        return self._trial(self.space.network, kind(), recipe, point, Role.REFERENCE, repeat, None)

    def references(self, repeat: int = 0) -> tuple[list[Trial], list[str]]:
        """All reference networks, thin ones at every stratum's budget, and a line for each that cannot be."""
        found, lines = {}, []
        for name in self.space.references:
            if name not in THIN_BASELINES:
                trials = [self.reference(name, repeat)]
            else:
                trials = []
                for stratum in self.strata:
                    try:
                        trials.append(self._thin_reference(name, stratum, repeat))
                    except InfeasibleError as error:
                        lines.append(f"{name} at {stratum.label}: {error}")
            found.update({trial.trial_id: trial for trial in trials})
        return list(found.values()), lines

    def _thin_reference(self, name: str, stratum: Stratum, repeat: int) -> Trial:
        limits = dict(stratum.fixed) or ({stratum.budget: stratum.interval[1]} if stratum.budget else {})
        point: dict[str, Value] = {"method.name": name, **limits}
        budget, method = self.budget(point), make_method({"name": name.removeprefix("thin_")})
        network = solve_width(self.space.network, self.image_shape, self.classes, method, budget)
        return self._trial(network, method, self.space.recipe({}), point, Role.REFERENCE, repeat, budget)

    # Trials

    def _trial(
        self, network: NetworkSettings, sized: SizedMethod, recipe: Recipe, point: dict[str, Value], role: Role,
        repeat: int, budget: Budget | None,
    ) -> Trial:  # fmt: skip
        plan = self.plan(network)
        whole = plan if "network.name" in self.space.domains else self.plan(self.space.network)
        counts = count(plan, sized, whole) | self._budgeted(network, sized, budget)
        if role is not Role.REFERENCE:
            counts |= self._step(network, sized, point)
        label = REFERENCE_STRATUM
        if role is not Role.REFERENCE:
            label = self._stratum(point, counts["params"]).label
        specification = self._specification(network, sized, recipe, repeat) | self._teacher(recipe, network, point)
        if role is not Role.REFERENCE:
            specification |= self._start(point)
        trial_id, point_id = trial_ids(specification, recipe, plan.signature(sized))
        return Trial(trial_id, role, label, point, specification, counts, point_id)

    def _specification(
        self, network: NetworkSettings, sized: SizedMethod, recipe: Recipe, repeat: int
    ) -> dict[str, Any]:  # fmt: skip
        views = augmentation_for(recipe, self.data, self.space.search.seed)
        return {
            "network": network.model_dump(mode="json"), **self.plan(network).settings(sized),
            "train": recipe.model_dump(mode="json"), "views": views.model_dump(mode="json"),
            "data": {**self.data.settings.model_dump(mode="json"), "fingerprint": self.data.fingerprint},
            "seed": self.space.search.seed + repeat,
        }  # fmt: skip

    def _budgeted(self, network: NetworkSettings, sized: SizedMethod, budget: Budget | None) -> dict[str, int]:
        """What a budget left unused, and the bytes on disk where it limits them."""
        if budget is None:
            return {}
        disk = self.disk(network) if _asks_for_bytes(budget) else None
        gap = budget.gap(self.plan(network), sized, disk)
        found = {} if gap is None else {"budget_gap": gap}
        return found | ({"bytes": disk.measure(sized).bytes} if disk else {})

    def _start(self, point: Point) -> dict[str, Any]:
        """What the trial starts from, where it is not drawn anew: where the weights lie, and what they are."""
        if point.get("start.how", self.space.start.how) == "scratch":
            return {}
        if point.get("method.name") in THIN_BASELINES:
            raise InfeasibleError("a thinner network cannot start from the weights of the whole one")
        if self.space.start.weights is None:
            trial_id = self.reference("dense").trial_id
            return {"start": {"from": f"{TRIAL_WEIGHTS}{trial_id}", "fingerprint": trial_id}}
        return {"start": {"from": self.space.start.weights, "fingerprint": self._fingerprint}}

    @cached_property
    def _fingerprint(self) -> str:
        path = Path(str(self.space.start.weights))
        if not path.is_file():
            raise InputError(f"`start.weights`: there is no file {path}")
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]

    def _teacher(self, recipe: Recipe, network: NetworkSettings, point: Point) -> dict[str, Any]:
        """The section of the teacher, where the recipe asks it."""
        if self.teacher is None:
            return {}
        views = point.get("teacher.views", self.teacher.settings.views)
        return self.teacher.section(recipe, network, None if views is None else int(views), self.data)

    def _stratum(self, point: Point, params: int) -> Stratum:
        """The stratum of the point's own budget; where sizes are not proposed in strata, the one of its size."""
        owner = next((stratum for stratum in self.strata if stratum.contains(point)), None)
        return owner or next(stratum for stratum in self.size_strata if params <= stratum.limit)


def _asks_for_bytes(budget: Budget) -> bool:
    return budget.bytes is not None or budget.bytes_min is not None


def _under(point: Point, section: str) -> dict[str, Value]:
    prefix = f"{section}."
    return {name.removeprefix(prefix): value for name, value in point.items() if name.startswith(prefix)}


def count(plan: NetworkPlan, sized: SizedMethod, whole: NetworkPlan) -> dict[str, int]:
    """Parameters and mult-adds (for one image) of what is built, and of the `whole` network dense and separable.

    The names are those of the records; the whole network is the space's own, whatever width a point has.
    """
    counts = {"params": plan.params(sized), "mult_adds": plan.mult_adds(sized)}
    for prefix, form in (("dense", Dense()), ("separable", Separable())):
        counts |= {f"{prefix}_params": whole.params(form), f"{prefix}_mult_adds": whole.mult_adds(form)}
    return counts


def augmentation_for(recipe: Recipe, data: ImageData, seed: int) -> AugmentationSettings:
    """The data set's own views, less what the recipe overrides; `seed` belongs to the study, not to the trial."""
    chosen = {key: getattr(recipe, key) for key in ("shift", "flip", "cutout") if getattr(recipe, key) is not None}
    return default_augmentation(data.name).model_copy(update={**chosen, "seed": seed})


def check_recipes(space: Space, data: ImageData) -> None:
    """Check the parts of the network that recipes name, at every end of what is searched; raises InputError.

    The space's own network in its separable form stands for all: its modules have the names that every method's have.
    It is only built where a recipe names a part.
    """
    plain = Recipe()
    points = [{}, *({name.removeprefix("train."): value} for name, domain in space.domains.items()
                    if name.startswith("train.") for value in domain.corners())]  # fmt: skip
    recipes = [space.recipe(point) for point in points]
    naming = [each for each in recipes if any(getattr(each, part) != getattr(plain, part) for part in _OF_PARTS)]
    if not naming:
        return
    student = build_sized_student(space.network, {"name": "separable"}, data.image_shape, len(data.classes))
    for recipe in naming:
        check_network(student.network, recipe, len(data.classes))
