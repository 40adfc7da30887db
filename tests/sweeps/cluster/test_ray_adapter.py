"""What an upgrade of Ray broke: each test names one thing that Ray does not promise to keep."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import tune
from ray._private import services
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray.air.execution import ResourceRequest
from ray.air.execution._internal import RayActorManager
from ray.exceptions import ActorDiedError, NodeDiedError, RayActorError
from ray.tune.execution import tune_controller
from ray.tune.experiment import Trial as RayTrial

from lowrank.utils.processes import child_processes
from sweeps.cluster import ray_adapter
from sweeps.cluster.ray_session import connect
from tests.support.waiting import wait_until

RAY = Path(ray.__file__).parent
tune_module = importlib.import_module("ray.tune.tune")  # `ray.tune.tune` is a name of the package too


class Failing(tune.Trainable):
    """Reports one result and fails in the next step."""

    def setup(self, config: dict[str, Any]) -> None:
        self.resources = ray_adapter.assigned_resources(self)

    def step(self) -> dict[str, Any]:
        if self.iteration > 0:
            raise ValueError("this trial is broken")
        return {"cpus": self.resources[0], "gpus": self.resources[1], "cards": len(ray_adapter.assigned_cards()),
                "pid": os.getpid()}  # fmt: skip

    def save_checkpoint(self, checkpoint_dir: str) -> None: ...

    def load_checkpoint(self, checkpoint: Any) -> None: ...


class Watching(tune.Callback):
    """Uses the adapter where the study's own callback does."""

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []
        self.errors: list[object] = []
        self.trials: list[RayTrial] = []

    def on_trial_result(self, iteration: int, trials: Any, trial: RayTrial, result: dict[str, Any], **_: Any) -> None:
        self.results.append(result)

    def on_trial_error(self, iteration: int, trials: Any, trial: RayTrial, **_: Any) -> None:
        self.errors.append(ray_adapter.trial_error(trial))
        self.trials.append(trial)

    def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
        for trial in self.trials:
            ray_adapter.drop_metric_statistics(trial)


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    """A Ray with a made card."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", partial(ray.init, num_gpus=1))
        connect(None, cpus=2, workers=1)
    yield
    ray.shutdown()


@pytest.mark.study
def test_the_connected_cluster_is_described(session):
    (node,) = ray_adapter.live_nodes()
    assert ray_adapter.is_driver_on(node)
    assert node["Resources"]["CPU"] == 2
    assert ray_adapter.HEAD_RESOURCE in node["Resources"]
    host, _, port = ray_adapter.head_address().rpartition(":")
    assert host
    assert port.isdigit()


def started_workers() -> set[int]:
    """Process ids of the workers that Ray has started and that have done nothing yet."""
    pids = child_processes(os.getpid())
    return {pid for pid in pids if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::IDLE")}


@pytest.mark.study
def test_a_trial_with_a_share_of_a_card_takes_a_worker_that_has_started(session, tmp_path: Path):
    wait_until(started_workers, "a worker that Ray has started")
    before, watching = started_workers(), Watching()
    assert len(before) == 1  # for two CPUs: as many as `connect` was asked for
    with ray_adapter.use_started_workers(reserves=False):
        tune.Tuner(
            tune.with_resources(Failing, {"cpu": 1, "gpu": 0.16}),
            run_config=tune.RunConfig(storage_path=str(tmp_path), name="started", verbose=0, callbacks=[watching]),
        ).fit()
    assert [(row["pid"] in before, row["gpus"], row["cards"]) for row in watching.results] == [(True, 0.16, 1)]


def test_the_command_that_starts_rays_node_names_the_number_of_workers(monkeypatch, capsys):
    commands: list[list[str]] = []
    monkeypatch.setattr(services, "start_ray_process", lambda command, process_type: commands.append(command))
    with ray_adapter.limit_started_workers(6):
        services.start_ray_process(["raylet", "--num_prestart_python_workers=32", "--head"], "raylet")
    assert capsys.readouterr().out == ""
    services.start_ray_process(["raylet", "--num_prestart_python_workers=32"], "raylet")
    assert commands == [
        ["raylet", "--num_prestart_python_workers=6", "--head"],
        ["raylet", "--num_prestart_python_workers=32"],
    ]
    assert "--num_prestart_python_workers={}" in inspect.getsource(services.start_raylet)
    assert "start_ray_process(" in inspect.getsource(services.start_raylet)


def test_a_ray_that_starts_workers_in_another_way_is_named(monkeypatch, capsys):
    monkeypatch.setattr(services, "start_ray_process", lambda command, process_type: None)
    with ray_adapter.limit_started_workers(6):
        services.start_ray_process(["raylet", "--head"], "raylet")
    assert capsys.readouterr().out == (
        f"Ray {ray.__version__} starts as many workers at once as it chooses, not 6: its command has no option "
        "--num_prestart_python_workers\n"
    )
    with pytest.raises(ValueError, match="no start"), ray_adapter.limit_started_workers(6):
        raise ValueError("no start")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("visible", "expected"), [(None, 4), (["0", "2"], 2), ([], 0)])
def test_cards_are_counted_that_the_environment_leaves_visible(visible, expected, monkeypatch):
    manager = get_accelerator_manager_for_resource("GPU")
    monkeypatch.setattr(manager, "get_current_node_num_accelerators", lambda: 4)
    monkeypatch.setattr(manager, "get_current_process_visible_accelerator_ids", lambda: visible)
    assert ray_adapter.count_cards() == expected


def test_on_a_cluster_trials_ask_for_workers_as_tune_does(monkeypatch):
    before = (tune_controller._ActorClassCache, tune_controller.PlacementGroupResourceManager)
    monkeypatch.setattr(ray._private.worker, "_global_node", SimpleNamespace(is_head=lambda: False))
    with ray_adapter.use_started_workers(reserves=False):
        assert (tune_controller._ActorClassCache, tune_controller.PlacementGroupResourceManager) == before


@pytest.mark.parametrize("reserves", [True, False])
def test_placement_groups_are_made_where_others_hold_resources(reserves, monkeypatch):
    before = tune_controller.PlacementGroupResourceManager
    monkeypatch.setattr(ray._private.worker, "_global_node", SimpleNamespace(is_head=lambda: True))
    with ray_adapter.use_started_workers(reserves=reserves):
        assert (tune_controller.PlacementGroupResourceManager is before) == reserves
    assert tune_controller.PlacementGroupResourceManager is before


@pytest.mark.parametrize(("resource", "amount", "share", "trials"), [("GPU", 4, 0.1, 40), ("CPU", 32, 0.8, 40)])
def test_no_share_is_left_unused_where_sums_of_fractions_are_rounded(resource, amount, share, trials, monkeypatch):
    monkeypatch.setattr(ray._private.worker, "_global_node", SimpleNamespace(is_head=lambda: True))
    context = SimpleNamespace(should_capture_child_tasks_in_placement_group=False, worker=SimpleNamespace(mode=None))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {resource: float(amount)})
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: None)
    with ray_adapter.use_started_workers(reserves=False):
        manager = tune_controller.PlacementGroupResourceManager()
    request, held = ResourceRequest([{resource: share}]), 0
    manager.request_resources(request)
    while held <= trials and manager.acquire_resources(request) is not None:
        held += 1
    assert held == trials


@pytest.mark.study
def test_workers_have_imported_torch_and_no_other_ray_inherits_that(session):
    assert ray.get(ray.remote(lambda: "torch._dynamo" in sys.modules).remote())
    assert ray_adapter.PRELOAD_VARIABLE not in os.environ


@pytest.mark.study
def test_a_ray_of_this_machine_runs_no_process_that_a_study_does_not_use(session):
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in child_processes(os.getpid())]
    assert any("gcs_server" in command for command in commands)
    assert any("raylet/raylet" in command for command in commands)
    for name in ("dashboard.py", "monitor.py"):  # log_monitor.py among them
        assert not any(name in command for command in commands), name


def test_tune_asks_the_function_that_counts_no_callbacks(monkeypatch):
    """Its own counts by importing MLflow."""
    monkeypatch.setattr("ray.air._internal.usage.tag_callbacks", lambda callbacks: pytest.fail("it was counted"))
    ray_adapter.count_no_callbacks()
    assert tune_module.air_usage.tag_callbacks([Watching()]) is False
    assert "air_usage.tag_callbacks(callbacks)" in Path(tune_module.__file__).read_text()


def test_types_of_cards_are_read_from_the_names_of_resources(monkeypatch):
    nodes = [{"Alive": True, "Resources": {"CPU": 1, f"{ray_adapter.CARD_PREFIX}H200": 1}}]
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, {"Alive": False, "Resources": {"accelerator_type:T4": 1}}])
    assert ray_adapter.card_types() == ["H200"]


@pytest.mark.study
def test_a_failed_trial_gives_its_error_within_the_callback_and_then_frees_its_metrics(
    session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", "1")
    ray_adapter.allow_pending_trials(2)
    watching = Watching()
    ray_adapter.keep_trial_errors_in_memory()
    ray_adapter.keep_trial_errors_in_memory()
    ray_adapter.hide_failed_attempts()
    with caplog.at_level(logging.ERROR, "ray.tune.tune"):
        tune.Tuner(
            tune.with_resources(Failing, {"cpu": 1}),
            run_config=tune.RunConfig(storage_path=str(tmp_path), name="broken", verbose=0, callbacks=[watching]),
        ).fit()
    assert [record for record in caplog.records if record.name == "ray.tune.tune"] == []
    assert [(row["cpus"], row["gpus"], row["cards"]) for row in watching.results] == [(1, 0, 0)]
    (error,) = watching.errors
    assert isinstance(error, Exception)
    assert "this trial is broken" in str(error)
    assert not ray_adapter.is_machine_lost(error)
    (trial,) = watching.trials
    assert trial.run_metadata.metric_analysis == {}
    assert not list(tmp_path.rglob("error.pkl"))  # an exception that lies in a folder is never unpickled
    assert (trial.pickled_error_file, trial.get_pickled_error()) == (None, None)


def test_tune_lists_every_attempt_that_has_failed_and_the_list_is_hidden(caplog):
    """One that was repeated is no trial that did not complete; other errors of Tune are shown."""
    source = (RAY / "tune" / "tune.py").read_text()
    assert 'logger.error("Trials did not complete: %s", incomplete_trials)' in source
    assert "if trial.status != Trial.TERMINATED:\n            incomplete_trials += [trial]" in source
    ray_adapter.hide_failed_attempts()
    logger = logging.getLogger("ray.tune.tune")
    logger.error("Trials did not complete: %s", ["TrialTrainable_1"])
    logger.error("Experiment state snapshotting failed:")
    assert [record.message for record in caplog.records] == ["Experiment state snapshotting failed:"]


def test_tune_still_reads_the_variables_that_are_set():
    """Tune ignores a variable that it does not know."""
    source = (RAY / "tune" / "constants.py").read_text()
    for name in (*(name for name in ray_adapter.ENVIRONMENT if name.startswith("TUNE_")), "TUNE_MAX_PENDING_TRIALS_PG"):
        assert f'"{name}"' in source, name


@pytest.mark.parametrize(
    ("error", "lost"),
    [(NodeDiedError("gone"), True), (RayActorError(), False), (ValueError(ray_adapter.NODE_DEATH), False)],
)
def test_the_loss_of_a_machine_is_told_from_that_of_a_process(error, lost):
    assert ray_adapter.is_machine_lost(error) == lost


def test_a_dead_actor_says_that_its_node_has_died():
    """The words come from the head's own program."""
    assert ray_adapter.NODE_DEATH.encode() in (RAY / "core" / "src" / "ray" / "gcs" / "gcs_server").read_bytes()
    error = ActorDiedError()
    error.error_msg = f"The actor died because {ray_adapter.NODE_DEATH}. Node Id: 1"
    assert ray_adapter.is_machine_lost(error)


