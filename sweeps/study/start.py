"""Start a study: a new one, a resumed one, or one that trains recorded trials again.

All input of the user is checked here, before anything is written. Then `sweeps.study.driver` runs the study.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from lowrank.data import ImageData, absolute_data_name, default_augmentation, load_data
from lowrank.errors import InputError, show_value
from lowrank.utils import ExitCode, redact
from sweeps.records import (
    GROUP_TAG,
    JOURNAL_FILE,
    SPACE_FILE,
    StudyHistory,
    StudyRecord,
    check_group,
    check_note,
    check_specifications,
    find_study_folder,
    hold_new_study_folder,
    hold_study_folder,
    parse_tags,
    read_space_file,
    studies_root,
)
from sweeps.space import (
    DEFAULT_SAMPLE,
    FIXED_QUESTION,
    RunOptions,
    SearchSettings,
    Space,
    StoredOptions,
    StudyConfig,
    check_options,
    flag,
    parse_space,
    parse_time,
)
from sweeps.storage import StudyMirror, list_stored_studies, mirror_study, storage_uri, stored_study_folder
from sweeps.study.driver import run_study
from sweeps.study.retrain import select_again, select_stopped, select_trial
from sweeps.teachers import ensure_teacher
from sweeps.tracking import TRACKING_VARIABLE, check_study_store, check_tracking_uri, environment_uri
from sweeps.trials import (
    ResolvedTeacher,
    Resolver,
    check_fingerprint,
    check_start,
    fetch_weights,
    resolve_teacher,
    with_teacher_name,
)
from sweeps.utils import is_plain_name, load_yaml, monotonic_time

# What of space.yaml may be changed before a study is resumed: it changes no trial
CHANGEABLE = ("question", "resources", "answer", "search.trials", "search.time", "search.repeat")
DEFAULT_TEACHERS = Path("teachers")
STORED_PLACES = ("storage", "tracking_uri", "data_dir", "teachers", "cache_dir")  # which a study keeps for its resumes


def start_study(space: Space, options: RunOptions) -> int:
    """Begin a new study.

    Args:
        space: what is searched.
        options: the command line.

    Returns:
        The exit code.

    Raises:
        InputError: an option, the space, the data or the teacher cannot be used. Nothing has been written then.
    """
    uri, options = storage_uri(options.storage), _with_tracking_variable(options)

    def run(folder: Path, mirror: StudyMirror | None) -> int:
        config = _study_config(folder, space, options, uri)
        data = load_data(space.data, config.data_dir)
        fetch_weights(space, data)
        for line in (*(f"note on the data: {note}" for note in data.notes), *check_start(space, data)):
            print(line, flush=True)
        started = monotonic_time()
        resolver = Resolver(space, data, ensure_teacher(space, data, config.teachers, config.tracking_uri))
        if config.seconds is not None:  # training a teacher uses up part of the time limit
            config = replace(config, seconds=max(0.0, config.seconds - (monotonic_time() - started)))
        return run_study(space, resolver, config, mirror=mirror)

    return _run_new(options, space.name, uri, run)


def start_retraining(options: RunOptions) -> int:
    """Train recorded trials again, in a new study.

    With `--reproduce` that is one trial, with `--retrain-stopped` trials that were stopped early, to their end.

    Args:
        options: the command line, with `reproduce` or `retrain_stopped`.

    Returns:
        The exit code.

    Raises:
        InputError: an option, the space, the data or the teacher cannot be used. Nothing has been written then.
    """
    options = _with_tracking_variable(options)
    uri, root = storage_uri(options.storage), studies_root(options.storage, options.out)
    options = _with_absolute_data(options)
    if options.reproduce:
        retrain = select_trial(options.reproduce[0], options.reproduce[1], root, options.data)
    else:
        sample = DEFAULT_SAMPLE if options.sample is None else options.sample
        retrain = select_stopped(str(options.retrain_stopped), root, sample, options.seed or 0, options.data)
    # The other trials, and those whose weights they start from, are built too
    check_specifications(
        retrain.specifications(), allow_code=options.allow_code, source=f"{retrain.folder}", data_dir=options.data_dir,
        typed_data=options.data,
    )  # fmt: skip
    content = retrain.content(_given_options(options, "gpus_per_trial", "cpus_per_trial", "max_concurrent", "sharing"))
    _set_fields(content, "search", {"time": options.time})
    space = parse_space(retrain.name, content)
    check_options(space, options)
    stored = read_space_file(retrain.folder)[1] if (retrain.folder / SPACE_FILE).is_file() else StoredOptions()
    options = options.with_folders(stored)

    def run(folder: Path, mirror: StudyMirror | None) -> int:
        config = _study_config(folder, space, options, uri)
        data = load_data(space.data, config.data_dir)
        fetch_weights(space, data)
        teacher = resolve_teacher(space, data, config.teachers)
        config = replace(config, origin=retrain.check(data, teacher))
        resolver = Resolver(space, data, teacher)
        return run_study(space, resolver, config, retrain.with_teacher(teacher), mirror=mirror)

    return _run_new(options, retrain.name, uri, run)


def resume_study(options: RunOptions) -> int:
    """Continue a study.

    The number of trials, the time and the resources may change; the space is the one that the study began with.

    Args:
        options: the command line, with `resume`.

    Returns:
        The exit code.

    Raises:
        InputError: an option cannot be used, or the data, the teacher or the weights to start from have changed.
            Nothing has been written then.
    """
    options = _with_absolute_data(options)
    if options.tracking_uri:
        check_tracking_uri(options.tracking_uri)
    folder, uri = _find_study(options)
    _print_stored_places(folder, options)
    with hold_study_folder(folder):
        return _run_mirrored(uri, folder, lambda _, mirror: _resume(options, folder, uri, mirror), new=False)


def _print_stored_places(folder: Path, options: RunOptions) -> None:
    """Say which places the study itself names: whoever made it chose them, and records go there or come from there."""
    if not (folder / SPACE_FILE).is_file():
        return
    stored = read_space_file(folder)[1]
    names = [name for name in STORED_PLACES if getattr(stored, name) and not getattr(options, name)]
    if str(stored.teachers) in (str(DEFAULT_TEACHERS.resolve()), "None"):
        names = [name for name in names if name != "teachers"]
    places = [f"{flag(name)} {shlex.quote(str(getattr(stored, name)))}" for name in names]
    if places:
        print(f"as the study was begun: {' '.join(places)}", flush=True)


def _resume(options: RunOptions, folder: Path, uri: str | None, mirror: StudyMirror | None) -> int:
    """Continue a study whose folder is up to date and locked."""
    content, stored = read_space_file(find_study_folder(folder.parent, folder.name))
    _section(content, "search").pop("time", None)  # a time limit is for one run of the driver
    _set_fields(content, "search", {"trials": options.trials, "time": options.time})
    if options.repeat_more is not None:
        _add_repeats(content, options.repeat_more)
    resources = _given_options(
        options, "gpus_per_trial", "cpus_per_trial", "max_concurrent", "processes_per_trial", "sharing"
    )
    _set_fields(content, "resources", resources)
    space = parse_space(stored.space or "", content)
    if options.data not in (None, space.data.name):
        raise InputError(
            f"--resume goes on with the images that the study began with: --data must be {space.data.name}, but got "
            f"{options.data}"
        )
    check_options(space, options)
    history = StudyHistory(folder / JOURNAL_FILE)
    record = history.update()
    _check_same_question(space.source, record, folder)
    specifications = (trial.specification for trial in record.trials.values())
    check = partial(
        check_specifications, allow_code=options.allow_code, data_dir=options.data_dir, typed_data=options.data
    )
    check(specifications, source=f"{folder / JOURNAL_FILE}")
    options = options.with_folders(stored)
    variable = os.environ.get(TRACKING_VARIABLE)
    if variable and options.tracking_uri is None and redact(variable) != stored.tracking_uri:
        print(f"{TRACKING_VARIABLE} is left aside: a study goes on in the store where it began, or in --tracking-uri")
    options = replace(options, tracking_uri=options.tracking_uri or stored.tracking_uri)
    config = replace(_study_config(folder, space, options, uri), origin=stored.origin, resumed=True)
    retrain = None if config.origin is None else select_again(config.origin, record, space.data.name)
    if retrain is not None:  # the driver was killed before it had proposed all
        check(retrain.specifications(), source=f"{retrain.folder}")
    data = _load_same_data(space, config, record)
    fetch_weights(space, data)
    _check_same_start(record, data)
    teacher = _resolve_same_teacher(space, data, config, record)
    if retrain is not None:
        if retrain.check(data, teacher) != config.origin:
            raise InputError(
                f"this version of the code gives the trials of {retrain.folder} other ids than the one that began the "
                "study; begin a new one, or resume it with that version"
            )
        retrain = retrain.with_teacher(teacher)
    resolver = Resolver(space, data, teacher, _recorded_augmentation(record))
    for line in _augmentation_lines(resolver):
        print(line, flush=True)
    return run_study(space, resolver, config, retrain, history, mirror)


def _run_new(
    options: RunOptions, space_name: str, uri: str | None, run: Callable[[Path, StudyMirror | None], int]
) -> int:  # fmt: skip
    """Run a new study, whose folder is made, locked and claimed before anything that takes long."""
    root, taken = studies_root(options.storage, options.out), list_stored_studies(uri) if uri else ()
    with hold_new_study_folder(root, options.name, space_name, taken) as folder:
        return _run_mirrored(uri, folder, run, new=True)


def _run_mirrored(
    uri: str | None, folder: Path, run: Callable[[Path, StudyMirror | None], int], *, new: bool
) -> int:  # fmt: skip
    """Run a study and mirror its folder; returns its exit code, or that of a storage that lacks the end."""
    with mirror_study(uri, folder, new=new) as mirror:
        code = run(folder, mirror)
    stored = mirror is None or mirror.error is None
    return code if stored or code != ExitCode.DONE else ExitCode.NOT_STORED


def _add_repeats(content: dict[str, object], more: int) -> None:
    """Raise the number of seeds of a space in place; a whole grid stays whole.

    Raises:
        InputError: `more` is below 1, or trials are stopped early on a grid.
    """
    if more < 1:
        raise InputError(f"--repeat-more must be at least 1, but got {more}")
    search = _section(content, "search")
    before = int(str(search.get("repeats", 1)))
    search["repeats"] = before + more
    if search.get("sampler") == "grid":  # `trials` counts the rows, of all seeds
        trials = int(str(search.get("trials", SearchSettings.model_fields["trials"].default)))
        search["trials"] = -(-trials * (before + more) // before)


def _check_same_question(content: Mapping[str, object], record: StudyRecord, folder: Path) -> None:
    """Check that nobody has changed space.yaml: a sampler cannot go on in another space than it began with."""
    began = record.header.space
    if not began:  # the driver was killed before it had written it
        return
    fields = [_fixed_fields(section) for section in (began, content)]
    for name in dict.fromkeys((*fields[0], *fields[1])):
        if fields[0].get(name) != fields[1].get(name):
            raise InputError(f"{folder / SPACE_FILE}: `{name}` was changed since the study began; {FIXED_QUESTION}")


def _fixed_fields(content: Mapping[str, object]) -> dict[str, object]:
    """The fields of a space that a resume may not change, by dotted name, as space.yaml would hold them."""
    content = load_yaml(yaml.safe_dump(dict(content)))  # journals from before have texts such as 5e-4
    fields: dict[str, object] = {}
    for section, value in content.items():
        if isinstance(value, dict):
            fields |= {f"{section}.{key}": entry for key, entry in value.items()}
        else:
            fields[section] = value
    return {name: value for name, value in fields.items() if not name.startswith(CHANGEABLE)}


def _with_absolute_data(options: RunOptions) -> RunOptions:
    return options if options.data is None else replace(options, data=absolute_data_name(options.data))


def _find_study(options: RunOptions) -> tuple[Path, str | None]:
    """Find the study to resume: its folder, which may be missing if it is stored, and the URI of its storage."""
    name = str(options.resume)
    root, uri = studies_root(options.storage, options.out), storage_uri(options.storage)
    if not is_plain_name(name):
        return find_study_folder(root, name), uri  # which says what studies there are
    if uri is None and (root / name / SPACE_FILE).is_file():
        uri = read_space_file(find_study_folder(root, name))[1].storage
    return stored_study_folder(uri, name, root) if uri is not None else find_study_folder(root, name), uri


def _given_options(options: RunOptions, *names: str) -> dict[str, object]:
    """Return those of the named options that the user gave."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _section(content: dict[str, object], name: str) -> dict[str, object]:
    """Return a section of a space, which is made if it is missing; raises InputError if it is none."""
    section = content.setdefault(name, {})
    if not isinstance(section, dict):
        raise InputError(f"`{name}` must be a section with fields, but got {show_value(section)}")
    return section


