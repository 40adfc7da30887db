"""Names of methods in a space: those of the library, and the thinner network, dense or separable, as one of them.

A thinner network is no method of the library: it is the network's own `width`, solved to the trial's budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lowrank.errors import unknown
from sweeps.space.domains import SEVERAL, Domain, Value

if TYPE_CHECKING:
    from lowrank.layers import Method

# Name in a space -> the library's method of the thinner network
THIN_BASELINES = {"thin_dense": "dense", "thin_separable": "separable"}
UNCHANGED = "unchanged"  # the reference that is the trained network as it is, only evaluated; also in records
# Drawn beside every front. Besides these, any method may be a reference, which is then trained in each stratum
REFERENCES = (UNCHANGED, "dense", "separable", *THIN_BASELINES)
Alternative = tuple[dict[str, object], dict[str, Domain]]  # literals and domains of one `method` section


def resolve_method(name: object) -> type[Method]:
    """Find the settings class of a method.

    Args:
        name: as a space writes it: a method of the library or a thin baseline.

    Returns:
        The class; of a thin baseline that of the dense or separable method.

    Raises:
        InputError: the name is unknown; the text lists the names.
    """
    from lowrank.layers import METHODS, VARIATIONAL_METHODS  # imports torch, which listing spaces does without

    text = str(name)
    method = METHODS.get(THIN_BASELINES.get(text, text)) or VARIATIONAL_METHODS.get(text)
    if method is None:
        raise unknown("method", name, [*METHODS, *VARIATIONAL_METHODS, *THIN_BASELINES])
    return method


def alternative_names(alternative: Alternative) -> tuple[Value, ...]:
    """List the methods that one `method` section may stand for.

    Args:
        alternative: literals and domains of the section.

    Returns:
        Their names, of which there are several where the name is searched.
    """
    literals, domains = alternative
    return domains["name"].corners() if "name" in domains else (str(literals["name"]),)


def method_at(alternative: Alternative, searched: Mapping[str, Value]) -> Method:
    """Make the method at a point of the space.

    Methods share fields (one `dims` for all), so a field that the chosen method lacks is dropped.

    Args:
        alternative: literals and domains of the point's `method` section.
        searched: the section's searched fields at the point.

    Returns:
        The checked settings of the method.

    Raises:
        InputError: a value is out of range.
    """
    from lowrank.utils import validate_model

    settings = {**alternative[0], **searched}
    method = resolve_method(str(settings["name"]))
    settings["name"] = method.model_fields["name"].default  # a thin baseline's method is dense or separable
    fields = {key: value for key, value in settings.items() if key in method.model_fields}
    return validate_model(method, fields, "method", SEVERAL)
