"""Shares of the cluster: impossible requests are refused, trials spread before they share a card."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config

from lowrank.errors import InputError
from sweeps.cluster.cluster_file import CLUSTER_FILE
from sweeps.resources import shares as resources
from sweeps.resources.shares import Cluster, Share, choose_share, larger, planned_machines, share_of
from sweeps.space.settings import ResourceSettings

LAPTOP = Cluster(cpus=2, gpus=0, most_cpus=2, most_gpus=0)
TWO_CARDS = Cluster(cpus=32, gpus=2, most_cpus=32, most_gpus=2)


@pytest.mark.parametrize(
    ("cluster", "asked", "trials", "gpus", "concurrent"),
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
def test_shares(cluster, asked, trials, gpus, concurrent):
    share = choose_share(cluster, cpus=1, gpus=asked, trials=trials)
    assert (share.gpus, share.concurrent) == (gpus, concurrent)


def test_the_user_may_allow_fewer_at_once_and_they_spread():
    share = choose_share(TWO_CARDS, cpus=1, gpus=0.25, trials=24, most=2)
    assert (share.gpus, share.concurrent) == (1.0, 2)


@pytest.mark.parametrize(
    ("cluster", "cpus", "gpus", "message"),
    [
        (LAPTOP, 4, 0, "a trial asks for 4 CPUs, but the largest machine of the cluster has 2"),
        (LAPTOP, 1, 1, "a trial asks for 1 GPUs, but the largest machine of the cluster has 0"),
        (TWO_CARDS, 1, 3, "a trial asks for 3 GPUs, but the largest machine of the cluster has 2"),
        (TWO_CARDS, 1, 0.001, "must be 0, a share from 0.01 to 1, or a whole number, but got 0.001"),
        (TWO_CARDS, 1, 1.5, "must be 0, a share from 0.01 to 1, or a whole number, but got 1.5"),
    ],
)
def test_a_request_that_can_never_be_met_is_refused(cluster, cpus, gpus, message):
    with pytest.raises(InputError, match=message):
        choose_share(cluster, cpus=cpus, gpus=gpus, trials=4, gpus_asked=True)


@pytest.mark.parametrize(
    ("cluster", "gpus", "asked", "processes"),
    [(TWO_CARDS, 2, None, 2), (TWO_CARDS, 0.5, None, 1), (LAPTOP, 0, 2, 2), (LAPTOP, 2, None, 1), (TWO_CARDS, 2, 2, 2)],
)
def test_a_trial_of_several_cards_has_a_process_on_each(cluster, gpus, asked, processes):
    assert choose_share(cluster, cpus=1, gpus=gpus, trials=4, processes=asked).processes == processes


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
def test_what_ran_out_of_memory_gets_twice_the_share_at_least_or_a_whole_card(cluster, share, expected):
    assert larger(share, cluster, trials=24) == expected


def test_auto_is_a_whole_card_until_it_is_measured_and_trials_still_spread():
    asked = ResourceSettings(gpus_per_trial="auto")
    assert share_of(asked, TWO_CARDS, 24, gpus_asked=True) == Share(1, 1.0, 2)
    assert share_of(asked, TWO_CARDS, 24, gpus_asked=True, measured=1 / 8) == Share(1, 1 / 8, 16)
    assert share_of(asked, TWO_CARDS, 2, gpus_asked=True, measured=1 / 8) == Share(1, 1.0, 2)
    assert share_of(asked, LAPTOP, 24, gpus_asked=True) == Share(1, 0.0, 2)


def test_a_cluster_at_rest_counts_the_machines_that_it_may_start(tmp_path):
    """The repository's cluster file, as `ray up` leaves it on the head: eight workers with a card each."""
    path = tmp_path / "ray_bootstrap_config.yaml"
    path.write_text(yaml.safe_dump(prepare_config(yaml.safe_load(CLUSTER_FILE.read_text()))))
    planned = planned_machines(path)
    assert planned == [{"CPU": 4, "GPU": 1}] * 8
    assert planned_machines(tmp_path / "none") == []


@pytest.mark.parametrize("planned", [[], [{"CPU": 4, "GPU": 1}] * 8])
def test_the_head_alone_does_not_make_a_study_small(monkeypatch, planned):
    head = {"CPU": 0.0, "node:__internal_head__": 1.0}
    alive = [{"Alive": True, "NodeID": "own", "Resources": head}, {"Alive": False, "NodeID": "x", "Resources": {}}]
    monkeypatch.setattr(resources.ray, "nodes", lambda: alive)
    monkeypatch.setattr(resources.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "own"))
    monkeypatch.setattr(resources, "planned_machines", lambda path: planned)
    found = resources.read_cluster()
    assert (found.cpus, found.gpus, found.most_gpus) == ((32, 8, 1) if planned else (0, 0, 0))
