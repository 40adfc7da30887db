"""Functions that inject faults into a running study; tests use each once, `python -m tests.faults` often."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from lowrank.io import save_tensors
from lowrank.utils.cli import ExitCode
from sweeps.records.events import Event
from sweeps.records.journal import truncate_torn_line
from sweeps.records.model import TrialRecord
from sweeps.records.names import CHECKPOINT_FILE, JOURNAL_FILE, TRIALS_FOLDER
from sweeps.teachers.cache_options import CACHE_FOLDER
from tests.faults.scene import (
    COMPILED,
    DISTILLED,
    GRID,
    GROUPED,
    NAME,
    SEARCH,
    SECONDS,
    SHORT,
    STREAMED,
    Question,
    Scene,
    Study,
)
from tests.support import studies
from tests.support.clusters import machines
from tests.support.environment import changed_environment
from tests.support.processes import child_pids, command_line, group_worker_pids, tracker_pids
from tests.support.servers import fill, free_port, may_mount, mlflow_server, small_disk
from tests.support.teachers import small_data, write_teacher
from tests.support.waiting import scaled, wait_until

Injection = Callable[[Scene, Study, random.Random], bool]  # False: the study was over before


@dataclass(frozen=True)
class Fault:
    """`inject` kills or breaks `what` in a running study, and makes sure that the study goes on."""

    name: str
    what: str
    inject: Injection
    questions: tuple[Question, ...] = (GRID, SEARCH)
    prepare: Callable[[Scene], None] = lambda scene: None
    clustered: bool = True  # else the driver starts its own
    shared: bool = True  # whether the cluster is whole afterwards
    finish: Callable[[Scene, Study], None] = lambda scene, study: None
    possible: Callable[[], bool] = lambda: True
    needs: str = ""  # what this machine lacks where it is not possible
    expected: Question | None = None  # whose answer a grid must give without the fault; None: its own


def kill_trial(scene: Scene, study: Study, rng: random.Random) -> bool:
    """SIGKILL for the process of a trial."""
    trial = study.one(rng)
    return trial is not None and _sent(trial.attempts[-1]["pid"], signal.SIGKILL)


def _sent(pid: int, what: signal.Signals) -> bool:
    try:
        os.kill(pid, what)
    except ProcessLookupError:
        return False
    return True


def kill_machine(scene: Scene, study: Study, rng: random.Random) -> bool:
    """SIGKILL for a raylet; another one joins in its place."""
    assert scene.cluster is not None
    if study.over():
        return False
    scene.cluster.kill(rng.choice(scene.cluster.workers))
    scene.cluster.add()
    return True


def kill_driver(scene: Scene, study: Study, rng: random.Random) -> bool:
    """SIGKILL for the command, then `--resume`."""
    if study.over():
        return False
    study.kill()
    study.resume(*scene.location)
    return True


def kill_head(scene: Scene, study: Study, rng: random.Random) -> bool:
    """SIGKILL for all that runs on the head, now and then for the driver too; then `--resume` on another cluster."""
    assert scene.cluster is not None
    if study.over():
        return False
    scene.cluster.kill_head()
    if rng.random() < 0.25:
        study.kill()
    else:
        assert f"--resume {NAME}" in study.end(ExitCode.HEAD_LOST)
    scene.cluster.end()
    scene.cluster = scene.stack.enter_context(machines())
    scene.location = ("--address", scene.cluster.address)
    study.resume(*scene.location)
    return True


def use_server(scene: Scene) -> None:
    scene.extra = {"port": free_port(), "place": scene.folder / "server"}
    scene.extra["server"] = scene.stack.enter_context(ExitStack())
    scene.extra["server"].enter_context(mlflow_server(scene.extra["place"], scene.extra["port"]))
    scene.location = (*scene.location, "--tracking-uri", f"http://127.0.0.1:{scene.extra['port']}")


def kill_server(scene: Scene, study: Study, rng: random.Random) -> bool:
    """SIGKILL for the tracking server while the study goes on; it is started again after a while."""
    study.database = scene.extra["place"] / "mlflow.db"
    if study.over():
        return False
    scene.extra["server"].close()
    time.sleep(rng.uniform(0, 4))  # how long it is away is drawn, as the moment is
    scene.extra["server"].enter_context(mlflow_server(scene.extra["place"], scene.extra["port"]))
    return True


def catch_up(scene: Scene, study: Study) -> None:
    """Bring MLflow up to the journal, as the study's last line says where that is needed."""
    study.database = scene.extra["place"] / "mlflow.db"
    command = [sys.executable, "-m", "sweeps.tracking", str(study.folder)]
    limit = scaled(SECONDS)
    done = subprocess.run(command, cwd=studies.ROOT, capture_output=True, text=True, timeout=limit, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def use_small_disk(scene: Scene) -> None:
    scene.out = scene.stack.enter_context(small_disk(scene.folder / "disk", 64))


def fill_disk(scene: Scene, study: Study, rng: random.Random) -> bool:
    """The disk of the study is full: not even the journal can be written; then there is room again, and `--resume`."""
    if study.over():
        return False
    ballast = fill(scene.out)
    try:
        assert f"--resume {NAME}" in study.end(ExitCode.DISK_FULL)
    finally:
        ballast.unlink()
    wait_until(lambda: not tracker_pids(study.folder), "the old tracker to see that its driver is gone")
    study.resume(*scene.location)
    return True


def damage(path: Path, rng: random.Random) -> str:
    """Damage a file, in a way that is drawn; returns which."""
    content = bytearray(path.read_bytes())
    how = rng.choice(("a bit", "cut short", "empty", "zeros"))
    if how == "a bit":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif how == "zeros":
        start = rng.randrange(len(content))
        content[start : start + 4096] = bytes(len(content[start : start + 4096]))
    else:
        content = content[: 0 if how == "empty" else rng.randrange(len(content))]
    temporary = path.with_name("damaged")
    temporary.write_bytes(content)
    temporary.replace(path)
    return how


def damage_checkpoint(scene: Scene, study: Study, rng: random.Random) -> bool:
    """The newest checkpoint of a trial is damaged, and its process killed before it can write another."""
    return _change_checkpoint(study, rng, lambda path: damage(path, rng))


def replace_checkpoint(scene: Scene, study: Study, rng: random.Random) -> bool:
    """The newest checkpoint of a trial becomes one that this code cannot load, with right checksums."""
    foreign = {"weights of another network": torch.zeros(4)}
    return _change_checkpoint(study, rng, lambda path: save_tensors(path, foreign, {"history": "[]"}))


def _change_checkpoint(study: Study, rng: random.Random, change: Callable[[Path], object]) -> bool:
    """Change the newest checkpoint of a trial whose process stands still, then kill the process."""

    def path(trial: TrialRecord) -> Path:
        return study.folder / TRIALS_FOLDER / trial.trial_id / CHECKPOINT_FILE

    if not study.wait(lambda: any(path(trial).exists() for trial in study.running()), "a checkpoint"):
        return False
    trial = rng.choice([trial for trial in study.running() if path(trial).exists()] or [None])
    if trial is None or not _sent(trial.attempts[-1]["pid"], signal.SIGSTOP):
        return False
    present = path(trial).exists()
    if present:
        change(path(trial))
    return _sent(trial.attempts[-1]["pid"], signal.SIGKILL) and present


def strike_journal(change: Callable[[list[bytes], int, random.Random], None], what: str) -> Injection:
    """The driver is killed and its journal damaged; a resume names the line, a repair and a resume go on.

    The line is an epoch of a trial that goes on: what a trial has trained lies in its checkpoint too.
    """

    def strike(scene: Scene, study: Study, rng: random.Random) -> bool:
        if study.one(rng) is None:
            return False
        study.kill()
        wait_until(lambda: not tracker_pids(study.folder), "the old tracker to see that its driver is gone")
        path = study.folder / JOURNAL_FILE
        truncate_torn_line(path)  # as every resume does; here the lines are to be whole
        unfinished = {name for name, trial in studies.record(study.folder).trials.items() if not trial.ended}
        lines = path.read_bytes().splitlines(keepends=True)
        events = [json.loads(line) for line in lines]
        epochs = [number for number, event in enumerate(events[:-1])
                  if event["event"] == Event.EPOCH and event["trial"] in unfinished]  # fmt: skip
        if not epochs:
            study.resume(*scene.location)
            return False
        change(lines, rng.choice(epochs), rng)
        path.write_bytes(b"".join(lines))
        study.resume(*scene.location)
        message = study.end(ExitCode.BAD_INPUT)
        assert what in message, message
        assert "python -m analysis repair" in message, message
        repair = [sys.executable, "-m", "analysis", "repair", str(study.folder)]
        done = subprocess.run(
            repair, cwd=studies.ROOT, capture_output=True, text=True, timeout=scaled(SECONDS), check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        study.resume(*scene.location)
        return True

    return strike


def change_digit(lines: list[bytes], number: int, rng: random.Random) -> None:
    """Change a digit of a line."""
    line = bytearray(lines[number])
    place = rng.choice([place for place, byte in enumerate(line) if chr(byte).isdigit()])
    line[place] = ord(str((int(chr(line[place])) + rng.randrange(1, 10)) % 10))
    lines[number] = bytes(line)


def double_or_lose_line(lines: list[bytes], number: int, rng: random.Random) -> None:
    """A line is there twice, or not at all."""
    if rng.random() < 0.5:
        lines.insert(number, lines[number])
    else:
        del lines[number]


def use_relay(scene: Scene) -> None:
    scene.location = (*scene.location, "--storage", (scene.folder / "stored").as_uri())


def kill_relay(scene: Scene, study: Study, rng: random.Random) -> bool:
    """SIGKILL for the process that stores the checkpoints of all machines on the driver's."""
    if study.one(rng) is None:
        return False
    assert scene.cluster is not None
    relays = [pid for pid in scene.cluster.worker_pids() if command_line(pid).startswith("ray::_Relay")]
    return bool(relays) and _sent(rng.choice(relays), signal.SIGKILL)


LIMITS = "LIMITS_OF_WAITS"  # the environment variable that holds the limits as JSON: {module: {name: seconds}}
_LIMIT_SOURCE = f"""
import importlib.abc, importlib.machinery, json, os, sys
_limits = json.loads(os.environ["{LIMITS}"])

class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in _limits:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            for key, value in _limits[name].items():
                assert hasattr(module, key), key
                setattr(module, key, value)

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, _Finder())
"""


def use_short_limits(**limits: dict[str, float]) -> Callable[[Scene], None]:
    """Every Python process of the study waits less long; `__` stands for a dot in the names of modules."""

    def prepare(scene: Scene) -> None:
        content = json.dumps({name.replace("__", "."): values for name, values in limits.items()})
        _customise(scene, _LIMIT_SOURCE, LIMITS, content)

    return prepare


def hang_group(scene: Scene, study: Study, rng: random.Random) -> bool:
    """SIGSTOP for one of the processes that train a trial together: the others wait for it."""
    trial = study.one(rng)
    if trial is None:
        return False
    pids = group_worker_pids(trial.attempts[-1]["pid"])
    return bool(pids) and _sent(rng.choice(pids), signal.SIGSTOP)


_HANGING = """#!/bin/sh
for word in "$@"; do
  case "$word" in *.so|*.o|*.gch) echo $$ >> "$0.hung"; kill -STOP $$;; esac
done
exec {compiler} "$@"
"""


def use_hanging_compiler(scene: Scene) -> None:
    """The C++ compiler answers what it is asked about itself, and hangs where it is to compile."""
    use_short_limits(lowrank__training__engine__compiler_watch={"HANG_SECONDS": 8.0})(scene)
    compiler = scene.folder / "g++"
    compiler.write_text(_HANGING.format(compiler=shutil.which("g++")))
    compiler.chmod(0o755)
    scene.extra["hung"] = Path(f"{compiler}.hung")
    cache = str(scene.folder / "compiled")
    scene.stack.enter_context(changed_environment({"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": cache}))


def hang_compiler(scene: Scene, study: Study, rng: random.Random) -> bool:
    """SIGKILL for a trial's process; in the next one, which compiles anew, the compiler hangs."""
    before = _hung_compilers(scene)
    return kill_trial(scene, study, rng) and study.wait(
        lambda: _hung_compilers(scene) - before, "a process that compiles a network"
    )


def _hung_compilers(scene: Scene) -> set[str]:
    """Return the ids of the compilers that have stopped so far."""
    path = scene.extra["hung"]
    return set(path.read_text().split()) if path.exists() else set()


def use_teacher(scene: Scene) -> None:
    write_teacher(scene.folder / "teachers", "good", small_data())
    scene.location = (*scene.location, "--teachers", str(scene.folder / "teachers"))


def damage_cache(scene: Scene, study: Study, rng: random.Random) -> bool:
    """A file of the teacher cache that some running trial has yet to read is damaged."""
    if study.one(rng) is None:
        return False
    least = max(trial.last_epoch for trial in studies.record(study.folder).trials.values() if not trial.ended)
    slots = sorted((study.out / CACHE_FOLDER).glob("*/*/slot_*.arrow"))
    ahead = [slot for slot in slots if int(slot.stem.removeprefix("slot_")) > least + 1]
    damage(rng.choice(ahead or slots[:1]), rng)
    return True


def noticed(what: str) -> Callable[[Scene, Study], None]:
    """Damage that nobody has seen proves nothing."""

    def look(scene: Scene, study: Study) -> None:
        notices = [text for trial in studies.record(study.folder).trials.values() for text in trial.notices]
        assert not scene.injections or any(what in text for text in notices), notices

    return look


def hang_loader(scene: Scene, study: Study, rng: random.Random) -> bool:
    """SIGSTOP for the processes that decode a trial's images: they neither deliver nor end."""
    stopped: list[int] = []

    def hangs() -> bool:  # a trial's process has no other children, and these live as long as an epoch
        for trial in study.running():
            stopped.extend(pid for pid in child_pids(trial.attempts[-1]["pid"]) if _sent(pid, signal.SIGSTOP))
            if stopped:
                break
        return bool(stopped)

    return study.wait(hangs, "processes that decode images")


JUMP = "JUMPING_CLOCK"  # the environment variable that names the file with the seconds that the clock is off
_SOURCE = f"""
import os, time
_path, _true, _true_ns = os.environ["{JUMP}"], time.time, time.time_ns

def _off():
    try:
        return float(open(_path).read() or 0)
    except OSError:
        return 0.0

time.time = lambda: _true() + _off()
time.time_ns = lambda: _true_ns() + int(_off() * 1e9)
"""


def use_jumping_clock(scene: Scene) -> None:
    """Every Python process of the study reads a clock that the test can set."""
    scene.extra["file"] = scene.folder / "offset"
    _customise(scene, _SOURCE, JUMP, str(scene.extra["file"]))


def _customise(scene: Scene, source: str, variable: str, value: str) -> None:
    """Have every Python process of the study run some code at its start, and read a variable."""
    place = scene.folder / "customised"
    place.mkdir()
    (place / "sitecustomize.py").write_text(source)
    path = os.pathsep.join([str(place), str(studies.ROOT), os.environ.get("PYTHONPATH", "")])
    scene.stack.enter_context(changed_environment({variable: value, "PYTHONPATH": path}))


def jump(scene: Scene, study: Study, rng: random.Random) -> bool:
    """The clock of every Python process jumps, by up to a year, forwards or back; at times the driver is killed too."""
    if study.over():
        return False
    seconds = rng.choice((-1, 1)) * 10 ** rng.uniform(2, 7.5)
    temporary = scene.extra["file"].with_suffix(".new")
    temporary.write_text(str(seconds))
    temporary.replace(scene.extra["file"])
    if rng.random() < 0.25:
        return kill_driver(scene, study, rng)
    return True


FAULTS = (
    Fault("trial", "a trial's process, SIGKILL", kill_trial, clustered=False),
    Fault("machine", "a worker machine, its raylet, SIGKILL", kill_machine),
    Fault("driver", "the driver, SIGKILL; resumed", kill_driver, clustered=False),
    Fault("head", "the cluster's head, SIGKILL; resumed on another cluster", kill_head, shared=False),
    Fault("server", "the tracking server, SIGKILL; started again", kill_server, prepare=use_server, finish=catch_up),
    Fault("disk", "nothing: the study's disk is full; resumed", fill_disk, prepare=use_small_disk, possible=may_mount,
          needs="a small disk can only be mounted by root"),
    Fault("checkpoint", "a trial's process, its newest checkpoint damaged", damage_checkpoint,
          finish=noticed("is not usable")),
    Fault("unreadable checkpoint", "a trial's process, its newest checkpoint one that the code cannot load",
          replace_checkpoint, finish=noticed("is not usable")),
    Fault("journal digit", "the driver, a digit of its journal changed; repaired, resumed",
          strike_journal(change_digit, "is damaged"), clustered=False),
    Fault("journal line", "the driver, a line of its journal doubled or lost; repaired, resumed",
          strike_journal(double_or_lose_line, "is damaged"), clustered=False),
    Fault("relay", "the relay of checkpoints on the driver's machine, SIGKILL", kill_relay, prepare=use_relay),
    Fault("group", "nothing: one of the processes that train a trial together stops", hang_group, (GROUPED,),
          prepare=use_short_limits(sweeps__execution__heartbeat={"HANG_SECONDS": 10.0}), clustered=False),
    Fault("hung compiler", "a trial's process, SIGKILL; the compiler that its next one starts stops", hang_compiler,
          (COMPILED,), prepare=use_hanging_compiler, finish=noticed("the compiler did nothing for 8 s"),
          clustered=False, possible=lambda: shutil.which("g++") is not None, needs="there is no g++", expected=SHORT),
    Fault("cache", "nothing: a file of the teacher cache is damaged", damage_cache, (DISTILLED,), prepare=use_teacher,
          finish=noticed("are damaged and are built again")),
    Fault("loader", "nothing: the processes that load a trial's images stop", hang_loader, (STREAMED,)),
    Fault("clock", "nothing: the clock jumps; at times the driver, resumed", jump, prepare=use_jumping_clock,
          clustered=False),
)  # fmt: skip
