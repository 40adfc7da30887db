"""What a process may use: cores and memory, within the limits of its control groups."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from lowrank.utils import locks, processes

MIB = 2**20


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 8 cores with 1,000 MiB available."""
    monkeypatch.setattr(processes, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(processes, "_CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda _: set(range(8)))
    write(tmp_path / "proc" / "meminfo", f"MemTotal: 9999999 kB\nMemAvailable: {1000 * 1024} kB\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def version_2(machine: Path, group: str, cores: str = "max 100000", limit: str = "max", used: int = 0) -> None:
    write(machine / "proc" / "self" / "cgroup", "0::/outer/inner\n")
    folder = machine / "groups" / group
    write(folder / "cpu.max", cores)
    write(folder / "memory.max", limit)
    write(folder / "memory.current", str(used))
    write(folder / "memory.stat", f"anon 5\ninactive_file {10 * MIB}\n")


def test_without_control_groups_affinity_and_the_machine_decide(machine: Path, monkeypatch: pytest.MonkeyPatch):
    assert processes.usable_cores() == 8
    assert processes.available_mb() == pytest.approx(1000 * MIB / 1e6)
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda _: {3})
    assert processes.usable_cores() == 1


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1)]
)
@pytest.mark.parametrize("group", ["outer/inner", "outer", "."])
def test_a_quota_of_processor_time(machine: Path, group: str, quota: str, cores: int):
    version_2(machine, group, cores=quota)
    assert processes.usable_cores() == cores


@pytest.mark.parametrize("group", ["outer/inner", "outer", "."])
def test_a_limit_of_memory(machine: Path, group: str):
    version_2(machine, group, limit=str(300 * MIB), used=120 * MIB)
    assert processes.available_mb() == pytest.approx(190 * MIB / 1e6)  # cached files can be dropped
    version_2(machine, group, limit=str(300 * MIB), used=400 * MIB)
    assert processes.available_mb() == 0
    version_2(machine, group, limit="max", used=400 * MIB)
    assert processes.available_mb() == pytest.approx(1000 * MIB / 1e6)


def test_version_1_of_control_groups(machine: Path):
    write(machine / "proc" / "self" / "cgroup", "9:name=systemd:/x\n4:memory:/box\n2:cpu,cpuacct:/box\n0::/\n")
    write(machine / "groups" / "cpu,cpuacct" / "box" / "cpu.cfs_quota_us", "300000\n")
    write(machine / "groups" / "cpu,cpuacct" / "box" / "cpu.cfs_period_us", "100000\n")
    write(machine / "groups" / "cpu,cpuacct" / "cpu.cfs_quota_us", "-1\n")
    write(machine / "groups" / "cpu,cpuacct" / "cpu.cfs_period_us", "100000\n")
    write(machine / "groups" / "memory" / "box" / "memory.limit_in_bytes", str(100 * MIB))
    write(machine / "groups" / "memory" / "box" / "memory.usage_in_bytes", str(60 * MIB))
    write(machine / "groups" / "memory" / "box" / "memory.stat", f"total_inactive_file {20 * MIB}\n")
    assert processes.usable_cores() == 3
    assert processes.available_mb() == pytest.approx(60 * MIB / 1e6)


def test_a_system_without_proc(machine: Path):
    (machine / "proc" / "meminfo").unlink()
    assert processes.available_mb() is None


def test_processes_below_one_are_listed_through_all_generations():
    """A shell, which has started a shell, which has started two programs; each says its process id."""
    program = "echo $$; sh -c 'echo $$; sleep 600 & echo $!; sleep 600 & echo $!; wait'; true"
    with subprocess.Popen(["sh", "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        outer, inner, *programs = (int(process.stdout.readline()) for _ in range(4))
        below = processes.child_processes(os.getpid())
        without = processes.child_processes(os.getpid(), without=[inner])
        for pid in (outer, inner, *programs):
            os.kill(pid, signal.SIGKILL)
    assert {outer, inner, *programs} <= set(below)
    assert below.index(outer) < below.index(inner) < below.index(programs[0])
    assert outer in without
    assert not {inner, *programs} & set(without)


def test_without_git_the_commit_is_unknown_and_no_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(processes, "_PROJECT", tmp_path)  # where no package is installed
    assert processes.commit() == "unknown"


def test_an_installed_copy_says_its_version(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(processes, "_PROJECT", tmp_path)
    name = processes.DISTRIBUTION
    write(tmp_path / f"{name.replace('-', '_')}-1.2.3.dist-info" / "METADATA", f"Name: {name}\nVersion: 1.2.3\n")
    assert processes.commit() == f"{name}-1.2.3"


def test_a_process_that_waits_uses_a_little_time_and_gets_on_nowhere(monkeypatch: pytest.MonkeyPatch):
    """Two processes in 100 s: 0.3 % of a core each is no progress, as is one that computes alone for 3 s."""
    monkeypatch.setattr(processes.os, "sysconf", lambda name: 100)
    used = {1: 1000, 2: 1000}
    monkeypatch.setattr(processes, "processor_times", lambda pids: {pid: used[pid] for pid in pids})
    clock = [0.0]
    monkeypatch.setattr(locks.time, "monotonic", lambda: clock[0])
    for ticks, idle in (({1: 30, 2: 30}, True), ({1: 300, 2: 0}, True), ({1: 400, 2: 200}, False)):
        watch = processes.ProcessorWatch(100.0, [1, 2])
        used = {pid: used[pid] + ticks[pid] for pid in used}
        clock[0] += 101.0
        assert watch.is_idle() == idle