def test_a_slow_start_is_known_by_its_message():
    assert ray_adapter.STARTUP_TIMEOUT in (RAY / "_private" / "node.py").read_text()
    assert ray_adapter.is_startup_timeout(Exception("The current node timed out during startup. This could happen"))


def test_ray_takes_sigterm_through_the_function_that_is_watched():
    restored = []
    before = signal.getsignal(signal.SIGTERM)
    with ray_adapter.watch_sigterm_handler(lambda: restored.append(signal.getsignal(signal.SIGTERM))):
        ray._private.utils.set_sigterm_handler(signal.default_int_handler)
    signal.signal(signal.SIGTERM, before)
    assert restored == [signal.default_int_handler]
    for name in ("worker.py", "node.py"):
        text = (RAY / "_private" / name).read_text()
        assert "set_sigterm_handler(" in text
        assert "signal.SIGTERM," not in text


@pytest.mark.parametrize(
    ("kept", "reused"),
    [(1, ["waiting", "queued", "resetting"]), (0, ["waiting", "queued", "resetting", "starting"])],
)
def test_a_free_worker_is_not_given_to_a_trial_whose_own_is_starting_while_others_come(monkeypatch, kept, reused):
    """A trial whose worker is queued for the resources that the free one holds would wait for ever."""
    controller = tune_controller.TuneController
    given: list[str] = []
    monkeypatch.setattr(controller, "_maybe_reuse_cached_actor", lambda tune, trial: not given.append(trial))
    before = controller._maybe_reuse_cached_actor
    tune_now = SimpleNamespace(
        _trial_to_actor={"starting": 1, "resetting": 2, "queued": 3}, _resetting_trials={"resetting"},
        _actor_manager=SimpleNamespace(is_actor_started=lambda actor: actor in (1, 2)),
    )  # fmt: skip
    with ray_adapter.keep_workers(lambda: kept):
        for trial in ("waiting", "queued", "resetting", "starting"):
            assert controller._maybe_reuse_cached_actor(tune_now, trial) == (trial in reused)
    assert given == reused
    assert controller._maybe_reuse_cached_actor is before


