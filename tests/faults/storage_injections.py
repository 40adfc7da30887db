"""Faults of a stored study: taken over while its driver lives, a slow round, a poor bucket, lost parts and files."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from lowrank.utils.cli import ExitCode
from sweeps.records.events import Status
from sweeps.records.names import CHECKPOINT_FILE, MLFLOW_FILE, TRIALS_FOLDER
from sweeps.storage.remote import Storage
from tests.faults.injections import Fault
from tests.faults.scene import GRID, NAME, SECONDS, Question, Scene, Study
from tests.support import studies
from tests.support.buckets import CREDENTIALS, bucket
from tests.support.environment import changed_environment
from tests.support.waiting import scaled, wait_until

STORED = Question("stored grid", (*GRID.options, "--set", "method.dims=2"), 3)
GATE = "SLOW_STORAGE"  # the environment variable that names a file: while it is there, the storage takes no checkpoint
LEASE_SECONDS = 20.0  # instead of a minute, so that a takeover need not wait so long
_SOURCE = f"""
import os, sys, time
from pathlib import Path

if any(word.endswith("sweeps/run.py") for word in sys.orig_argv):
    import sweeps.storage.lease as lease, sweeps.storage.mirror as mirror, sweeps.storage.remote as remote

    lease.LEASE_SECONDS, mirror.RENEW_SECONDS = {LEASE_SECONDS}, 3.0
    put, gate = remote.Storage.put, Path(os.environ["{GATE}"])

    def slow(self, name, content):
        while name.startswith("trials/") and gate.exists():
            gate.with_suffix(".waits").touch()
            time.sleep(0.1)
        put(self, name, content)

    remote.Storage.put = slow
"""


def use_folder(scene: Scene) -> None:
    """A folder is the storage; drivers hold a shorter lease and can be made to wait for the storage."""
    place = scene.folder / "hooks"
    place.mkdir()
    (place / "sitecustomize.py").write_text(_SOURCE)
    scene.extra = {"uri": (scene.folder / "stored").as_uri(), "gate": place / "gate", "machines": 1}
    path = os.pathsep.join([str(place), str(studies.ROOT), os.environ.get("PYTHONPATH", "")])
    scene.stack.enter_context(changed_environment({GATE: str(scene.extra["gate"]), "PYTHONPATH": path}))
    scene.location = ("--storage", scene.extra["uri"])


def use_poor_bucket(scene: Scene) -> None:
    """A bucket that takes the condition of a put and does not look at it."""
    scene.stack.enter_context(changed_environment(CREDENTIALS))
    scene.extra = {"uri": scene.stack.enter_context(bucket(conditional=False)), "machines": 1}
    scene.location = ("--storage", scene.extra["uri"])


def stored(scene: Scene) -> Storage:
    return Storage(scene.extra["uri"], NAME)


def is_stored(scene: Scene, study: Study) -> bool:
    """Wait until something of the journal is stored; False when the study ends before that."""
    return study.wait(lambda: stored(scene).names("journal.jsonl.parts"), "a part of the journal in the storage")


def elsewhere(scene: Scene) -> Path:
    """A folder of studies on a machine that knows nothing of the study yet."""
    scene.extra["machines"] += 1
    return scene.folder / f"machine_{scene.extra['machines']}"


def go_on(study: Study, out: Path, process: subprocess.Popen[str]) -> None:
    """The study is run by `process` in `out` from now on."""
    study.out, study.folder, study.process = out, out / NAME, process
    study.database = study.folder / MLFLOW_FILE


def resume(scene: Scene, out: Path) -> subprocess.Popen[str]:
    return studies.start("--resume", NAME, "--out", str(out), *scene.location)


def take_over(scene: Scene, study: Study, rng: random.Random) -> bool:
    """The driver's machine sleeps for longer than its lease, and wakes up after another one has taken the study."""
    if not is_stored(scene, study) or study.process is None or study.over():
        return False
    first, began = study.process, time.monotonic()
    os.kill(first.pid, signal.SIGSTOP)
    wait_until(lambda: time.monotonic() - began > LEASE_SECONDS + 1, "the end of the lease")
    out = elsewhere(scene)
    second = resume(scene, out)
    claims = sorted(stored(scene).names("driver.claims"))
    wait_until(
        lambda: sorted(stored(scene).names("driver.claims")) != claims, "the claim of the second driver",
        unless=lambda: studies.has_ended(second),
    )  # fmt: skip
    os.kill(first.pid, signal.SIGCONT)
    text, _ = first.communicate(timeout=scaled(SECONDS))
    assert first.returncode == ExitCode.STUDY_LOST, f"exit code {first.returncode}: {text[-3000:]}"
    assert f"has taken {NAME!r} over; its trials were stopped" in text
    assert "Traceback" not in text
    assert "trying on" not in text  # that would be an outage
    go_on(study, out, second)
    return True


