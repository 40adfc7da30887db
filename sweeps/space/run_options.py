"""The command line of `sweeps/run.py`, typed, and the table of what goes with what.

This module loads quickly, and every package of sweeps may read it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lowrank.errors import InputError

if TYPE_CHECKING:
    from sweeps.space.study_config import StoredOptions  # imports pydantic, which --help does without

AUTO = "auto"  # of gpus_per_trial
GpuSharing = Literal["processes", "mps", "auto"]
GPU_SHARING: tuple[str, ...] = get_args(GpuSharing)
START_WEIGHTS = "start.weights"  # the field that --weights sets
DEFAULT_OUT = Path("studies")
DEFAULT_SAMPLE = 10
FOLDER_OPTIONS = ("data_dir", "teachers", "cache_dir")  # kept with a study, for its resumption


class Task(enum.Enum):
    """What a command does.

    The value is the option that asks for it; a command has at most one.
    """

    START = "space"  # begin a study or a series; also what is planned or probed
    LIST = "list"
    PLAN = "plan"
    PROBE = "probe_memory"
    RESUME = "resume"
    REPRODUCE = "reproduce"
    RETRAIN = "retrain_stopped"


_ON_RECORD = (Task.RESUME, Task.REPRODUCE, Task.RETRAIN)  # commands about a study that there is
_NEW = (Task.START, Task.PLAN, Task.PROBE)  # commands about a space
_QUESTION_OPTIONS = ("space", "network", "keep", "only", "weights", "set", "seed")  # which say what a study asks
_RUNS = (Task.START, Task.PLAN, *_ON_RECORD)  # commands that train; a plan is of the command that it is added to
# The commands in which each option counts. Everywhere else it is refused, so that none is passed over
TASKS_OF_OPTION: dict[str, tuple[Task, ...]] = {
    "space": _NEW, "json": (Task.LIST, Task.PLAN, Task.PROBE),
    "test": (Task.RESUME,), "repeat_more": (Task.RESUME,), "sample": (Task.RETRAIN,),
    "data": (*_NEW, *_ON_RECORD), "data_dir": (*_NEW, *_ON_RECORD), "allow_code": (*_NEW, *_ON_RECORD),
    "network": _NEW, "keep": _NEW, "only": _NEW, "weights": _NEW, "set": _NEW,
    "name": (*_NEW, Task.REPRODUCE, Task.RETRAIN), "out": (*_NEW, *_ON_RECORD),
    "seed": (*_NEW, Task.RETRAIN), "trials": (*_NEW, Task.RESUME),
    "time": _RUNS, "profile": _RUNS, "note": _RUNS, "tag": _RUNS, "group": _RUNS,
    "cache_dir": _RUNS, "tracking_uri": _RUNS,
    "gpus_per_trial": (*_NEW, *_ON_RECORD), "sharing": (*_NEW, *_ON_RECORD), "cpus_per_trial": (*_NEW, *_ON_RECORD),
    "max_concurrent": (*_NEW, *_ON_RECORD), "processes_per_trial": (*_NEW, Task.RESUME),
    "address": (*_NEW, *_ON_RECORD), "allow_open_ports": (*_NEW, *_ON_RECORD), "storage": (*_NEW, *_ON_RECORD),
    "teachers": (*_NEW, *_ON_RECORD),
    **{task.value: (task,) for task in Task if task is not Task.START},
}  # fmt: skip


FIXED_QUESTION = (
    "--resume may change --trials, --time and resources alone: for another question begin a new study, which can take "
    "over this one's results by `search.warm_start`"
)


def flag(name: str) -> str:
    """Write an option as the user types it.

    Args:
        name: of a field of `RunOptions`.

    Returns:
        The flag.
    """
    return "--gpu-sharing" if name == "sharing" else f"--{name.replace('_', '-')}"


def _command(task: Task) -> str:
    return "a new study" if task is Task.START else flag(task.value)


def _is_default(value: Any, default: Any) -> bool:
    return len(value) == 0 if default == () else type(value) is type(default) and value == default


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What the user has typed.

    Fields are None or empty where nothing was typed, but for those with a default.
    """

    space: str | None = None
    list: bool = False
    plan: bool = False
    probe_memory: bool = False
    resume: str | None = None
    test: bool = False
    repeat_more: int | None = None
    reproduce: Sequence[str] | None = None  # a study and a trial
    retrain_stopped: str | None = None
    sample: int | None = None  # None: DEFAULT_SAMPLE
    json: bool = False
    data: str | None = None
    data_dir: Path | None = None
    network: str | None = None
    keep: Sequence[str] = ()
    only: Sequence[str] = ()
    weights: str | None = None  # an absolute path
    set: Sequence[str] = ()
    name: str | None = None
    out: Path = DEFAULT_OUT
    seed: int | None = None
    trials: int | None = None
    time: str | None = None
    profile: bool = False
    note: str | None = None
    tag: Sequence[str] = ()
    group: str | None = None
    allow_code: bool = False
    gpus_per_trial: float | str | None = None
    sharing: str | None = None
    cpus_per_trial: float | None = None
    processes_per_trial: int | None = None
    max_concurrent: int | None = None
    address: str | None = None
    allow_open_ports: bool = False
    storage: str | None = None
    teachers: Path | None = None
    cache_dir: Path | None = None
    tracking_uri: str | None = None
    began: float = 0.0  # by sweeps.utils.clock.monotonic_time: when the command was given

    def field_updates(self) -> dict[str, object]:
        """Return the fields of a space that options set, by dotted name.

        `search.time` is not among them.
        """
        updates = {
            "data.name": self.data, "network.name": self.network, "network.keep": list(self.keep) or None,
            "network.only": list(self.only) or None, START_WEIGHTS: self.weights,
            "search.seed": self.seed, "search.trials": self.trials,
            "resources.gpus_per_trial": self.gpus_per_trial, "resources.cpus_per_trial": self.cpus_per_trial,
            "resources.max_concurrent": self.max_concurrent,
            "resources.processes_per_trial": self.processes_per_trial, "resources.sharing": self.sharing,
        }  # fmt: skip
        return {name: value for name, value in updates.items() if value is not None}

    def given(self) -> tuple[str, ...]:
        """Return the names of the options that were typed; 0 counts, and an empty text."""
        defaults = RunOptions()
        names = (field.name for field in fields(self) if field.name != "began")
        return tuple(name for name in names if not _is_default(getattr(self, name), getattr(defaults, name)))

    def task(self) -> Task:
        """Return what the command is to do.

        Raises:
            InputError: it has several tasks, or an option that its task does not use.
        """
        given = self.given()
        tasks = [task for task in Task if task.value in given and task is not Task.START]
        if len(tasks) > 1:
            raise InputError(f"{flag(tasks[0].value)} and {flag(tasks[1].value)} are two commands; give one of them")
        task = tasks[0] if tasks else Task.START
        for name in given:
            if task in TASKS_OF_OPTION[name]:
                continue
            if task is Task.RESUME and name in _QUESTION_OPTIONS:
                raise InputError(f"{flag(name)} would change the question of the study; {FIXED_QUESTION}")
            *others, last = (_command(other) for other in TASKS_OF_OPTION[name])
            uses = f"{', '.join(others)} or {last}" if others else last
            raise InputError(f"{flag(name)} cannot be used with {_command(task)}, only with {uses}; leave it out")
        return task

    def with_folders(self, stored: StoredOptions) -> RunOptions:
        """Fill in the folders that the user has not typed.

        Args:
            stored: what a study keeps of its options.

        Returns:
            The options with these folders.
        """

        def folder(typed: Path | None, recorded: str | None) -> Path | None:
            return typed or (Path(recorded) if recorded else None)

        return replace(
            self, data_dir=folder(self.data_dir, stored.data_dir), teachers=folder(self.teachers, stored.teachers),
            cache_dir=folder(self.cache_dir, stored.cache_dir),
        )  # fmt: skip
