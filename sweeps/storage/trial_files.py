"""Which files of trials a study still needs: what the search has dropped is deleted from a storage, nothing else."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from sweeps.records import CHECKPOINT_FILE, JOURNAL_FILE, TRIALS_FOLDER, Event, JournalReader, Status

_STEM, _SUFFIX = CHECKPOINT_FILE.rsplit(".", 1)
# See `lowrank.io`: `saved_versions` names those of older states, `set_aside` those that cannot be used
_CHECKPOINT = re.compile(rf"{re.escape(_STEM)}(\.\d+)?\.{re.escape(_SUFFIX)}(\.unusable.*)?")


class EndedTrials:
    """The ends of trials, read from a study's journal as it grows.

    Args:
        folder: of the study.
    """

    def __init__(self, folder: Path):
        self._reader = JournalReader(folder / JOURNAL_FILE)
        self._status: dict[str, str] = {}

    def update(self) -> None:
        """Read what the journal has got since the last call."""
        if not self._reader.path.exists():
            return
        for line in self._reader.scan():
            if line.usable and line.event.get("event") == Event.FINISHED:
                self._status[str(line.event.get("trial"))] = str(line.event.get("status"))

    def needs(self, name: str) -> bool:
        """Tell whether the study still needs a file.

        Args:
            name: of the file, relative to the study's folder, with slashes.

        Returns:
            False for checkpoints of a trial that ended without being completed, and for all but the newest one of a
            completed trial; True for anything else.
        """
        folder, *parts = PurePosixPath(name).parts
        if folder != TRIALS_FOLDER or len(parts) < 2 or parts[0] not in self._status:
            return True
        if self._status[parts[0]] != Status.COMPLETED:
            return False
        return parts[-1] == CHECKPOINT_FILE or not _CHECKPOINT.fullmatch(parts[-1])
