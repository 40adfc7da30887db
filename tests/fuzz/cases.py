"""Run one case of the fuzzer in this process, and say whether it is a fault."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import random
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from lowrank.utils import run_command
from sweeps.run import main
from sweeps.space import RunOptions, Space
from sweeps.study import for_each_study, parse_options
from tests.fuzz.mutations import mutate_file, random_overrides, random_plan

KINDS = ("file", "set", "plan")
MESSAGE_CHARACTERS = 300
MESSAGE_LINES = 2


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one case may use: seconds of one core, and megabytes (1e6 bytes) above those of the process before it."""

    seconds: float
    megabytes: float


LIMITS = {"file": Limits(2, 200), "set": Limits(2, 200), "plan": Limits(10, 1000)}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a case ended; `fault` is empty where all is well, `detail` has the message or the traceback."""

    fault: str
    detail: str
    code: int | None
    seconds: float
    megabytes: float


def make_arguments(kind: str, seed: int, index: int, folder: Path) -> list[str]:
    """Make the command line of a case; the space file of the kind `file` is written to `folder`."""
    rng = random.Random(f"{seed} {kind} {index}")
    if kind == "set":
        return random_overrides(rng)
    if kind == "plan":
        return random_plan(rng)
    path = folder / "fuzzed.yaml"
    path.write_bytes(mutate_file(rng))
    return ["--space", str(path)]


def run_case(kind: str, arguments: list[str]) -> Outcome:
    """Run a command line: plan it whole, or only read and check its space.

    Args:
        kind: one of KINDS.
        arguments: of `make_arguments`.

    Returns:
        The outcome.
    """
    command: Callable[[], int] = (lambda: main(arguments)) if kind == "plan" else (lambda: _read(arguments))
    output, errors = io.StringIO(), io.StringIO()
    _reset_peak()
    memory, start = _memory("VmRSS"), time.process_time()
    code, detail = None, ""
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            code = command()
        except SystemExit as error:  # of the parser
            code = error.code if isinstance(error.code, int) else None
        except BaseException:
            detail = traceback.format_exc()
    seconds = time.process_time() - start
    megabytes = _memory("VmHWM") - memory
    message = errors.getvalue()
    return Outcome(_fault(kind, code, detail, message, seconds, megabytes), detail or message, code, seconds, megabytes)


def _read(arguments: list[str]) -> int:
    options = parse_options(arguments)
    return run_command(lambda: for_each_study(_do_nothing, options))


def _do_nothing(space: Space, options: RunOptions) -> int:
    return 0


def _fault(kind: str, code: int | None, detail: str, message: str, seconds: float, megabytes: float) -> str:
    if detail:
        return f"traceback: {detail.strip().splitlines()[-1].partition(':')[0]}"
    if code not in (0, 2):
        return f"exit code {code}"
    if code == 2 and not message.strip():
        return "no message"
    if "Traceback" in message:
        return "traceback on standard error"
    if seconds > LIMITS[kind].seconds:
        return "slow"
    if megabytes > LIMITS[kind].megabytes:
        return "memory"
    if len(message.strip()) > MESSAGE_CHARACTERS:
        return "long message"
    return "many lines" if len(message.strip().splitlines()) > MESSAGE_LINES else ""


def _reset_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM starts again at what the process has now


def _memory(field: str) -> float:
    """Megabytes of a field of the process's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0
