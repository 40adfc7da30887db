"""Names of methods in a space: those of the library, and the thinner network, dense or separable, as one of them.

A thinner network is no method of the library: it is the network's own `width`, solved to the trial's budget.
"""

from __future__ import annotations

from lowrank.errors import unknown
from lowrank.layers import Dense, Method, Separable
from lowrank.layers.registry import METHODS

THIN: dict[str, type[Method]] = {"thin_dense": Dense, "thin_separable": Separable}


def kind_of(name: str) -> type[Method]:
    """The class that a method's name stands for; raises InputError that lists the names."""
    kind = THIN.get(name) or METHODS.get(name)
    if kind is None:
        raise unknown("method", name, [*METHODS, *THIN])
    return kind
