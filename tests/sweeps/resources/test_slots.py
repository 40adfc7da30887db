"""What each trial holds: planned from the cluster, and from a measurement where the space says `auto`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sweeps.records.model import StudyRecord
from sweeps.resources import slots
from sweeps.resources.gpu_packing import Limit, Throughput, choose_count
from sweeps.resources.mps import MPS, PROCESSES
from sweeps.resources.shares import Cluster, Share
from sweeps.resources.slots import ResourcePlanner
from sweeps.space.parse import parse_space

NO_CARDS = Cluster(cpus=4, gpus=0, max_cpus=4, max_gpus=0)
CARDS = Cluster(cpus=32, gpus=2, max_cpus=16, max_gpus=1)
Planners = Callable[..., ResourcePlanner]


@pytest.fixture
def planner(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Planners:
    """Plans for 24 trials of a space on a cluster, without Ray."""

    def make(cluster: Cluster, **resources: Any) -> ResourcePlanner:
        monkeypatch.setattr(slots, "read_cluster", lambda: cluster)
        return ResourcePlanner(parse_space("small", {**content, "resources": resources}), 24, require_gpus=False)

    return make


def test_where_there_is_no_card_auto_says_so_and_measures_nothing(planner, resolver, monkeypatch, capsys):
    planned = planner(NO_CARDS, gpus_per_trial="auto")
    assert capsys.readouterr().out == "gpus_per_trial auto: there is no GPU here, so trials run on CPUs\n"
    monkeypatch.setattr(slots, "choose_packing", lambda *_: pytest.fail("there is nothing to measure"))
    with planned.sharing_modes(None) as modes:
        resources = planned.resolve(resolver, None, StudyRecord(), None, modes)
    assert (resources.share, resources.larger) == (Share(1, 0, 4), Share(2, 0, 2))
    assert resources.sharing == (PROCESSES, {})
    assert resources.as_event() == {"slots": 4, "cpus": 1, "gpus": 0, "sharing": "processes"}


def test_auto_gives_each_trial_the_share_and_the_mode_that_were_measured(planner, resolver, monkeypatch, capsys):
    packing = choose_count(lambda count: Throughput(count, 100.0 * count, 2000.0, MPS), Limit(4, "4"), None, None)
    monkeypatch.setattr(slots, "choose_packing", lambda *_: packing)
    planned = planner(CARDS, gpus_per_trial="auto")
    assert planned.share.gpus == 1  # a whole card until it is measured
    resources = planned.resolve(resolver, None, StudyRecord(), None, {PROCESSES: {}, MPS: {"PIPE": "here"}})
    assert (resources.share, resources.larger) == (Share(1, 0.25, 8), Share(1, 0.5, 4))
    assert resources.sharing == (MPS, {"PIPE": "here"})
    assert resources.as_event() == {"slots": 8, "cpus": 1, "gpus": 0.25, "sharing": "mps"}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("cluster", "resources", "lines"),
    [
        (CARDS, {"gpus_per_trial": 0.5, "sharing": "mps"}, 1),
        (CARDS, {"gpus_per_trial": "auto"}, 1),
        (CARDS, {"gpus_per_trial": 0.5}, 0),  # `auto` is a matter of measurement
        (CARDS, {"gpus_per_trial": 1, "sharing": "mps"}, 0),
        (NO_CARDS, {"gpus_per_trial": 0.5, "sharing": "mps"}, 0),
    ],
)
def test_the_service_is_only_asked_for_where_trials_share_a_card(planner, capsys, cluster, resources, lines):
    """On a cluster of several machines it is never started, which is said."""
    with planner(cluster, **resources).sharing_modes("head:6379") as modes:
        assert modes == {PROCESSES: {}}
    assert capsys.readouterr().out.count("no multi-process service (it is started on this machine alone") == lines
