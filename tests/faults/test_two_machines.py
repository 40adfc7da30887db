"""`ray up`, a study and `ray down` on a cluster of two machines of one's own, by real ssh, rsync and raylets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.records.events import Status
from sweeps.storage.fetch import fetch_study
from tests.support import studies
from tests.support.waiting import scaled

pytestmark = [pytest.mark.faults, pytest.mark.study]

ROOT = Path(__file__).resolve().parents[2]
ALONE = ("unshare", "--net", "--mount", "--fork", "--kill-child", "--pid", "--mount-proc")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_on_machines_of_ones_own(tmp_path):
    """Trials run on both machines although they share no disk; checkpoints and records come together in the storage."""
    missing = [name for name in ("/usr/sbin/sshd", "rsync", "unshare") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(missing) or 'nothing else'}")
    command = [*ALONE, sys.executable, "-m", "tests.support.two_machines", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=scaled(580), check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["alive"] == 2
    assert seen["raylets"] == 2
    assert seen["raylets_after"] == 0
    assert "No nodes remaining" in seen["down"]
    assert "2 at a time" in seen["study"]
    folder = fetch_study((tmp_path / "stored").as_uri(), "two", tmp_path / "fetched")
    trials = studies.record(folder).trials
    assert [trial.status for trial in trials.values()] == [Status.COMPLETED] * 5
    hosts = {attempt["host"] for trial in trials.values() for attempt in trial.attempts}
    assert hosts == {"machine-127.0.0.1", "machine-127.0.0.2"}
    kept = {path.parent.name for path in folder.glob("trials/*/checkpoint.safetensors")}
    assert kept == set(trials)
