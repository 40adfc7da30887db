"""Everything that Ray does not promise to keep: private attributes, names of resources, words of its messages.

A new version of Ray is tried with tests/sweeps/cluster/test_ray_adapter.py, which names what it broke.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ActorDiedError, NodeDiedError, RayTaskError

from lowrank.utils import first_line

if TYPE_CHECKING:
    from ray.job_config import JobConfig
    from ray.tune import Trainable
    from ray.tune.experiment import Trial as RayTrial

HEAD_RESOURCE = "node:__internal_head__"  # every head has 1 of it
CARD_PREFIX = "accelerator_type:"  # a node with such cards has a resource of this name
NODE_DEATH = "its node has died"  # how an ActorDiedError says that the machine is lost
_FAILED_ATTEMPTS = "Trials did not complete"  # how Tune begins its list of all attempts that have failed
_ERROR_ATTRIBUTE = "error_of_attempt"  # of a trial's temporary state, which Tune never saves
STARTUP_TIMEOUT = "timed out during startup"  # how `ray.init` says that 30 s were not enough
MODE_VARIABLE = "RAY_AUTH_MODE"  # `token`: Ray answers only who has the token
BOOTSTRAP_FILE = Path("~/ray_bootstrap_config.yaml")  # where `ray up` puts the cluster file on the head
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal is the record
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the last result of a diverged trial has no error
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # else relative data folders would mean another place
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker that was assigned no card must see none
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # reasons are recorded and shown in the final table
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",  # Tune's snapshots grow with the study, and nothing is restored from them
}
PRELOAD_VARIABLE = "RAY_preload_python_modules"  # what each worker imports as soon as it has started
# None looks at the cards, of which a worker knows its own only later. Every optimizer's first step needs the third
PRELOADED_MODULES = ("torch", "ray.tune", "torch._dynamo")
MAX_PRELOADING = 32  # workers; each holds some 200 MB after its imports
_ROUNDING = 1e-6  # more than sums of shares are off by, less than the 0.0001 to which Ray itself counts
_STARTED_WORKERS = "--num_prestart_python_workers="  # of the raylet's command; Ray sets it to the number of CPUs


@contextmanager
def preload_modules(workers: int) -> Iterator[None]:
    """Have the workers of a Ray that is started inside `with` import what takes long, before a trial needs them.

    The driver reads data and prepares the study meanwhile. Ray hands the variable on to its processes; afterwards it is
    as it was, since the workers of another Ray that this process or a child of it starts may need no torch.

    Args:
        workers: how many Ray starts at once; more than `MAX_PRELOADING` would hold too much memory, and import nothing.

    Yields:
        None.
    """
    before = os.environ.get(PRELOAD_VARIABLE)
    if workers <= MAX_PRELOADING:
        os.environ[PRELOAD_VARIABLE] = ",".join(PRELOADED_MODULES)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(PRELOAD_VARIABLE, None)
        else:
            os.environ[PRELOAD_VARIABLE] = before


@contextmanager
def limit_started_workers(count: int) -> Iterator[None]:
    """Have a Ray that is started inside `with` start so many workers at once, not one for each CPU.

    Those that no trial takes would import beside those that trials wait for. Ray starts more when it needs them. A line
    is printed where a Ray has started and its command does not say how many.

    Args:
        count: of workers.

    Yields:
        None.
    """
    from ray._private import services

    start, is_limited = services.start_ray_process, False

    def start_with_workers(command: list[str], process_type: str, *arguments: Any, **options: Any) -> Any:
        nonlocal is_limited
        is_limited = is_limited or any(word.startswith(_STARTED_WORKERS) for word in command)
        words = [f"{_STARTED_WORKERS}{count}" if word.startswith(_STARTED_WORKERS) else word for word in command]
        return start(words, process_type, *arguments, **options)

    services.start_ray_process = start_with_workers
    try:
        yield
    finally:
        services.start_ray_process = start
    if not is_limited:
        print(
            f"Ray {ray.__version__} starts as many workers at once as it chooses, not {count}: its command has no "
            f"option {_STARTED_WORKERS.rstrip('=')}", flush=True,
        )  # fmt: skip


def count_cards() -> int:
    """Count the cards of this machine that a Ray that this process starts would offer.

    Returns:
        Those that the environment leaves visible.
    """
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    if manager is None:
        return 0
    cards, visible = manager.get_current_node_num_accelerators(), manager.get_current_process_visible_accelerator_ids()
    return cards if visible is None else min(cards, len(visible))


@contextmanager
def without_side_processes() -> Iterator[None]:
    """Have a Ray that is started inside `with` leave out three processes that a study on one machine does not use.

    They are the server of the dashboard, which Ray starts and waits for even where it shows none, the autoscaler, and
    the one that sends the workers' output to the driver. Each imports for a second, and the last looks at all logs
    again and again.

    Yields:
        None.
    """
    from ray._private.node import Node

    starters = {name: getattr(Node, name) for name in ("start_api_server", "start_monitor", "start_log_monitor")}
    for name in starters:
        setattr(Node, name, lambda self, **options: None)
    try:
        yield
    finally:
        for name, start in starters.items():
            setattr(Node, name, start)


def count_no_callbacks() -> None:
    """Keep Tune from importing MLflow, only to count callbacks of it.

    The counts are for Ray's usage report, which is off (`ENVIRONMENT`).
    """
    from ray.air._internal import usage

    usage.tag_callbacks = lambda callbacks: False


class _ProjectFirst(list[str]):
    """Folders for the workers' module path, of which Ray gives each precedence over those before it."""

    def extend(self, paths: Iterable[str]) -> None:
        """Put further folders before these: the driver's current folder, which Ray adds when it connects."""
        self[:0] = paths


