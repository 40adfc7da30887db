"""Read a space file and check it, once, into frozen objects. No later stage reads YAML.

docs/reference/space.md lists the fields. Every mistake is an InputError of one line: the rule, the value received,
the choices.
"""

from __future__ import annotations

import copy
import difflib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lowrank.errors import InputError, shorten, show_value, unknown
from lowrank.utils import absolute_path, validate_model
from sweeps.space.checks import check_space
from sweeps.space.domains import SEVERAL, Domain, is_domain, parse_domain
from sweeps.space.files import SECTIONS, find_space, read_yaml
from sweeps.space.method_names import REFERENCES, Alternative, alternative_names, resolve_method
from sweeps.space.model import Space
from sweeps.space.run_options import START_WEIGHTS
from sweeps.space.settings import (
    NETWORK_WEIGHTS,
    START,
    TEACHER_SECTION,
    AnswerSettings,
    BudgetSettings,
    ResourceSettings,
    SearchSettings,
    StartSettings,
    parse_teacher,
)
from sweeps.space.shorthand import (
    apply_data_overrides,
    expand_shorthand,
    has_field,
    is_data_override,
    set_field,
    set_start_weights,
)
from sweeps.utils import YamlError, load_yaml

# Fields that hold a mapping of their own, in which nothing is searched
LITERAL_FIELDS = {"teacher": ("train",), "start": ("scratch_train",)}
SECTIONS_BY_NAME = ("data", "network", "teacher")  # sections that may be written as a name alone


def read_space(name: str, overrides: Sequence[str] = (), **updates: Any) -> Space:
    """Read and check a space with the overrides of the command line.

    Args:
        name: of a space that the repository carries, or the path of a file.
        overrides: the texts after --set, each `a.b=value`.
        **updates: further values by dotted name, `.` written as `__`; None leaves the file's value.

    Returns:
        The checked space.

    Raises:
        InputError: there is no such space, or something in it cannot be.
    """
    path = find_space(name)
    options = {key.replace("__", "."): value for key, value in updates.items() if value is not None}
    return space_from_content(path.stem, resolve_content(read_yaml(path), [], (overrides, options)))


def space_from_content(name: str, content: dict[str, object]) -> Space:
    """Check a space whose relative paths start at the working directory.

    Args:
        name: the space's name.
        content: its file, with overrides applied.

    Returns:
        The checked space, its paths absolute.

    Raises:
        InputError: something in it cannot be.
    """
    return parse_space(name, _with_absolute_paths(content))


def apply_overrides(content: dict[str, object], overrides: Sequence[str]) -> None:
    """Apply overrides of the command line to a space in place.

    Args:
        content: the space.
        overrides: the texts after --set, each `a.b=value`.

    Raises:
        InputError: an override has another form, or leads through a field that is no section.
    """
    lost: list[str] = []
    for override in overrides:
        lost += set_field(content, *_parse_override(override))
    _report_lost(content, lost)


def resolve_content(
    content: dict[str, object], changes: Sequence[tuple[str, Any]], options: tuple[Sequence[str], Mapping[str, Any]]
) -> dict[str, object]:
    """Apply the changes of a series, then `by_data`, then those of the command line.

    Args:
        content: the file's content; changed in place.
        changes: dotted names and values, e.g. those of one study of a series.
        options: the texts after --set, and further values by dotted name.

    Returns:
        The content without its section `by_data`.

    Raises:
        InputError: a change has another form, or leads through a field that is no section.
    """
    lost: list[str] = []
    for key, value in changes:
        lost += set_field(content, key, value)
    weights = options[1].get(START_WEIGHTS)
    further = {key: value for key, value in options[1].items() if key != START_WEIGHTS}
    updates = [*map(_parse_override, options[0]), *further.items()]
    for key, value in updates:
        if key in ("data", "data.name") or is_data_override(key):  # first: they decide what `by_data` sets
            lost += set_field(content, key, value)
    content, lost_by_data = apply_data_overrides(content)
    lost += lost_by_data
    for key, value in updates:
        if not is_data_override(key):
            lost += set_field(content, key, value)
    _report_lost(content, lost)
    _leave_out_width(content, dict(updates))
    if weights is not None:
        set_start_weights(content, weights)
    return content