def _set_fields(content: dict[str, object], section: str, fields: dict[str, object]) -> None:
    """Set fields of a space's section, except those that are None."""
    _section(content, section).update({key: value for key, value in fields.items() if value is not None})


def _load_same_data(space: Space, config: StudyConfig, record: StudyRecord) -> ImageData:
    """Load the data set, and check that it is the one that the study began with."""
    data = load_data(space.data, config.data_dir)
    expected = record.header.data.fingerprint or data.fingerprint
    if data.fingerprint != expected:
        raise InputError(
            f"{data.name} has the fingerprint {data.fingerprint}, but the study began with {expected}: its images, "
            "labels or classes have changed; bring back the files of then, or begin a new study"
        )
    return data


def _check_same_start(record: StudyRecord, data: ImageData) -> None:
    """Check that the files and networks whose weights trials of the study start from have not changed."""
    by_start = {
        (spec.start.source, spec.start.fingerprint): spec
        for trial in record.trials.values()
        if (spec := trial.specification) is not None and spec.start is not None and spec.start.trial_id is None
    }
    for _, specification in sorted(by_start.items(), key=lambda entry: entry[0]):
        check_fingerprint(specification, (data.image_shape, len(data.classes)))


def _recorded_augmentation(record: StudyRecord) -> dict[str, Any]:
    """The augmentation that the study's trials have by default; another default would give them other ids."""
    specifications = [trial.specification for trial in record.trials.values() if trial.specification is not None]
    return {
        field: getattr(specification.views, field)
        for field in ("shift", "flip", "cutout")
        for specification in specifications if getattr(specification.train, field) is None
    }  # fmt: skip


