"""Names of methods in a space: those of the library, and the thinner network, dense or separable, as one of them.

A thinner network is no method of the library: it is the network's own `width`, solved to the trial's budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lowrank.errors import unknown
from sweeps.space.domains import Domain, Value

if TYPE_CHECKING:
    from lowrank.layers import Method

THIN_BASELINES = {
    "thin_dense": "dense",
    "thin_separable": "separable",
}  # name in a space -> method of the thinner network
Alternative = tuple[dict[str, Any], dict[str, Domain]]  # literals and domains of one `method` entry


def resolve_method(name: str) -> type[Method]:
    """The class that a method's name stands for; raises InputError that lists the names."""
    from lowrank.layers.registry import METHODS  # brings torch, which reading a file's text does not need

    kind = METHODS.get(THIN_BASELINES.get(name, name))
    if kind is None:
        raise unknown("method", name, [*METHODS, *THIN_BASELINES])
    return kind


def alternative_names(alternative: Alternative) -> tuple[Value, ...]:
    """The methods that one `method` section may stand for."""
    literals, domains = alternative
    return domains["name"].corners() if "name" in domains else (literals["name"],)


def method_at(alternative: Alternative, searched: Mapping[str, Value]) -> Method:
    """The method at a point: literals and searched fields, less what the chosen method does not have.

    Fields are shared between methods rather than conditional (one `dims`), so one that a method lacks is dropped.
    """
    from lowrank.layers.registry import make_method

    settings = {**alternative[0], **searched}
    name = str(settings["name"])
    kind = resolve_method(name)
    settings["name"] = kind.model_fields["name"].default  # a thinner network's method is dense or separable
    return make_method({key: value for key, value in settings.items() if key in kind.model_fields})