def project_first() -> JobConfig:
    """Have workers find this project before anything in the user's current folder.

    A folder there may have the name of one of our packages, or of one that we need.

    Returns:
        The configuration for `ray.init`.
    """
    from ray.job_config import JobConfig

    return JobConfig(_py_driver_sys_path=_ProjectFirst([str(Path(__file__).resolve().parents[2])]))


def enable_token() -> None:
    """Have a Ray that this process starts ask for a token, whatever its default is."""
    os.environ[MODE_VARIABLE] = "token"
    raylet: Any = ray._raylet
    raylet.Config.initialize("")  # Ray has read the environment when it was imported


def token_is_enabled() -> bool:
    """Tell whether this process and the Ray that it has started use the token.

    Returns:
        True if they do.
    """
    raylet: Any = ray._raylet
    return bool(raylet.get_authentication_mode() == raylet.AuthenticationMode.TOKEN)


def allow_pending_trials(count: int) -> None:
    """Let Tune ask for so many trials before the first has started.

    Tune's default of one would start the first wave of trials one by one.

    Args:
        count: trials that may wait for resources at once.
    """
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(count)


@contextmanager
def use_started_workers(*, reserves: bool) -> Iterator[None]:
    """Let trials take workers that this process's Ray has started, inside `with`.

    Such a worker has imported what `preload_modules` says. Tune would have others started, for two reasons. It passes
    environment variables on, and a worker is only given to those who ask for the same variables; but on this machine
    the workers have them all from the driver. And it reserves the resources of a trial by a placement group, and asks
    by a task whether it is ready; a worker that has run a task is never given to a trial. A trial with a card, or with
    a share of one, is given such a worker like any other.

    On a cluster, nothing is changed.

    Args:
        reserves: whether Tune must reserve resources by placement groups, because others than its trials hold some;
            else it counts them.

    Yields:
        None.
    """
    from ray.air.execution import FixedResourceManager
    from ray.tune.execution import tune_controller

    node = ray._private.worker._global_node
    if node is None or not node.is_head():
        yield
        return

    class ActorClasses(tune_controller._ActorClassCache):
        """Makes actors without an environment of their own."""

        def get(self, trainable_cls: type[Trainable]) -> Any:
            if trainable_cls not in self._cache:
                self._cache[trainable_cls] = ray.remote(trainable_cls)
            return self._cache[trainable_cls]

    class CountedResources(FixedResourceManager):
        """Counts what trials hold, and leaves no share unused where sums of fractions are rounded."""

        @property
        def _available_resources(self) -> dict[str, float]:
            return {name: amount + _ROUNDING for name, amount in super()._available_resources.items()}

    classes, manager = tune_controller._ActorClassCache, tune_controller.PlacementGroupResourceManager
    tune_controller._ActorClassCache = ActorClasses  # type: ignore[misc]
    if not reserves:
        tune_controller.PlacementGroupResourceManager = CountedResources  # type: ignore[misc]
    try:
        yield
    finally:
        tune_controller._ActorClassCache = classes  # type: ignore[misc]
        tune_controller.PlacementGroupResourceManager = manager  # type: ignore[misc]