def _augmentation_lines(resolver: Resolver) -> list[str]:
    """Say where a study goes on with another augmentation than a new one would have."""
    current = default_augmentation(resolver.data.name, resolver.image_shape)
    changed = {
        field: (value, getattr(current, field)) for field, value in resolver.default_augmentation.items()
        if value != getattr(current, field)
    }  # fmt: skip
    return [
        f"images are augmented as the study was begun, with `{field}` {json.dumps(before)}; a new study has "
        f"{json.dumps(now)}"
        for field, (before, now) in changed.items()
    ]


def _resolve_same_teacher(
    space: Space, data: ImageData, config: StudyConfig, record: StudyRecord
) -> ResolvedTeacher | None:  # fmt: skip
    """Find the teacher, and check that its weights are those that the study began with."""
    recorded, settings = record.header.teacher, space.teacher
    if recorded is not None and settings is not None and settings.train is not None and not settings.name:
        # Its name says how it was trained, by the defaults of then
        space = replace(space, teacher=settings.model_copy(update={"name": recorded.name}))
    teacher = resolve_teacher(with_teacher_name(space, data), data, config.teachers)
    expected = recorded.weights if recorded is not None else None
    if teacher is not None and expected is not None and expected != teacher.weights.sha256:
        raise InputError(
            f"the teacher {teacher.name} has changed since the study began: its sha256 is "
            f"{teacher.weights.sha256[:12]}..., not {expected[:12]}..."
        )
    return teacher


def _with_tracking_variable(options: RunOptions) -> RunOptions:
    """Record a new study where MLflow's own variable says, unless the command line says otherwise."""
    return options if options.tracking_uri is not None else replace(options, tracking_uri=environment_uri())


def _study_config(folder: Path, space: Space, options: RunOptions, storage: str | None) -> StudyConfig:
    if options.tracking_uri:
        check_tracking_uri(options.tracking_uri)
        for line in check_study_store(folder, options.tracking_uri):
            print(line, flush=True)
    return StudyConfig(
        name=folder.name,
        folder=folder,
        data_dir=options.data_dir.resolve() if options.data_dir else None,
        tracking_uri=options.tracking_uri,
        address=options.address,
        allow_open_ports=options.allow_open_ports,
        gpus_asked=bool(options.gpus_per_trial),
        seconds=parse_time(space.search.time),
        teachers=(options.teachers or DEFAULT_TEACHERS).resolve(),
        cache_dir=options.cache_dir.resolve() if options.cache_dir else None,
        note=check_note(options.note),
        tags={**parse_tags(options.tag), **({} if options.group is None else {GROUP_TAG: check_group(options.group)})},
        began=options.began,
        profile=options.profile,
        test=options.test,
        storage=storage,
    )
