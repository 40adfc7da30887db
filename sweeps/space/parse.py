"""A space file: read once, checked once, into frozen objects. Nothing after this module sees YAML.

The grammar is in search_spaces/README.md. Every mistake is one line (InputError): the rule, the value, the choices.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lowrank.data.settings import DataSettings
from lowrank.errors import InputError, unknown
from lowrank.utils.validation import validate_model
from sweeps.space.checks import check_space
from sweeps.space.domains import Domain, is_domain, parse_domain
from sweeps.space.files import SECTIONS, check_plain_data, find_space, read_yaml
from sweeps.space.method_names import THIN_BASELINES, Alternative, alternative_names, resolve_method
from sweeps.space.model import Space
from sweeps.space.settings import BudgetSettings, ResourceSettings, SearchSettings, StartSettings
from sweeps.space.shorthand import apply_data_overrides, expand_shorthand, set_field
from sweeps.space.teacher_settings import TEACHER_SECTION as TEACHER
from sweeps.space.teacher_settings import parse_teacher

LITERAL_SECTIONS = {"teacher": ("train",)}  # sections within sections, which are taken as they stand
SECTIONS_BY_NAME = ("data", "network", "teacher")  # sections that may be written as a name alone
REFERENCES = ("dense", "separable", *THIN_BASELINES)  # drawn beside every front: of one size, or one in each stratum


def read_space(name: str, overrides: Sequence[str] = (), **updates: Any) -> Space:
    """Read a space by its name or file and apply `a.b=value` overrides; raises InputError in one line.

    `updates` are dotted names with `.` written as `__` (from command-line options); None leaves the file's value.
    """
    path = find_space(name)
    options = {key.replace("__", "."): value for key, value in updates.items() if value is not None}
    return space_from_content(path.stem, resolve_content(read_yaml(path), [], (overrides, options)))


def space_from_content(name: str, content: dict[str, Any]) -> Space:
    """The checked space, its files as the user sees them now; raises InputError in one line."""
    return parse_space(name, _absolute(content))


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> None:
    """Apply `a.b=value` overrides to the content of a space in place; raises InputError."""
    for override in overrides:
        set_field(content, *_override(override))


def resolve_content(
    content: dict[str, Any], changes: Sequence[tuple[str, Any]], options: tuple[Sequence[str], Mapping[str, Any]]
) -> dict[str, Any]:
    """A file's content with changes by dotted name, then with the command line's --set texts and options on top.

    What the file says for one data set (`by_data`) lies between the two; raises InputError.
    """
    for key, value in changes:
        set_field(content, key, value)
    asked = [*map(_override, options[0]), *options[1].items()]
    for key, value in asked:
        if key in ("data", "data.name"):  # which the section `by_data` asks for
            set_field(content, key, value)
    content = apply_data_overrides(content)
    for key, value in asked:
        set_field(content, key, value)
    return content


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set must be written a.b=value, but got {text!r}")
    return key.strip(), _parse_value(text, value)


def _absolute(content: dict[str, Any]) -> dict[str, Any]:
    """Files as the user sees them now: workers and later resumes may start elsewhere."""
    start = content.get("start")
    if isinstance(start, dict) and isinstance(start.get("weights"), str):
        weights = str(Path(start["weights"]).expanduser().resolve())
        content = {**content, "start": {**start, "weights": weights}}
    return with_absolute_teacher(with_absolute_data(content))


def with_absolute_data(content: dict[str, Any]) -> dict[str, Any]:
    """Folders of images as the user sees them now: workers and later resumes may start elsewhere."""
    data = content.get("data")
    name = data.get("name") if isinstance(data, dict) else data
    if not isinstance(name, str) or not name.startswith(("parquet:", "folder:")):
        return content
    kind, _, folder = name.partition(":")
    fields = data if isinstance(data, dict) else {}
    return {**content, "data": {**fields, "name": f"{kind}:{Path(folder).expanduser().resolve()}"}}


def parse_space(name: str, content: Mapping[str, Any]) -> Space:
    """Check the content of a space file; raises InputError in one line."""
    _known_sections(content)
    if not isinstance(content.get("question"), str):
        raise InputError("`question` is missing: a space says in a sentence what it asks")
    from lowrank.networks.registry import NetworkSettings  # brings torch, which the module is imported without

    domains: dict[str, Domain] = {}
    source, content = content, expand_shorthand(content)
    train = _section(content, "train", domains)
    budget = _section(content, "budget", domains)
    network = _section(content, "network", domains)
    teacher = _section(content, "teacher", domains)
    space = Space(
        name=name,
        question=" ".join(content["question"].split()),
        data=validate_model(DataSettings, _plain(content, "data"), "data"),
        network=validate_model(NetworkSettings, network, "network"),
        train=train,
        alternatives=_alternatives(content.get("method")),
        budget=validate_model(BudgetSettings, budget, "budget"),
        references=_references(content.get("references", [])),
        search=validate_model(SearchSettings, _plain(content, "search"), "search"),
        resources=validate_model(ResourceSettings, _plain(content, "resources"), "resources"),
        start=validate_model(StartSettings, _section(content, "start", domains), "start"),
        teacher=parse_teacher(teacher, domains),
        domains=domains,
        source=copy.deepcopy(dict(source)),
    )
    check_space(space)
    if space.teacher is not None and space.teacher.train is not None:
        teacher_space(space)
    return space


def parse_teacher_space(name: str, content: Mapping[str, Any]) -> Space:
    """The space of a teacher, of which nothing is searched; raises InputError."""
    space = parse_space(name, content)
    searched = [*space.domains, *(key for _, domains in space.alternatives for key in domains)]
    if searched:
        raise InputError(f"a teacher has one value of each field, but `{searched[0]}` has several")
    return space


def teacher_space(space: Space) -> Space:
    """How the teacher of `space` is trained, as a space of one point; raises InputError.

    It is the space's own network, dense, unless `teacher.network` names another; its seed is not the study's.
    """
    assert space.teacher is not None
    other = space.teacher.network
    if other is None and any(key.startswith("network.") for key in space.domains):
        raise InputError("`teacher.train` needs `teacher.network` where the space's own network is searched")
    of_space = {"name": space.network.name, **space.network.model_dump(exclude_defaults=True)}
    content = {
        "question": "A teacher", "data": space.data.model_dump(exclude_none=True),
        "network": of_space if other in (None, space.network.name) else {"name": other},
        "train": space.teacher.train, "method": {"name": "dense"}, "search": {"stop": "none"},
    }  # fmt: skip
    try:
        return parse_teacher_space(f"teacher of {space.name}", content)
    except InputError as error:
        raise InputError(f"`teacher.train`: {error}") from error


def _parse_value(override: str, text: str) -> Any:
    try:
        value = check_plain_data(yaml.safe_load(text))
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"--set {override}: the value is not YAML of plain values") from error
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _known_sections(content: Mapping[str, Any]) -> None:
    for key in content:
        if key not in SECTIONS:
            near = difflib.get_close_matches(str(key), SECTIONS, 1)
            hint = f" (did you mean `{near[0]}`?)" if near else ""
            if key == "studies":
                raise InputError(
                    "a file with `studies` is a series, which is run as a whole: python sweeps/run.py --space"
                )
            raise InputError(f"unknown section `{key}`{hint}; choose from: {', '.join(SECTIONS)}")


def _plain(content: Mapping[str, Any], section: str) -> dict[str, Any]:
    fields = content.get(section)
    if fields is None:  # left out, or taken out by `by_data` or --set
        fields = {}
    if isinstance(fields, str) and section in SECTIONS_BY_NAME:
        fields = {"name": fields}
    if not isinstance(fields, Mapping):
        raise InputError(f"`{section}` must be a section with fields, but got {fields!r}")
    for key, value in fields.items():
        if is_domain(value) and section in ("data", "search", "resources"):
            raise InputError(f"`{section}.{key}` cannot be searched; it must be one value, but got {value!r}")
    return {str(key): _number(value) for key, value in fields.items()}


def _number(value: Any) -> Any:
    """YAML 1.1 reads 5e-4 as a string; take it as the number that its writer meant."""
    if isinstance(value, str) and value[:1].isdigit():
        try:
            return float(value)
        except ValueError:
            return value
    if isinstance(value, list):
        return [_number(item) for item in value]
    if isinstance(value, dict):
        return {key: _number(item) for key, item in value.items()}
    return value


def _split(path: str, fields: Mapping[str, Any]) -> Alternative:
    literals: dict[str, Any] = {}
    domains: dict[str, Domain] = {}
    for key, value in fields.items():
        if is_domain(value):
            domains[key] = parse_domain(f"{path}.{key}", value)
        elif isinstance(value, Mapping):
            raise InputError(
                f"`{path}.{key}` must be one value or a domain ({{choice: ...}}, {{int: ...}}, {{log_int: ...}}, "
                f"{{uniform: ...}}, {{log_uniform: ...}}), but got {dict(value)!r}"
            )
        else:
            literals[key] = value
    return literals, domains


def _section(content: Mapping[str, Any], section: str, domains: dict[str, Domain]) -> dict[str, Any]:
    fields = _plain(content, section)
    whole = {key: fields.pop(key) for key in LITERAL_SECTIONS.get(section, ()) if key in fields}
    literals, found = _split(section, fields)
    domains.update({f"{section}.{key}": domain for key, domain in found.items()})
    return {**literals, **whole}


def _alternatives(method: Any) -> tuple[Alternative, ...]:
    entries = method if isinstance(method, list) else [method]
    if not entries or not all(isinstance(entry, Mapping) and "name" in entry for entry in entries):
        raise InputError("`method` must be a section with a `name`, or a list of such sections")
    alternatives = []
    for index, entry in enumerate(entries):
        path = f"method.{index}" if isinstance(method, list) else "method"
        literals, domains = _split(path, _number(dict(entry)))
        names = alternative_names((literals, domains))
        kinds = [resolve_method(str(name)) for name in names]
        for key in entry:
            if not any(key in kind.model_fields for kind in kinds):
                choices = sorted({field for kind in kinds for field in kind.model_fields})
                raise unknown(f"field of `{path}`", key, choices)
        alternatives.append((literals, domains))
    return tuple(alternatives)


def _references(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list):
        raise InputError(f"`references` must be a list of {', '.join(REFERENCES)}, but got {names!r}")
    for name in names:
        if name not in REFERENCES:
            raise unknown("reference", name, REFERENCES)
        if names.count(name) > 1:
            raise InputError(f"`references` must list each once, but got {names}")
    return tuple(names)


def with_absolute_teacher(content: dict[str, Any]) -> dict[str, Any]:
    """The space with a teacher's path as the user sees it now: workers and later resumes may start elsewhere."""
    section = content.get(TEACHER)
    name = section.get("name") if isinstance(section, dict) else section
    if not isinstance(name, str) or name.startswith("torchvision:"):
        return content
    if "/" not in name and not name.endswith(".safetensors"):  # the name of a folder of teachers
        return content
    fields = section if isinstance(section, dict) else {}
    return {**content, TEACHER: {**fields, "name": str(Path(name).expanduser().resolve())}}
