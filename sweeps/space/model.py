"""The checked space: one frozen object that every later stage reads. Nothing here reads or checks a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lowrank.errors import InputError
from lowrank.training import RECIPE_FIELD, Recipe, recipe_fields
from lowrank.utils import validate_model
from sweeps.space.domains import SEVERAL, Domain, Value
from sweeps.space.method_names import Alternative
from sweeps.space.settings import (
    LIMITS,
    TEACHER_WEIGHTS,
    AnswerSettings,
    BudgetSettings,
    ResourceSettings,
    SearchSettings,
    StartSettings,
    TeacherSettings,
)

if TYPE_CHECKING:
    from lowrank.data import DataSettings
    from lowrank.networks import NetworkSettings


@dataclass(frozen=True)
class Space:
    """A checked space: literals by section, domains of searched fields by dotted name."""

    name: str
    question: str
    data: DataSettings
    network: NetworkSettings
    train: dict[str, object]  # literals, which override the recipe that suits data set and network
    alternatives: tuple[Alternative, ...]
    budget: BudgetSettings
    references: tuple[str, ...]
    search: SearchSettings
    resources: ResourceSettings
    start: StartSettings
    teacher: TeacherSettings | None = None
    answer: AnswerSettings = field(default_factory=AnswerSettings)
    domains: dict[str, Domain] = field(default_factory=dict)  # of all sections but `method`
    source: dict[str, object] = field(default_factory=dict)  # file and overrides, as space.yaml keeps them

    @property
    def epochs(self) -> int:
        """The most epochs of a trial, where the space searches that too."""
        domain = self.domains.get("train.epochs")
        if domain is None:
            return self._make_recipe(self.train, self.network.name, "train").epochs
        return max(int(value or 0) for value in domain.corners())

    @property
    def start_kinds(self) -> tuple[str, ...]:
        """How trials may start: values of `start.how`."""
        domain = self.domains.get("start.how")
        return tuple(str(kind) for kind in domain.corners()) if domain else (self.start.how,)

    @property
    def starts_trained(self) -> bool:
        """Whether trials start, or may start, from weights of a file or of the network's builder."""
        return self.start.weights is not None and self.start_kinds != ("scratch",)

    @property
    def allocations(self) -> tuple[str, ...]:
        """How budgets may be shared out: values of `budget.allocation`."""
        domain = self.domains.get("budget.allocation")
        return tuple(str(kind) for kind in domain.corners()) if domain else (self.budget.allocation,)

    @property
    def has_budget(self) -> bool:
        """Whether sizes are solved from a budget; otherwise the methods' own scales are given."""
        return any(f"budget.{name}" in self.domains or getattr(self.budget, name) for name in LIMITS[:3])

    def searched_domains(self, alternative: int = 0) -> dict[str, Domain]:
        """List every searched field.

        Args:
            alternative: index of the `method` section.

        Returns:
            Domains by dotted name.
        """
        _, method_domains = self.alternatives[alternative]
        return {**{f"method.{key}": domain for key, domain in method_domains.items()}, **self.domains}

    def corner_networks(self) -> list[NetworkSettings]:
        """List the networks at each end of the searched fields.

        Returns:
            One network for each end of each field, other fields as they are; the space's network where none is
            searched.
        """
        from lowrank.networks import NetworkSettings  # imports torch, which `--list` does without

        fields = [(name.partition(".")[2], domain) for name, domain in self.domains.items()
                  if name.startswith("network.")]  # fmt: skip
        networks = [
            NetworkSettings(**{**self.network.model_dump(), key: value})
            for key, domain in fields
            for value in domain.corners()
        ]
        return networks or [self.network]

    def largest(self, field: str) -> float:
        """Find the largest value of a field of the recipe anywhere in the space.

        Args:
            field: a number, such as `kd_weight`.

        Returns:
            The value; null counts as 0.
        """
        domain = self.domains.get(f"train.{field}")
        if domain is None:
            return float(getattr(self.recipe({}), field))
        return max(float(value or 0) for value in domain.corners())

    def recipe(self, searched: Mapping[str, Value], network: str | None = None) -> Recipe:
        """Make the training recipe at a point of the space.

        Args:
            searched: the point's fields of `train`, without that prefix.
            network: the network's name where the point has another than the space.

        Returns:
            The checked recipe.

        Raises:
            InputError: a field is unknown or out of range.
        """
        recipe = self._make_recipe({**self.train, **searched}, network or self.network.name, "train")
        if recipe.epochs == 0 and "scratch" in self.start_kinds:
            raise InputError(
                f"`train.epochs`: must be greater than or equal to 1, but got {recipe.epochs}: only networks that "
                "start from trained weights (`start`) can be evaluated without training"
            )
        return recipe

    def reference_recipe(self) -> Recipe:
        """Make the recipe of the references of full width, searched fields at their defaults.

        Where trials start from trained weights, references are trained on for as many epochs as the longest trial, and
        a searched field whose default is outside its domain has the middle of that.

        Returns:
            The checked recipe.
        """
        if not self.starts_trained:
            return self.recipe({})
        plain = self._make_recipe(self.train, self.network.name, "train")
        fields: dict[str, Value] = {"epochs": self.epochs}
        for name, domain in self.domains.items():
            section, _, key = name.partition(".")
            if section == "train" and key in Recipe.model_fields and key != "epochs":
                default = getattr(plain, key)
                fields[key] = default if domain.contains(default) else domain.value_at(0.5)
        return self.recipe({**fields, **dict.fromkeys(TEACHER_WEIGHTS, 0.0)})

    def scratch_recipe(self) -> Recipe:
        """Make the recipe of references that start from random weights.

        Returns:
            The checked recipe: `start.scratch_train` where trials start from trained weights, else that of trials.

        Raises:
            InputError: a field of `start.scratch_train` is unknown or out of range.
        """
        if not self.starts_trained:
            return self.recipe({})
        recipe = self._make_recipe(self.start.scratch_train or {}, self.network.name, "start.scratch_train")
        if recipe.epochs == 0:
            raise InputError("`start.scratch_train.epochs`: must be greater than or equal to 1, but got 0")
        return recipe

    def _make_recipe(self, overrides: Mapping[str, Any], network: str, section: str) -> Recipe:
        fields = recipe_fields(self.data.name, network, overrides)
        for key in fields:
            if key not in Recipe.model_fields:
                choices = ", ".join(sorted((RECIPE_FIELD, *Recipe.model_fields)))
                raise InputError(f"unknown field `{section}.{key}`; choose from: {choices}")
        return validate_model(Recipe, fields, section, SEVERAL)