@contextmanager
def keep_workers(count: Callable[[], int], may_keep: Callable[[RayTrial], bool] = lambda _: True) -> Iterator[None]:
    """Have Tune keep free workers, and those that start, inside `with`.

    By itself Tune keeps as many as trials wait for a worker of their own, and one where none waits: of trials that end
    together all workers but one end too. And it gives a worker that is free to a trial whose own worker is starting,
    which it ends: where trials are shorter than a start, most slots stay empty.

    Args:
        count: returns how many may be kept now; 0 once no more trials come.
        may_keep: returns whether the worker of a trial that has ended may be kept.

    Yields:
        None.
    """
    from ray.tune.execution import tune_controller

    original = tune_controller._ObjectCache
    controller = tune_controller.TuneController
    reuse, keep = controller._maybe_reuse_cached_actor, controller._maybe_cache_trial_actor

    class WorkerCache(original):  # type: ignore[misc,valid-type]
        """Keeps up to `count` workers, whatever they hold; more if more trials wait for one."""

        def _most(self) -> int:
            return max(count(), self.total_max_objects)

        def cache_object(self, key: Any, obj: Any) -> bool:
            if self._num_cached_objects >= self._most():
                return False
            self._cached_objects[key].append(obj)
            self._num_cached_objects += 1
            return True

        def flush_cached_objects(self, force_all: bool = False) -> Iterator[Any]:
            limit = 0 if force_all else self._most()
            for workers in self._cached_objects.values():
                while workers and self._num_cached_objects > limit:
                    self._num_cached_objects -= 1
                    yield workers.pop(0)

    def reuse_unless_starting(tune: Any, trial: RayTrial) -> bool:
        worker = tune._trial_to_actor.get(trial)
        # A worker that only waits for resources would wait for those of the free one
        is_starting = worker is not None and tune._actor_manager.is_actor_started(worker)
        if is_starting and trial not in tune._resetting_trials and count() > 0:
            return False  # the next trial takes the free worker; at the end it may be the only one
        return bool(reuse(tune, trial))

    def keep_unless_surplus(tune: Any, trial: RayTrial) -> bool:
        return may_keep(trial) and bool(keep(tune, trial))

    tune_controller._ObjectCache = WorkerCache  # type: ignore[misc]
    controller._maybe_reuse_cached_actor = reuse_unless_starting  # type: ignore[method-assign,assignment]
    controller._maybe_cache_trial_actor = keep_unless_surplus  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        tune_controller._ObjectCache = original  # type: ignore[misc]
        controller._maybe_reuse_cached_actor = reuse  # type: ignore[method-assign]
        controller._maybe_cache_trial_actor = keep  # type: ignore[method-assign]


@contextmanager
def watch_sigterm_handler(restore: Callable[[], None]) -> Iterator[None]:
    """Call a function whenever Ray takes SIGTERM for itself, which it does several times while it starts.

    Ray's own handler would end the process at once, without a word.

    Args:
        restore: sets this process's handler again.
    """
    set_handler = ray._private.utils.set_sigterm_handler

    def set_and_restore(handler: Callable[..., None]) -> None:
        set_handler(handler)
        restore()

    ray._private.utils.set_sigterm_handler = set_and_restore
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = set_handler


def is_startup_timeout(error: BaseException) -> bool:
    """Return whether `ray.init` gave up because the start took too long.

    Args:
        error: what `ray.init` raised; Ray has no class of its own for this.

    Returns:
        True for a start that may succeed if it is tried again.
    """
    return STARTUP_TIMEOUT in str(error)


def head_address() -> str:
    """Find the head of the connected cluster.

    Returns:
        HOST:PORT.
    """
    return str(ray.get_runtime_context().gcs_address)


def raylet_address() -> str | None:
    """Find the raylet of this process, which starts its tasks.

    Returns:
        HOST:PORT; None for a client that Ray serves from elsewhere.
    """
    local = next((node for node in live_nodes() if is_driver_on(node)), None)
    return None if local is None else f"{local['NodeManagerAddress']}:{local['NodeManagerPort']}"


def live_nodes() -> list[dict[str, Any]]:
    """List the machines of the cluster that are alive.

    Returns:
        Ray's description of each: `NodeID`, `Resources` and more.
    """
    return [node for node in ray.nodes() if node["Alive"]]