def slow_round(scene: Scene, study: Study, rng: random.Random) -> bool:
    """A round takes longer than the lease; another machine tries to take the study and must not get it."""
    waits = scene.extra["gate"].with_suffix(".waits")
    waits.unlink(missing_ok=True)
    scene.extra["gate"].touch()
    try:
        if not study.wait(waits.exists, "a checkpoint on its way to the storage"):
            return False
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > LEASE_SECONDS + 1, "a round that outlasts the lease")
        if study.over():
            return False
        done = studies.run("--resume", NAME, "--out", str(elsewhere(scene)), *scene.location, seconds=SECONDS)
        assert done.returncode == ExitCode.BAD_INPUT, done.stdout + done.stderr
        assert f"the study {NAME!r} is being run by" in done.stderr
    finally:
        scene.extra["gate"].unlink()
    return not study.over()


def resume_twice(scene: Scene, study: Study, rng: random.Random) -> bool:
    """SIGKILL for the driver and its disk is lost; two machines resume the study at the same moment."""
    if not is_stored(scene, study) or study.over():
        return False
    study.kill()
    while not (alive := race(scene)):  # on a busy machine both may have been too slow to claim it
        pass
    assert len(alive) == 1, "two drivers run one study"
    go_on(study, *alive[0])
    return True


def race(scene: Scene) -> list[tuple[Path, subprocess.Popen[str]]]:
    """Two machines resume the study at the same moment; returns those that are not refused."""
    rivals = [(out, resume(scene, out)) for out in (elsewhere(scene), elsewhere(scene))]

    def is_decided() -> bool:  # a driver fetches the journal when it has the study
        refused = any(process.poll() is not None for _, process in rivals)
        return refused or not any(studies.record(out / NAME).header.is_empty for out, _ in rivals)

    wait_until(is_decided, "one of two drivers to be refused", seconds=SECONDS)
    ended = [process for _, process in rivals if process.poll() is not None]
    for process in ended:
        text, _ = process.communicate()
        assert process.returncode == ExitCode.BAD_INPUT, text
        assert "is being run by" in text or "try again" in text, text
    return [(out, process) for out, process in rivals if process not in ended]


def lose_part(scene: Scene, study: Study, rng: random.Random) -> bool:
    """SIGKILL for the driver; a part of the journal is lost. Only the machine that has all of it can go on."""
    if not is_stored(scene, study) or study.over():
        return False
    study.kill()
    stored(scene).delete(rng.choice(sorted(stored(scene).names("journal.jsonl.parts"))))
    out = elsewhere(scene)
    done = studies.run("--resume", NAME, "--out", str(out), *scene.location, seconds=SECONDS)
    assert done.returncode == ExitCode.BAD_INPUT, done.stdout + done.stderr
    assert "journal.jsonl is not whole" in done.stderr
    assert not out.exists()
    study.resume(*scene.location)
    return True


def remove_trials(scene: Scene, study: Study, rng: random.Random) -> bool:
    """SIGKILL for the driver; the weights that the storage has are removed here.

    Those of a trial that has ended since the last round are here alone, and would be lost.
    """
    folder = study.folder / TRIALS_FOLDER  # which a resumed driver fetches first

    def has_weights() -> bool:
        return bool(stored(scene).names(TRIALS_FOLDER)) and folder.is_dir()

    if not study.wait(has_weights, "weights here and in the storage") or study.over():
        return False
    study.kill()
    names = stored(scene).names(TRIALS_FOLDER)
    files = {path: path.relative_to(study.folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    copies = [path for path, name in files.items() if name in names and stored(scene).get(name) == path.read_bytes()]
    for path in copies:
        path.unlink()
    if len(copies) == len(files):
        shutil.rmtree(folder)
    study.resume(*scene.location)
    return bool(copies)


def has_all(scene: Scene, study: Study) -> None:
    """Bring MLflow up to the journal; the folder and the storage have the weights of every completed trial."""
    command = [sys.executable, "-m", "sweeps.tracking", str(study.folder)]
    done = subprocess.run(
        command, cwd=studies.ROOT, capture_output=True, text=True, timeout=scaled(SECONDS), check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    names = stored(scene).names(TRIALS_FOLDER)
    for trial_id, trial in studies.record(study.folder).trials.items():
        if trial.status is Status.COMPLETED:
            name = f"{TRIALS_FOLDER}/{trial_id}/{CHECKPOINT_FILE}"
            assert (study.folder / name).is_file(), f"{name} is lost"
            assert name in names, f"{name} is lost in the storage"
    assert stored(scene).read_parts("journal.jsonl") == (study.folder / "journal.jsonl").read_bytes()


STORAGE_FAULTS = (
    Fault("takeover", "nothing: a sleeping driver's study is taken over by another machine", take_over, (STORED,),
          prepare=use_folder, finish=has_all, clustered=False),
    Fault("round", "nothing: a round of the storage outlasts the lease, another machine tries", slow_round, (STORED,),
          prepare=use_folder, finish=has_all, clustered=False),
    Fault("bucket", "the driver and its disk; two machines resume from a bucket without conditional put", resume_twice,
          (STORED,), prepare=use_poor_bucket, finish=has_all, clustered=False),
    Fault("part", "the driver, SIGKILL; a stored part of the journal is lost", lose_part, (STORED,),
          prepare=use_folder, finish=has_all, clustered=False),
    Fault("weights", "the driver, SIGKILL; its folder trials/ is lost", remove_trials, (STORED,),
          prepare=use_folder, finish=has_all, clustered=False),
)  # fmt: skip
