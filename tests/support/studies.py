"""Runs real small studies through the real command, for the end-to-end and fault tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sweeps.records.events import TERMINAL
from sweeps.records.load import fold_journal
from sweeps.records.model import StudyRecord
from sweeps.records.names import JOURNAL_FILE
from tests.support.waiting import PATIENCE_SECONDS, scaled, wait_until

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "--space", "tt_dims", "--set", "network.width=0.125", "--set", "data.train_images=200", "--set", "train.epochs=2",
    "--set", "budget.params={choice: [0.4, 0.7]}", "--set", "references=[separable]", "--trials", "4",
)  # fmt: skip


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "sweeps" / "run.py"), *arguments]


def run(*arguments: str, seconds: float = 240) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, which must come within `seconds`, scaled."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=scaled(seconds), check=False)


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start the command in a process group of its own, as a shell would."""
    return subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command while the block runs; whatever is left of its process then goes."""
    process = start(*arguments)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def record(folder: Path) -> StudyRecord:
    journal = folder / JOURNAL_FILE
    return fold_journal(journal) if journal.exists() else StudyRecord()


def ended(folder: Path) -> int:
    return sum(trial.status in TERMINAL for trial in record(folder).trials.values())


def wait_until_ended(folder: Path, trials: int, process: subprocess.Popen[str]) -> None:
    """Wait until so many trials of the study that `process` runs have ended."""
    wait_until(lambda: ended(folder) >= trials, f"the end of {trials} trials", unless=lambda: has_ended(process))


def has_ended(process: subprocess.Popen[str]) -> str:
    """Return what the command printed before it ended; nothing while it runs."""
    if process.poll() is None:
        return ""
    try:
        output, _ = process.communicate(timeout=scaled(10))
    except subprocess.TimeoutExpired:  # a process that it has left holds its output open
        output = ""
    return f"the command has ended with {process.returncode}: {output[-3000:]}"


def finish(process: subprocess.Popen[str], seconds: float = PATIENCE_SECONDS) -> str:
    """Wait for the end of the command; returns what it has printed."""
    output, _ = process.communicate(timeout=scaled(seconds))
    return output