def test_the_worker_of_a_trial_that_leaves_a_full_card_is_not_kept(monkeypatch):
    kept: list[str] = []
    controller = tune_controller.TuneController
    monkeypatch.setattr(controller, "_maybe_cache_trial_actor", lambda tune, trial: kept.append(trial) or True)
    before = controller._maybe_cache_trial_actor
    with ray_adapter.keep_workers(lambda: 2, lambda trial: trial != "surplus"):
        assert controller._maybe_cache_trial_actor(None, "a")
        assert not controller._maybe_cache_trial_actor(None, "surplus")
    assert kept == ["a"]
    assert controller._maybe_cache_trial_actor is before
    source = inspect.getsource(controller.stop_trial)  # the callback comes first, which says whether it is surplus
    assert source.index("_callbacks.on_trial_complete(") < source.index("_schedule_graceful_trial_stop(")
    assert "not exception and self._maybe_cache_trial_actor(trial)" in inspect.getsource(controller)


def test_the_controller_still_has_what_keeps_a_starting_worker():
    source = inspect.getsource(tune_controller.TuneController)
    assert source.count("self._maybe_reuse_cached_actor(") == 4
    assert "self._trial_to_actor[trial] = tracked_actor" in source
    assert "self._resetting_trials.add(trial)" in source
    assert "self._actor_manager = RayActorManager(" in source
    assert callable(RayActorManager.is_actor_started)


def test_workers_are_kept_for_trials_to_come_even_if_no_trial_waits():
    """Tune itself keeps one of those whose trials end together."""
    assert (
        "self._actor_cache = _ObjectCache(may_keep_one=True)"
        in (RAY / "tune" / "execution" / "tune_controller.py").read_text()
    )
    kept = [2]
    by_itself = tune_controller._ObjectCache(may_keep_one=True)
    assert [by_itself.cache_object("1 CPU", worker) for worker in ("a", "b")] == [True, False]
    with ray_adapter.keep_workers(lambda: kept[0]):
        cache = tune_controller._ObjectCache(may_keep_one=True)
    assert [cache.cache_object("1 CPU", worker) for worker in ("a", "b", "c")] == [True, True, False]
    assert list(cache.flush_cached_objects()) == []
    assert cache.pop_cached_object("1 CPU") == "a"
    kept[0] = 0
    assert list(cache.flush_cached_objects()) == ["b"]
    assert cache.num_cached_objects == 0
    cache.increase_max("1 CPU")  # a trial waits
    assert cache.cache_object("1 CPU", "d")
    assert list(cache.flush_cached_objects(force_all=True)) == ["d"]
    assert tune_controller._ObjectCache is not type(cache)
