"""Turns a validation error of pydantic into one line: the rule, the value, the choices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from lowrank.errors import InputError, show_choices, show_value

Settings = TypeVar("Settings", bound=BaseModel)


def format_validation_error(error: ValidationError, kind: type[BaseModel], where: str = "") -> str:
    """Return the first fault of a pydantic error.

    Args:
        error: of pydantic.
        kind: the model that was validated.
        where: path of the model's fields, e.g. `method`.

    Returns:
        One line, e.g. "`method.dims`: must be less than or equal to 9, but got 12".
    """
    fault = error.errors(include_url=False)[0]
    path = ".".join(str(part)[:60] for part in (where, *fault["loc"]) if part != "")
    if fault["type"] == "extra_forbidden":
        choices = sorted(_section_at(kind, fault["loc"]).model_fields)
        return f"unknown field `{path}`; choose from: {show_choices(choices, str(fault['loc'][-1]))}"
    if fault["type"] == "missing":
        return f"`{path}` is missing"
    rule = fault["msg"].removeprefix("Value error, ")
    rule = rule.replace("Input should be", "must be").replace("Input should", "must")
    if not fault["loc"]:  # the message of a rule between fields has the values
        return f"`{path}`: {rule}"
    return f"`{path}`: {rule}, but got {show_value(fault['input'])}"


def _section_at(kind: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel]:
    """The model of the section in which a field stands; that of the nearest one where a section is a mapping."""
    for name in path[:-1]:
        field = kind.model_fields.get(str(name))
        choices = [] if field is None else [field.annotation, *get_args(field.annotation)]
        kind = next((choice for choice in choices if isinstance(choice, type) and issubclass(choice, BaseModel)), kind)
    return kind


def validate_model(kind: type[Settings], values: Mapping[str, Any], where: str = "") -> Settings:
    """Make a model from values and validate it.

    Args:
        kind: the model's class.
        values: its fields.
        where: path of the fields, for messages, e.g. `method`.

    Returns:
        The model.

    Raises:
        InputError: a value is invalid; the message names its path.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        raise InputError(format_validation_error(error, kind, where)) from error
