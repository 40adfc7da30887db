"""A network as the list of its convolutions and linear maps with their areas, for counting and budgets.

`lowrank.compression.trace` makes a plan; after that, counting any configuration is arithmetic on a handful of distinct
shapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from lowrank.compression.allocation import (
    GROUPINGS,
    Allocation,
    Group,
    Grouping,
    SizedMethod,
    make_allocation,
    make_groups,
)
from lowrank.compression.counting_conventions import Convention, StudyExtras
from lowrank.errors import InputError
from lowrank.layers.base_method import ConvShape, Method
from lowrank.layers.registry import make_method


@dataclass(frozen=True)
class Site:
    """One convolution or linear map of a network; `keep_reason` says why it is never substituted ("" if it may be)."""

    name: str
    shape: ConvShape
    keep_reason: str
    params: int
    mult_adds: int
    linear: bool = False


@dataclass(frozen=True)
class NetworkPlan:
    """Every site of a network, and what lies outside all sites: norms' parameters, products between activations.

    `base` is the published form, which substitution compresses: N of compression-scaled decay (RULES).
    """

    name: str
    sites: tuple[Site, ...]
    other_params: int
    other_mult_adds: int = 0
    extras: StudyExtras = field(default_factory=StudyExtras)
    wholes: tuple[str, ...] = ()  # names of attention modules, whose linear maps are no sites
    convention: Convention = "standard"
    base: Literal["dense", "separable"] = "dense"

    @cached_property
    def substituted(self) -> tuple[Site, ...]:
        """The sites that a method replaces."""
        return tuple(site for site in self.sites if not site.keep_reason)

    @cached_property
    def shapes(self) -> tuple[tuple[ConvShape, int], ...]:
        """Distinct shapes among the substituted sites, and how often each occurs."""
        return tuple(Counter(site.shape for site in self.substituted).items())

    @cached_property
    def fixed_params(self) -> int:
        """Parameters that no method touches."""
        return self.other_params + sum(site.params for site in self.sites if site.keep_reason)

    @cached_property
    def fixed_mult_adds(self) -> int:
        """Mult-adds, for one image, that no method touches, under the plan's convention."""
        extras = self.extras.total if self.convention == "study" else 0
        return self.other_mult_adds + extras + sum(site.mult_adds for site in self.sites if site.keep_reason)

    @cached_property
    def stages(self) -> tuple[Group, ...]:
        """The substituted sites by stage."""
        return make_groups(self.substituted, "stage")

    @cached_property
    def layers(self) -> tuple[Group, ...]:
        """Each substituted site as a group of its own."""
        return make_groups(self.substituted, "layer")

    @cached_property
    def whole(self) -> tuple[Group, ...]:
        """All substituted sites as one group."""
        return make_groups(self.substituted, "even")

    def groups(self, grouping: Grouping) -> tuple[Group, ...]:
        """The groups among which a budget is shared."""
        return {"even": self.whole, "stage": self.stages, "layer": self.layers}[grouping]

    def sized(self, method: Mapping[str, Any], allocation: Mapping[str, Any] | None = None) -> SizedMethod:
        """What a specification names: a method's settings, or the allocation {"by": ..., "methods": {group: settings}}.

        Raises InputError for settings that are none.
        """
        if allocation is None:
            return make_method(method)
        by, methods = allocation.get("by"), allocation.get("methods")
        if by not in GROUPINGS or not isinstance(methods, Mapping):
            raise InputError(f"an allocation must say `by` ({', '.join(GROUPINGS)}) and `methods`, but got {by!r}")
        return make_allocation(self.groups(by), methods)

    def settings(self, sized: SizedMethod) -> dict[str, Any]:
        """What `sized` reads, as plain data: `method` and, where a budget was shared unevenly, `allocation`."""
        if not isinstance(sized, Allocation):
            return {"method": sized.model_dump(mode="json")}
        method, by = sized.methods[0], "stage" if sized.groups == self.stages else "layer"
        return {
            "method": method.model_dump(mode="json", exclude={method.scale or ""}),
            "allocation": {"by": by, "methods": sized.settings()},
        }

    def params(self, sized: SizedMethod) -> int:
        """Exact parameters of the network with a method, or an allocation, in its substituted sites."""
        return self.fixed_params + sum(method.params(shape) * times for method, shape, times in self._uses(sized))

    def mult_adds(self, sized: SizedMethod) -> int:
        """Mult-adds, for one image, of the network with a method, or an allocation, in its substituted sites."""
        return self.fixed_mult_adds + sum(method.mult_adds(shape) * times for method, shape, times in self._uses(sized))

    def infeasible(self, sized: SizedMethod) -> str | None:
        """The first reason why a method cannot stand in some site; None when it can in all."""
        for method, shape, _ in self._uses(sized):
            reason = method.infeasible(shape)
            if reason is not None:
                return f"{method.name}: {reason}"
        return None

    def signature(self, sized: SizedMethod) -> tuple[Any, ...]:
        """What is really built: equal signatures mean equal networks, however their sizes came about."""
        if isinstance(sized, Allocation):
            return self._signature_by_site(sized)
        return tuple((shape.identity, sized.signature(shape)) for shape, _ in self.shapes)

    def _signature_by_site(self, allocation: Allocation) -> tuple[Any, ...]:
        """By shape where every layer of a shape is built alike (as an even allocation is), by layer otherwise."""
        built = [(site.shape, allocation.by_site[site.name].signature(site.shape)) for site in self.substituted]
        distinct = dict.fromkeys(built)
        layers = tuple(distinct) if len(distinct) == len(self.shapes) else built
        return tuple((shape.identity, signature) for shape, signature in layers)

    def _uses(self, sized: SizedMethod) -> Iterator[tuple[Method, ConvShape, int]]:
        if isinstance(sized, Allocation):
            yield from sized.uses()
        else:
            yield from ((sized, shape, times) for shape, times in self.shapes)

    def with_convention(self, convention: Convention) -> NetworkPlan:
        """The same plan counted under another convention."""
        return replace(self, convention=convention)
