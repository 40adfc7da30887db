"""Shares of the cluster: impossible requests are refused, trials spread before they share a card."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import yaml

from lowrank.errors import InputError
from sweeps.cluster import ray_adapter
from sweeps.cluster.cluster_file import CLUSTER_FILE
from sweeps.resources import shares
from sweeps.resources.shares import Cluster, Share, choose_share, larger_share, planned_machines, share_for
from sweeps.resources.slots import ResourcePlanner
from sweeps.space.settings import ResourceSettings
from tests.support.ray_private import complete_cluster_config

LAPTOP = Cluster(cpus=2, gpus=0, max_cpus=2, max_gpus=0)
TWO_CARDS = Cluster(cpus=32, gpus=2, max_cpus=32, max_gpus=2)


@pytest.mark.parametrize(
    ("cluster", "requested", "trials", "gpus", "concurrent"),
    [
        (LAPTOP, 0.25, 24, 0.0, 2),  # no card here: trials run on CPUs
        (TWO_CARDS, 0.5, 2, 1.0, 2),  # Ray would pack both onto the first card
        (TWO_CARDS, 0.25, 24, 0.25, 8),
        (TWO_CARDS, 0.25, 3, 0.5, 3),
        (TWO_CARDS, 0.25, 5, 0.33, 5),
        (TWO_CARDS, 1, 24, 1.0, 2),
        (TWO_CARDS, 2, 24, 2.0, 1),
        (TWO_CARDS, 0, 24, 0.0, 24),
    ],
)
def test_shares(cluster, requested, trials, gpus, concurrent):
    share = choose_share(cluster, cpus=1, gpus=requested, trials=trials)
    assert (share.gpus, share.concurrent) == (gpus, concurrent)


def test_fewer_trials_at_once_spread_over_the_cards():
    share = choose_share(TWO_CARDS, cpus=1, gpus=0.25, trials=24, max_concurrent=2)
    assert (share.gpus, share.concurrent) == (1.0, 2)


@pytest.mark.parametrize(
    ("cluster", "cpus", "gpus", "message"),
    [
        (LAPTOP, 4, 0, "a trial asks for 4 CPUs, but the largest machine of the cluster has 2"),
        (LAPTOP, 1, 1, "a trial asks for 1 GPU, but the largest machine of the cluster has 0"),
        (TWO_CARDS, 1, 3, "a trial asks for 3 GPUs, but the largest machine of the cluster has 2"),
        (TWO_CARDS, 1, 0.001, "must be 0, a share from 0.01 to 1, or a whole number, but got 0.001"),
        (TWO_CARDS, 1, 1.5, "must be 0, a share from 0.01 to 1, or a whole number, but got 1.5"),
    ],
)
def test_a_request_that_can_never_be_met_is_refused(cluster, cpus, gpus, message):
    with pytest.raises(InputError, match=message):
        choose_share(cluster, cpus=cpus, gpus=gpus, trials=4, require_gpus=True)


@pytest.mark.parametrize(
    ("cluster", "gpus", "requested", "processes"),
    [(TWO_CARDS, 2, None, 2), (TWO_CARDS, 0.5, None, 1), (LAPTOP, 0, 2, 2), (LAPTOP, 2, None, 1), (TWO_CARDS, 2, 2, 2)],
)
def test_a_trial_of_several_cards_has_a_process_on_each(cluster, gpus, requested, processes):
    assert choose_share(cluster, cpus=1, gpus=gpus, trials=4, processes=requested).processes == processes


def test_processes_without_cards_of_their_own_are_refused():
    with pytest.raises(InputError, match="--processes-per-trial 2 needs as many whole cards a trial, or none, but"):
        choose_share(TWO_CARDS, cpus=1, gpus=0.5, trials=4, processes=2)


@pytest.mark.parametrize(
    ("cluster", "share", "expected"),
    [
        (TWO_CARDS, Share(1, 0.125, 16), Share(1, 0.25, 8)),
        (TWO_CARDS, Share(1, 0.33, 6), Share(1, 1.0, 2)),
        (TWO_CARDS, Share(1, 0.5, 4), Share(1, 1.0, 2)),
        (TWO_CARDS, Share(1, 1.0, 2), None),
        (TWO_CARDS, Share(1, 2.0, 1, 2), None),
        (LAPTOP, Share(1, 0.0, 2), Share(2, 0.0, 1)),
        (LAPTOP, Share(2, 0.0, 1), None),
    ],
)
def test_a_trial_that_ran_out_of_memory_gets_at_least_twice_the_share_or_a_whole_card(cluster, share, expected):
    assert larger_share(share, cluster, trials=24) == expected


def test_auto_is_a_whole_card_until_it_is_measured_and_trials_still_spread():
    settings = ResourceSettings(gpus_per_trial="auto")
    assert share_for(settings, TWO_CARDS, 24, require_gpus=True) == Share(1, 1.0, 2)
    assert share_for(settings, TWO_CARDS, 24, require_gpus=True, auto_gpus=1 / 8) == Share(1, 1 / 8, 16)
    assert share_for(settings, TWO_CARDS, 2, require_gpus=True, auto_gpus=1 / 8) == Share(1, 1.0, 2)
    assert share_for(settings, LAPTOP, 24, require_gpus=True) == Share(1, 0.0, 2)


def test_an_idle_cluster_counts_the_machines_that_it_may_start(tmp_path):
    """The repository's cluster file, as `ray up` leaves it on the head: eight workers with a card each."""
    path = tmp_path / "ray_bootstrap_config.yaml"
    path.write_text(yaml.safe_dump(complete_cluster_config(yaml.safe_load(CLUSTER_FILE.read_text()))))
    planned = planned_machines(path)
    assert planned == [{"CPU": 4, "GPU": 1}] * 8
    assert planned_machines(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("available_node_types: {a: [", "while parsing a flow"),
        ("", "`available_node_types` is missing"),
        ("head_node_type: head", "`available_node_types` is missing"),
        (
            "{head_node_type: h, available_node_types: {a: {max_workers: many}}}",
            "`available_node_types.a.max_workers`",
        ),
    ],
)
def test_a_damaged_cluster_file_is_one_line(tmp_path, content, reason):
    path = tmp_path / "ray_bootstrap_config.yaml"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        planned_machines(path)
    assert str(caught.value).startswith(f"{path}, which `ray up` has put here, is damaged: {reason}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("planned", [[], [{"CPU": 4, "GPU": 1}] * 8])
def test_a_head_without_workers_counts_those_that_it_may_start(monkeypatch, planned):
    head = {"CPU": 0.0, "node:__internal_head__": 1.0}
    monkeypatch.setattr(ray_adapter, "live_nodes", lambda: [{"NodeID": "own", "Resources": head}])
    monkeypatch.setattr(ray_adapter, "is_driver_on", lambda node: node["NodeID"] == "own")
    monkeypatch.setattr(shares, "planned_machines", lambda path: planned)
    cluster = shares.read_cluster(autoscaled=True)
    assert (cluster.cpus, cluster.gpus, cluster.max_gpus) == ((32, 8, 1) if planned else (0, 0, 0))


def test_a_ray_of_the_driver_alone_gets_no_workers_of_the_cluster_on_whose_head_it_runs(monkeypatch, tmp_path):
    (tmp_path / "ray_bootstrap_config.yaml").write_text(
        yaml.safe_dump(complete_cluster_config(yaml.safe_load(CLUSTER_FILE.read_text())))
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    head = {"CPU": 2.0, "node:__internal_head__": 1.0}
    monkeypatch.setattr(ray_adapter, "live_nodes", lambda: [{"NodeID": "own", "Resources": head}])
    monkeypatch.setattr(ray_adapter, "is_driver_on", lambda node: True)
    assert shares.read_cluster(autoscaled=True).gpus == 8
    assert shares.read_cluster(autoscaled=False) == Cluster(2, 0, 2, 0)
    asked = ResourceSettings(gpus_per_trial=1)
    planner = ResourcePlanner(SimpleNamespace(resources=asked), 4, require_gpus=False, address=None)
    assert planner.share.gpus == 0
    with pytest.raises(InputError, match="a trial asks for 1 GPU, but the largest machine of the cluster has 0"):
        ResourcePlanner(SimpleNamespace(resources=asked), 4, require_gpus=True, address=None)
    assert ResourcePlanner(SimpleNamespace(resources=asked), 4, require_gpus=True, address="auto").share.gpus == 1
