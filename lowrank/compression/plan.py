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
    BY_ERROR,
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
from lowrank.layers import ConvShape, Method, make_method

ATTENTION = "attention, which uses its linear maps' weights by itself"
LINEAR = "a linear map"  # why a linear map stays that nobody asked to replace


@dataclass(frozen=True)
class Site:
    """One convolution or linear map of a network.

    Attributes:
        name: of the module.
        shape: its channels, kernel and areas.
        keep_reason: why it is never substituted; "" if it is.
        params: its parameters; those that it shares are counted where they stand first.
        mult_adds: its mult-adds for one image.
        linear: whether it is a linear map.
    """

    name: str
    shape: ConvShape
    keep_reason: str
    params: int
    mult_adds: int
    linear: bool = False


@dataclass(frozen=True)
class NetworkPlan:
    """Convolutions and linear maps of a network, and counts of everything else.

    Attributes:
        name: of the network.
        sites: its convolutions and linear maps.
        other_params: parameters outside all sites, such as those of norms.
        other_mult_adds: mult-adds outside all sites, such as products of activations.
        extras: what the study counted besides.
        attention: names of attention modules, whose linear maps are no sites.
        others: names of other modules with products of their own, which no method replaces, each with the reason.
        convention: what counts as a mult-add.
        base: the published form; compression-scaled weight decay takes its parameters as N.
    """

    name: str
    sites: tuple[Site, ...]
    other_params: int
    other_mult_adds: int = 0
    extras: StudyExtras = field(default_factory=StudyExtras)
    attention: tuple[str, ...] = ()
    others: tuple[tuple[str, str], ...] = ()
    convention: Convention = "standard"
    base: Literal["dense", "separable"] = "dense"

    @cached_property
    def substituted(self) -> tuple[Site, ...]:
        """The sites that a method replaces."""
        return tuple(site for site in self.sites if not site.keep_reason)

    @property
    def nothing_replaced(self) -> str:
        """That no layer is replaced, in one line with what would change it; "" where a layer is replaced."""
        if self.substituted:
            return ""
        if any(site.keep_reason == LINEAR for site in self.sites):
            return f"nothing is replaced in {self.name}: add `linear: true` to `network` (lowrank.count: --linear)"
        if not self.sites:
            return f"nothing is replaced in {self.name}: it has no Conv2d or Linear layer outside of attention"
        reasons = ", ".join(dict.fromkeys(site.keep_reason for site in self.sites))
        return f"nothing is replaced in {self.name}: its layers are kept ({reasons})"

    @property
    def other_modules(self) -> tuple[tuple[str, str], ...]:
        """The names of modules with products that are no sites, each with the reason why no method replaces them."""
        return (*((name, ATTENTION) for name in self.attention), *self.others)

    @cached_property
    def kept(self) -> tuple[tuple[str, str], ...]:
        """The names of all modules with products that stay as they are, each with the reason in plain words."""
        sites = ((site.name, site.keep_reason) for site in self.sites if site.keep_reason)
        return (*sites, *self.other_modules)

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
        """Return the substituted sites in groups that have one size each."""
        return {"even": self.whole, "stage": self.stages, "layer": self.layers}[grouping]

    def sized(self, method: Mapping[str, Any], allocation: Mapping[str, Any] | None = None) -> SizedMethod:
        """Make what stands in the sites from plain settings.

        Args:
            method: settings of one method for all sites; unused with an allocation.
            allocation: {"by": grouping, "methods": {group: settings}}; None for one method everywhere.

        Returns:
            The method, or the allocation.

        Raises:
            InputError: the settings are wrong.
        """
        if allocation is None:
            return make_method(method)
        by, methods = allocation.get("by"), allocation.get("methods")
        if by not in (*GROUPINGS, *BY_ERROR) or not isinstance(methods, Mapping):
            choices = ", ".join((*GROUPINGS, *BY_ERROR))
            raise InputError(f"an allocation must say `by` ({choices}) and `methods`, but got {by!r}")
        if by in BY_ERROR:
            return make_allocation(self.layers, methods, by)
        return make_allocation(self.groups(by), methods)

    def settings(self, sized: SizedMethod) -> dict[str, Any]:
        """Return the plain settings of what stands in the sites.

        Args:
            sized: the method, or the allocation.

        Returns:
            The arguments of `sized`: `method`, and `allocation` if there is one.
        """
        if not isinstance(sized, Allocation):
            return {"method": sized.model_dump(mode="json")}
        method = sized.main_method
        by = sized.by_error or ("stage" if sized.groups == self.stages else "layer")
        excluded = {method.scale or "", *({"ranks"} if sized.by_error else ())}  # they differ from layer to layer
        return {
            "method": method.model_dump(mode="json", exclude=excluded),
            "allocation": {"by": by, "methods": sized.settings()},
        }

    def params(self, sized: SizedMethod) -> int:
        """Count the parameters of the network with a method, or an allocation, in its sites."""
        return self.fixed_params + sum(
            method.params(shape) * times for method, shape, times in self._methods_by_shape(sized)
        )

    def mult_adds(self, sized: SizedMethod) -> int:
        """Count the mult-adds for one image of the network with a method, or an allocation, in its sites."""
        return self.fixed_mult_adds + sum(
            self.layer_mult_adds(method, shape) * times for method, shape, times in self._methods_by_shape(sized)
        )

    def layer_mult_adds(self, method: Method, shape: ConvShape) -> int:
        """Count the mult-adds of a method in one site, for one image, under the plan's convention."""
        return method.study_mult_adds(shape) if self.convention == "study" else method.mult_adds(shape)

    def infeasible(self, sized: SizedMethod) -> str | None:
        """Return the first reason why a method does not fit a substituted site; None if it fits all."""
        for method, shape, _ in self._methods_by_shape(sized):
            reason = method.infeasible(shape)
            if reason is not None:
                return f"{method.name}: {reason}"
        return None

    def signature(self, sized: SizedMethod) -> tuple[Any, ...]:
        """Return a key of the network that is built: two settings with equal keys build equal networks."""
        if isinstance(sized, Allocation):
            return self._signature_by_site(sized)
        return tuple((shape.identity, sized.signature(shape)) for shape, _ in self.shapes)

    def _signature_by_site(self, allocation: Allocation) -> tuple[Any, ...]:
        """Key by shape if all layers of a shape are built alike (as in an even allocation), else by layer."""
        built = [(site.shape, allocation.by_site[site.name].signature(site.shape)) for site in self.substituted]
        distinct = dict.fromkeys(built)
        layers = tuple(distinct) if len(distinct) == len(self.shapes) else built
        return tuple((shape.identity, signature) for shape, signature in layers)

    def _methods_by_shape(self, sized: SizedMethod) -> Iterator[tuple[Method, ConvShape, int]]:
        if isinstance(sized, Allocation):
            yield from sized.uses()
        else:
            yield from ((sized, shape, times) for shape, times in self.shapes)

    def methods_by_site(self, sized: SizedMethod) -> Iterator[tuple[Site, Method]]:
        """Yield each substituted site with the method that stands in it.

        Args:
            sized: the method, or the allocation.

        Yields:
            In the order of the sites.
        """
        for site in self.substituted:
            yield site, sized.by_site[site.name] if isinstance(sized, Allocation) else sized

    def with_convention(self, convention: Convention) -> NetworkPlan:
        """Return the same plan under another counting convention."""
        return replace(self, convention=convention)