def is_driver_on(node: dict[str, Any]) -> bool:
    """Return whether this process runs on a node.

    Args:
        node: one of `live_nodes`.

    Returns:
        True for the machine of this process.
    """
    return bool(node["NodeID"] == ray.get_runtime_context().get_node_id())


def card_types() -> list[str]:
    """List the types of cards in the cluster.

    Returns:
        Ray's names of them, sorted.
    """
    names = {name for node in live_nodes() for name in node["Resources"]}
    return sorted(name.removeprefix(CARD_PREFIX) for name in names if name.startswith(CARD_PREFIX))


def is_machine_lost(error: object) -> bool:
    """Return whether an attempt ended because its machine was lost.

    Args:
        error: what ended the attempt, as `trial_error` returns it.

    Returns:
        True for the loss of a machine, False for that of a process alone and for all other errors.
    """
    if isinstance(error, NodeDiedError):
        return True
    return isinstance(error, ActorDiedError) and NODE_DEATH in str(error)


def trial_error(trial: RayTrial) -> object:
    """Return what ended an attempt; see `keep_trial_errors_in_memory`.

    Args:
        trial: Tune's trial, within `Callback.on_trial_error`.

    Returns:
        The exception, or a text if there is none.
    """
    error = getattr(trial.temporary_state, _ERROR_ATTRIBUTE, None)
    return "no reason was given" if error is None else error


def error_reason(error: object) -> str:
    """Say in one line what ended an attempt.

    Args:
        error: from `trial_error`. Ray copies the traceback of a worker's error into the text, and the reason behind it;
            of an error of several lines that would be the last one.

    Returns:
        The class and the first line of a worker's error; the last line of any other text.
    """
    cause = error.cause if isinstance(error, RayTaskError) else None
    if isinstance(cause, Exception):
        module = "" if type(cause).__module__ == "builtins" else f"{type(cause).__module__}."
        return f"{module}{type(cause).__qualname__}: {first_line(cause)}"
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def keep_trial_errors_in_memory() -> None:
    """Have Tune's trials keep what ended an attempt in memory.

    No pickle of it is read from a folder: Tune writes the exception to a file and reads it back, so whoever may write
    there in between, or leave a file of that name, would have code run in the driver. A second call changes nothing.
    """
    from ray.tune.experiment import Trial

    write_error = Trial.handle_error
    if getattr(write_error, _ERROR_ATTRIBUTE, False):
        return

    def handle_error(trial: RayTrial, exc: Any = None) -> None:
        write_error(trial, exc)
        setattr(trial.temporary_state, _ERROR_ATTRIBUTE, exc)
        if trial.pickled_error_file:
            Path(trial.pickled_error_file).unlink(missing_ok=True)
            trial.run_metadata.pickled_error_filename = None
            trial.run_metadata.invalidate_cache()

    setattr(handle_error, _ERROR_ATTRIBUTE, True)
    Trial.handle_error = handle_error  # type: ignore[method-assign,assignment]


def hide_failed_attempts() -> None:
    """Have Tune not list at its end what it calls trials that did not complete.

    Each attempt is a trial to Tune. One that has failed and was repeated stands in that list by a name that no study
    has, however well the study ended. The journal has the reason of each. A second call changes nothing.
    """
    logging.getLogger("ray.tune.tune").addFilter(_is_no_list_of_attempts)


def _is_no_list_of_attempts(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_FAILED_ATTEMPTS)


def drop_metric_statistics(trial: RayTrial) -> None:
    """Free what Tune remembers of the metrics of a trial that has ended.

    Tune keeps every trial with statistics of each of its metrics until the study ends.

    Args:
        trial: Tune's trial, after its last callback.
    """
    metadata = trial.run_metadata
    metadata.metric_analysis, metadata.metric_n_steps, metadata.last_result = {}, {}, {"training_iteration": 0}


def assigned_resources(trainable: Trainable) -> tuple[float, float]:
    """Return the CPUs and GPUs that Ray gave to a trial.

    Args:
        trainable: the trial's own Trainable.

    Returns:
        CPUs (1 if nothing is known) and GPUs (a fraction for a share of a card).
    """
    resources = trainable.trial_resources.required_resources if trainable.trial_resources else {}
    return float(resources.get("CPU", 1)), float(resources.get("GPU", 0))


def assigned_cards() -> list[str | int]:
    """Find which cards Ray gave to this worker.

    Returns:
        Their numbers; none outside of Ray.
    """
    return list(ray.get_gpu_ids()) if ray.is_initialized() else []
