"""The process that prints a study's summary, started before the last trials have ended.

Most of a summary's time goes into imports. While the last trials train, the cores of those that have ended are free for
them.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Self

from lowrank.utils import module_command, module_environment


class SummaryProcess:
    """`python -m analysis summary`, which stands above this package and is not imported by it.

    Inside `with`, a process that was started ends with the block.

    Args:
        folder: of the study.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()  # closes the pipe

    def start(self) -> None:
        """Start the process, unless it has been started; it imports what it needs and waits."""
        if self._process is None:
            command = module_command("analysis", "summary", self._folder, "--when-asked")
            # A session of its own: a Ctrl-C while it waits is for the driver alone
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, env=module_environment(), start_new_session=True
            )

    def run(self) -> int:
        """Print and draw the summary of the study as it is now.

        Returns:
            The exit code.
        """
        self.start()
        process = self._process
        assert process is not None
        process.communicate(b"\n")
        self._process = None
        return process.returncode
