"""What each trial of a study is given on this cluster: CPUs, cards or shares of one, and the mode of sharing a card."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.records import Journal, StudyRecord
from sweeps.resources.mps import sharing_modes
from sweeps.resources.packing_benchmark import choose_packing
from sweeps.resources.shares import Share, larger_share, read_cluster, share_for
from sweeps.space import AUTO, Space
from sweeps.trials import Resolver

SharingModes = Mapping[str, Mapping[str, str]]  # from the name of a mode to the environment that it needs


@dataclass(frozen=True)
class TrialResources:
    """What each trial of a study holds.

    `share` is that of a first attempt, `larger` that of a second one after memory ran out (None: there is no larger
    one), `sharing` the name of the sharing mode and the environment that it needs.
    """

    share: Share
    larger: Share | None
    sharing: tuple[str, Mapping[str, str]]

    def as_event(self) -> dict[str, Any]:
        """Return the fields of the journal's event."""
        share = self.share
        return {"slots": share.concurrent, "cpus": share.cpus, "gpus": share.gpus, "sharing": self.sharing[0]}


class ResourcePlanner:
    """Plans what each trial holds, before and after shares of a card are measured."""

    def __init__(self, space: Space, trials: int, *, require_gpus: bool, address: str | None):
        """Read the cluster and check the request; prints a line if `auto` finds no GPU to measure.

        Args:
            space: the study's space with its `resources`.
            trials: trials of the study.
            require_gpus: whether the command line asks for GPUs.
            address: of the cluster; None for this machine alone.

        Raises:
            InputError: no machine of the cluster could ever meet the request.
        """
        self._space, self._trials, self._require_gpus = space, trials, require_gpus
        self._address = address
        self._cluster = read_cluster(autoscaled=address is not None)
        self.share = share_for(space.resources, self._cluster, trials, require_gpus)
        auto = space.resources.gpus_per_trial == AUTO
        self.measured = auto and self.share.gpus > 0
        if auto and not self.measured:
            print("gpus_per_trial auto: there is no GPU here, so trials run on CPUs", flush=True)

    def sharing_modes(self) -> AbstractContextManager[SharingModes]:
        """Give the modes of sharing a card that the study may use, while the block runs.

        Returns:
            A context manager that starts and ends the multi-process service where it is needed.
        """
        shared = self.measured or 0 < self.share.gpus < 1
        return sharing_modes(
            self._space.resources.sharing, shared=shared, measured=self.measured, address=self._address
        )

    def resolve(
        self, resolver: Resolver, journal: Journal, record: StudyRecord, data_dir: Path | None, modes: SharingModes
    ) -> TrialResources:
        """Decide what each trial holds; measured if the space says `auto`.

        Args:
            resolver: makes the trials to measure with.
            journal: takes the event of the measurement.
            record: of the study; an earlier measurement on such cards is used again.
            data_dir: folder of data sets.
            modes: the modes of sharing a card to choose from.

        Returns:
            The resources of each trial.
        """
        mode, share = next(iter(modes)), self.share
        if self.measured:
            packing = choose_packing(
                self._space, resolver, self._cluster, self._trials, journal, record, data_dir, modes
            )  # fmt: skip
            share = share_for(self._space.resources, self._cluster, self._trials, self._require_gpus, packing.gpus)
            mode = packing.sharing
        return TrialResources(share, larger_share(share, self._cluster, self._trials), (mode, modes[mode]))
