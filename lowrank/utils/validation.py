"""Turns a validation error of pydantic into one line: the rule, the value, the choices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from lowrank.errors import VALUE_CHARACTERS, InputError, show_choices, show_value

Settings = TypeVar("Settings", bound=BaseModel)
_TEXT, _LIST, _SECTION, _YES_NO = "a text", "a list", "a section of fields", "true or false"
_NUMBER, _WHOLE = "a number", "a whole number"
# What a value must be, by the types of pydantic's errors, whose own words are those of Python
_KINDS = {
    "string_type": _TEXT, "bool_type": _YES_NO, "bool_parsing": _YES_NO, "float_type": _NUMBER,
    "float_parsing": _NUMBER, "int_type": _WHOLE, "int_parsing": _WHOLE, "int_from_float": _WHOLE,
    "int_parsing_size": _WHOLE, "tuple_type": _LIST, "list_type": _LIST, "dict_type": _SECTION,
    "mapping_type": _SECTION, "model_type": _SECTION,
}  # fmt: skip
_OF_ONE_VALUE = {name for name, kind in _KINDS.items() if kind not in (_LIST, _SECTION)} | {"literal_error"}
_TYPES: dict[str, tuple[type, ...]] = {_TEXT: (str,), _NUMBER: (int, float), _WHOLE: (int,)}
_EXAMPLES: dict[str, tuple[Any, ...]] = {
    _LIST: ([0.5, 0.5], [2, 3], ["a", "b"], [{"name": "value"}]), _SECTION: ({"name": "value"},), _NUMBER: (0.5,),
    _WHOLE: (2,),
}  # fmt: skip


def format_validation_error(error: ValidationError, kind: type[BaseModel], where: str = "", several: str = "") -> str:
    """Return the first fault of a pydantic error.

    Args:
        error: of pydantic.
        kind: the model that was validated.
        where: path of the model's fields, e.g. `method`.
        several: how a field of one value is given several, e.g. `{choice: [...]}`; said where a list was given.

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
    rule = _rule(fault, kind)
    is_several = isinstance(fault["input"], list) and len(fault["input"]) > 1
    if several and is_several and fault["type"] in _OF_ONE_VALUE:
        rule += f", or {several} for several"
    if not fault["loc"]:  # the message of a rule between fields has the values
        return f"`{path}`: {rule}"
    return f"`{path}`: {rule}, but got {show_value(fault['input'])}"


def _rule(fault: Mapping[str, Any], kind: type[BaseModel]) -> str:
    """Say what a value must be, with an example of a right one."""
    kind_of_value = _KINDS.get(fault["type"])
    if kind_of_value is not None:
        return f"must be {kind_of_value}{_example(kind_of_value, fault, kind)}"
    if fault["type"] in ("too_short", "too_long"):
        limit = fault["ctx"].get("min_length", fault["ctx"].get("max_length"))
        side = "least" if fault["type"] == "too_short" else "most"
        return f"must be a list of at {side} {limit} {'entry' if limit == 1 else 'entries'}"
    rule = fault["msg"].removeprefix("Value error, ")
    rule = rule.replace("Input should be", "must be").replace("Input should", "must")
    return rule.replace("String should have", "must be a text of")


def _example(kind_of_value: str, fault: Mapping[str, Any], kind: type[BaseModel]) -> str:
    """Write the first right value of these: the one received in the right form, the default, a common one."""
    value, types = fault["input"], _TYPES.get(kind_of_value, ())
    candidates: list[Any] = []
    if kind_of_value == _LIST and type(value) in (str, int, float) and 0 < len(str(value)) <= VALUE_CHARACTERS:
        candidates.append([value])
    elif isinstance(value, list) and len(value) == 1 and type(value[0]) in types:
        candidates.append(value[0])
    elif kind_of_value == _TEXT and type(value) is int and isinstance(fault["loc"][-1], int):  # a layer may be named so
        candidates.append(str(value))
    elif int in types and isinstance(value, str) and value.isdecimal() and len(value) < 10:
        candidates.append(int(value))
    field = str(fault["loc"][0])
    if len(fault["loc"]) == 1 and field in kind.model_fields:
        default = kind.model_fields[field].default
        candidates += [default] if type(default) in (*types, tuple) and default not in ("", ()) else []
    candidates += _EXAMPLES.get(kind_of_value, ())
    if len(fault["loc"]) == 1:
        faults = [_faults(kind, field, candidate) for candidate in candidates]
        # Rules between fields need not hold of one field alone, such as that `mean` and `std` come together
        candidates = [candidate for count in (0, 1) for candidate, fault_count in zip(candidates, faults, strict=True)
                      if fault_count == count]  # fmt: skip
    return f", such as {_as_yaml(candidates[0])}" if candidates else ""


def _faults(kind: type[BaseModel], field: str, value: Any) -> int:
    """Return 0 for a right value, 1 for one that breaks a rule between fields alone, 2 for a wrong one."""
    try:
        kind(**{field: value})
    except ValidationError as error:
        places = [fault["loc"][:1] for fault in error.errors(include_url=False) if fault["type"] != "missing"]
        return 2 if (field,) in places else int(() in places)
    return 0


def _as_yaml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_as_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {entry}' for key, entry in value.items())}}}"
    return f"'{value}'" if isinstance(value, str) and value.isdecimal() else str(value)


def _section_at(kind: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel]:
    """The model of the section in which a field stands; that of the nearest one where a section is a mapping."""
    for name in path[:-1]:
        field = kind.model_fields.get(str(name))
        choices = [] if field is None else [field.annotation, *get_args(field.annotation)]
        kind = next((choice for choice in choices if isinstance(choice, type) and issubclass(choice, BaseModel)), kind)
    return kind


def read_module_names(value: Any) -> Any:
    """Read names of modules, of which one may stand without a list around it.

    YAML reads the names 0, 1, 2 ... of layers of a sequence as numbers.

    Args:
        value: of a field of names, before it is validated.

    Returns:
        A tuple for a name or a list; the value itself where it is neither.
    """
    names = [value] if type(value) in (str, int) else value
    if not isinstance(names, list | tuple):
        return names
    return tuple(str(name) if type(name) is int else name for name in names)


def validate_model(kind: type[Settings], values: Mapping[str, Any], where: str = "", several: str = "") -> Settings:
    """Make a model from values and validate it.

    Args:
        kind: the model's class.
        values: its fields.
        where: path of the fields, for messages, e.g. `method`.
        several: how a field of one value is given several, for messages, e.g. `{choice: [...]}`.

    Returns:
        The model.

    Raises:
        InputError: a value is invalid; the message names its path.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        raise InputError(format_validation_error(error, kind, where, several)) from error
