"""The machine of the driver is lost, and all of its disk: the study goes on from its storage."""

from __future__ import annotations

import shutil

import pytest

from sweeps.records.events import TERMINAL
from sweeps.storage.remote import list_stored_studies
from tests.support import studies
from tests.support.processes import tracker_pids
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.study]


@pytest.mark.slow
def test_a_study_goes_on_from_its_storage_alone(tmp_path):
    """SIGKILL, then nothing is left but the storage; another folder stands for another machine."""
    uri = (tmp_path / "stored").as_uri()
    first, second = tmp_path / "first", tmp_path / "second"
    longer = (*studies.TINY[:-1], "6", "--set", "train.epochs=4", "--set", "search.stop=none")
    with studies.running(*longer, "--storage", uri, "--out", str(first), "--name", "lost") as process:
        studies.wait_until_ended(first / "lost", 2, process)
        done = {name for name, trial in studies.record(first / "lost").trials.items() if trial.status in TERMINAL}
        parts = tmp_path / "stored" / "lost" / "journal.jsonl.parts"

        def carried() -> bool:
            text = "".join(path.read_text() for path in parts.glob("*"))
            ends = [line for line in text.splitlines() if '"event":"finished"' in line]
            return all(any(name in line for line in ends) for name in done)

        wait_until(carried, "the ends of two trials in the storage")
        assert process.poll() is None  # the end of this block is a SIGKILL
    wait_until(lambda: not tracker_pids(first / "lost"), "the tracker to see that its driver is gone")
    shutil.rmtree(first)
    assert list_stored_studies(uri) == ["lost"]
    again = studies.run("--resume", "lost", "--storage", uri, "--out", str(second))
    assert again.returncode == 0, again.stdout + again.stderr
    trials = studies.record(second / "lost").trials
    assert len(trials) == 7
    assert all(trial.status in TERMINAL for trial in trials.values())
    assert all(list(trial.epochs) == [1, 2, 3, 4] for trial in trials.values())
    assert all(len(trials[name].attempts) == 1 for name in done)
