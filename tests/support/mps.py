"""A stand-in for NVIDIA's control program: starts, answers and quits as that does, and shares nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sweeps.resources import mps

_PROGRAM = """#!/bin/sh
pid="$CUDA_MPS_PIPE_DIRECTORY/nvidia-cuda-mps-control.pid"
if [ "$1" = -d ]; then
  {start}
  sleep 600 < /dev/null > /dev/null 2>&1 & echo $! > "$pid"
  exit 0
fi
while read -r command; do
  case "$command" in
    get_server_list) echo "{servers}" ;;
    quit) {quit} ;;
  esac
done
"""


def stand_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, start: str = "", servers: str = "4711", quits: bool = True,
    probe: str = "pass",
) -> None:  # fmt: skip
    """Put the stand-in on the PATH, and `probe`, Python that a client runs, in place of the true one's.

    `start` is done, in sh, when it starts; `servers` is what it lists; without `quits` it does not obey.
    """
    program = folder / mps.CONTROL
    quit_ = 'kill $(cat "$pid")' if quits else "sleep 60"
    program.write_text(_PROGRAM.format(start=start, servers=servers, quit=quit_))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{Path('/usr/bin')}:/bin")
    monkeypatch.setattr(mps, "PROBE", (sys.executable, "-c", probe))