def _report_lost(content: Mapping[str, Any], lost: Sequence[str]) -> None:
    """Say which fields a section that was set as a whole has left out, unless they were set again."""
    by_section: dict[str, list[str]] = {}
    for dotted in dict.fromkeys(lost):
        if not has_field(content, dotted):
            section, _, field = dotted.rpartition(".")
            by_section.setdefault(section, []).append(field)
    for section, fields in by_section.items():
        print(
            f"`{shorten(section, 100)}` is set as a whole, so these fields of it no longer hold: "
            f"{shorten(', '.join(fields), 200)}; one field alone is set by `{shorten(section, 100)}.FIELD`",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def _leave_out_width(content: dict[str, object], typed: Mapping[str, Any]) -> None:
    """Take the width of the space's own network out, in place, where the user has typed a network without one."""
    name, network = typed.get("network.name"), content.get("network")
    if not isinstance(name, str) or not isinstance(network, dict) or "network.width" in typed:
        return
    width = network.get("width")
    if not isinstance(width, int | float):
        return
    from lowrank.networks import absolute_name, takes_width

    if not takes_width(absolute_name(name)):
        del network["width"]
        print(f"{shorten(name, 100)} has no `width`: the space's, {width:g}, is left out", file=sys.stderr, flush=True)


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set must be written a.b=value, but got {show_value(text)}")
    try:
        return key.strip(), load_yaml(value)
    except YamlError as error:
        raise InputError(f"--set {show_value(key)}: the value is not YAML of plain values: {error}") from error


def _with_absolute_paths(content: dict[str, object]) -> dict[str, object]:
    """Resolve all paths now: workers and later resumes may have another working directory."""
    start = content.get("start")
    if isinstance(start, dict) and isinstance(start.get("weights"), str) and start["weights"] != NETWORK_WEIGHTS:
        weights = str(absolute_path(start["weights"], "`start.weights`"))
        content = {**content, "start": {**start, "weights": weights}}
    return _with_absolute_teacher(with_absolute_network(with_absolute_data(content)))


def with_absolute_network(content: dict[str, object]) -> dict[str, object]:
    """Resolve the paths within names of networks.

    Such names are path/to/file.py:function and hf:FOLDER.

    Workers and later resumes may have another working directory.

    Args:
        content: a space; not changed.

    Returns:
        The space with absolute paths in the names of its networks and of its teacher's.
    """
    from lowrank.networks import absolute_name

    def absolute(value: Any) -> Any:
        if isinstance(value, str):
            return absolute_name(value)
        if is_domain(value):
            return {key: [absolute(choice) for choice in choices] if isinstance(choices, list) else choices
                    for key, choices in value.items()}  # fmt: skip
        return value

    changed = dict(content)
    for section, field in (("network", "name"), (TEACHER_SECTION, "network")):
        value = content.get(section)
        if isinstance(value, dict) and field in value:
            changed[section] = {**value, field: absolute(value[field])}
    if isinstance(content.get("network"), str):
        changed["network"] = absolute(content["network"])
    return changed


def with_absolute_data(content: dict[str, object]) -> dict[str, object]:
    """Resolve the path of a folder of images.

    Workers and later resumes may have another working directory.

    Args:
        content: a space; not changed.

    Returns:
        The space with an absolute path in its data set's name.
    """
    from lowrank.data import absolute_data_name

    data = content.get("data")
    name = data.get("name") if isinstance(data, dict) else data
    if not isinstance(name, str) or absolute_data_name(name) == name:
        return content
    fields = data if isinstance(data, dict) else {}
    return {**content, "data": {**fields, "name": absolute_data_name(name)}}


def parse_space(name: str, content: Mapping[str, Any]) -> Space:
    """Check the content of a space file.

    Args:
        name: the space's name.
        content: the file, overrides applied, paths absolute; not changed.

    Returns:
        The checked space.

    Raises:
        InputError: something in it cannot be.
    """
    _check_sections(content)
    question = content.get("question")
    if not isinstance(question, str):
        raise InputError("`question` is missing: a space says in a sentence what it asks")
    # These import torch, which listing spaces and naming an unknown one do without
    from lowrank.data import DataSettings
    from lowrank.networks import NetworkSettings

    domains: dict[str, Domain] = {}
    source, content = content, expand_shorthand(content)
    train = _literals(content, "train", domains)
    budget = _literals(content, "budget", domains)
    network = _literals(content, "network", domains)
    teacher = _literals(content, "teacher", domains)
    space = Space(
        name=name,
        question=" ".join(question.split()),
        data=validate_model(DataSettings, _section_fields(content, "data"), "data"),
        network=validate_model(NetworkSettings, network, "network", SEVERAL),
        train=train,
        alternatives=_alternatives(content.get("method")),
        budget=validate_model(BudgetSettings, budget, "budget", SEVERAL),
        references=_references(content.get("references", [])),
        search=validate_model(SearchSettings, _section_fields(content, "search"), "search"),
        resources=validate_model(ResourceSettings, _section_fields(content, "resources"), "resources"),
        answer=validate_model(AnswerSettings, _section_fields(content, "answer"), "answer"),
        start=validate_model(StartSettings, _literals(content, "start", domains), "start", SEVERAL),
        teacher=parse_teacher(teacher, domains),
        domains=domains,
        source=copy.deepcopy(dict(source)),
    )
    check_space(space)
    if space.teacher is not None and space.teacher.train is not None:
        teacher_space(space)
    return space


def parse_teacher_space(name: str, content: Mapping[str, Any]) -> Space:
    """Check the space of a teacher, in which nothing is searched.

    Args:
        name: the space's name.
        content: as for `parse_space`.

    Returns:
        The checked space.

    Raises:
        InputError: something in it cannot be, or a field has several values.
    """
    space = parse_space(name, content)
    searched = [*space.domains, *(key for _, domains in space.alternatives for key in domains)]
    if searched:
        raise InputError(f"a teacher has one value of each field, but `{searched[0]}` has several")
    return space


def teacher_space(space: Space) -> Space:
    """Make the space of one point that trains the teacher of `space`.

    The teacher is the space's own network, dense, unless `teacher.network` names another. Its seed is not the study's,
    so that studies share it.

    Args:
        space: a space with `teacher.train`.

    Returns:
        The teacher's space.

    Raises:
        InputError: the teacher's recipe cannot be, or the network that it would have is searched.
    """
    assert space.teacher is not None
    network = space.teacher.network
    if network is None and any(key.startswith("network.") for key in space.domains):
        raise InputError("`teacher.train` needs `teacher.network` where the space's own network is searched")
    space_network = {"name": space.network.name, **space.network.model_dump(exclude_defaults=True)}
    content = {
        "question": "A teacher", "data": space.data.model_dump(exclude_none=True),
        "network": space_network if network in (None, space.network.name) else {"name": network},
        "train": space.teacher.train, "method": {"name": "dense"}, "search": {"stop": "none"},
    }  # fmt: skip
    try:
        return parse_teacher_space(f"teacher of {space.name}", content)
    except InputError as error:
        raise InputError(f"`teacher.train`: {error}") from error


def _check_sections(content: Mapping[str, Any]) -> None:
    for key in content:
        if key not in SECTIONS:
            similar = difflib.get_close_matches(key[:60], SECTIONS, 1)
            hint = f" (did you mean `{similar[0]}`?)" if similar else ""
            if key == "studies":
                raise InputError(
                    "a file with `studies` is a series, which is run as a whole: python sweeps/run.py --space"
                )
            raise InputError(f"unknown section `{key[:60]}`{hint}; choose from: {', '.join(SECTIONS)}")


def _section_fields(content: Mapping[str, Any], section: str) -> dict[str, object]:
    """The fields of a section, still with domains; {} for a section that is left out."""
    fields = content.get(section)
    if fields is None:  # left out, or taken out by `by_data` or --set
        fields = {}
    if isinstance(fields, str) and section in SECTIONS_BY_NAME:
        fields = {"name": fields}
    if not isinstance(fields, Mapping):
        raise InputError(f"`{section}` must be a section with fields, but got {show_value(fields)}")
    for key, value in fields.items():
        if is_domain(value) and section in ("data", "search", "resources", "answer"):
            raise InputError(f"`{section}.{key}` cannot be searched; it must be one value, but got {show_value(value)}")
    return dict(fields)


def _split(path: str, fields: Mapping[str, Any]) -> Alternative:
    """Separate the literals of a section from its domains."""
    literals: dict[str, object] = {}
    domains: dict[str, Domain] = {}
    for key, value in fields.items():
        if is_domain(value):
            domains[key] = parse_domain(f"{path}.{key}", value)
        elif isinstance(value, Mapping):
            raise InputError(
                f"`{path}.{key}` must be one value or a domain ({{choice: ...}}, {{int: ...}}, {{log_int: ...}}, "
                f"{{uniform: ...}}, {{log_uniform: ...}}), but got {show_value(dict(value))}"
            )
        else:
            literals[key] = value
    return literals, domains


def _literals(content: Mapping[str, Any], section: str, domains: dict[str, Domain]) -> dict[str, object]:
    """The literals of a section; its domains are added to `domains` under dotted names."""
    fields = _section_fields(content, section)
    mappings = {key: fields.pop(key) for key in LITERAL_FIELDS.get(section, ()) if key in fields}
    literals, section_domains = _split(section, fields)
    domains.update({f"{section}.{key}": domain for key, domain in section_domains.items()})
    return {**literals, **mappings}


def _alternatives(section: Any) -> tuple[Alternative, ...]:
    """The section `method`, or its list of sections, each split into literals and domains."""
    entries = section if isinstance(section, list) else [section]
    if not entries or not all(isinstance(entry, Mapping) and "name" in entry for entry in entries):
        raise InputError(
            "`method` must be a section with a `name`, such as {name: separable}, or a list of such sections, but got "
            f"{show_value(section)}"
        )
    alternatives = []
    for index, entry in enumerate(entries):
        path = f"method.{index}" if isinstance(section, list) else "method"
        literals, domains = _split(path, entry)
        if not isinstance(literals.get("name", ""), str):
            several = f", or {SEVERAL} for several" if isinstance(literals["name"], list) else ""
            raise InputError(
                f"`{path}.name` must be a text, such as separable{several}, but got {show_value(literals['name'])}"
            )
        names = alternative_names((literals, domains))
        methods = [resolve_method(name) for name in names]
        for key in entry:
            if not any(key in method.model_fields for method in methods):
                choices = sorted({field for method in methods for field in method.model_fields})
                raise unknown(f"field of `{path}`", key, choices)
        alternatives.append((literals, domains))
    return tuple(alternatives)


def _references(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list):
        raise InputError(f"`references` must be a list of {', '.join(REFERENCES)}, but got {show_value(names)}")
    from lowrank.layers import METHODS  # imports torch, which listing spaces does without

    for name in names:
        if name not in (*REFERENCES, *METHODS):
            raise unknown("reference", name, dict.fromkeys((*REFERENCES, *METHODS)))
        if names.count(name) > 1:
            raise InputError(f"`references` must list each name once, but got {show_value(names)}")
    return tuple(names)


def _with_absolute_teacher(content: dict[str, object]) -> dict[str, object]:
    """Resolve the path of a teacher's file; a name in the folder of teachers stays."""
    section = content.get(TEACHER_SECTION)
    if isinstance(section, dict) and isinstance(weights := section.get("weights"), str) and weights != START:
        return {**content, TEACHER_SECTION: {**section, "weights": str(absolute_path(weights, "`teacher.weights`"))}}
    name = section.get("name") if isinstance(section, dict) else section
    if not isinstance(name, str) or name.startswith("torchvision:"):
        return content
    if "/" not in name and not name.endswith(".safetensors"):
        return content
    fields = section if isinstance(section, dict) else {}
    return {**content, TEACHER_SECTION: {**fields, "name": str(absolute_path(name, "`teacher.name`"))}}
