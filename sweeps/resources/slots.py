"""What each trial of a study is given on this cluster: CPUs, cards or shares of one, and the way of sharing it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.records.journal import Journal
from sweeps.records.model import StudyRecord
from sweeps.resources.mps import sharing_modes
from sweeps.resources.packing_benchmark import place
from sweeps.resources.shares import Share, larger, read_cluster, share_of
from sweeps.space.model import Space
from sweeps.space.settings import AUTO
from sweeps.trials.resolver import Resolver

SharingModes = Mapping[str, Mapping[str, str]]  # of sharing a card: each with the environment that it takes


@dataclass(frozen=True)
class TrialResources:
    """`share` is every trial's, `larger` that of a further attempt of one that ran out of memory."""

    share: Share
    larger: Share | None
    sharing: tuple[str, Mapping[str, str]]

    def as_event(self) -> dict[str, Any]:
        """For the records."""
        share = self.share
        return {"slots": share.concurrent, "cpus": share.cpus, "gpus": share.gpus, "sharing": self.sharing[0]}


class ResourcePlanner:
    """The resources for a study of so many trials on the connected cluster, before and after shares are measured."""

    def __init__(self, space: Space, trials: int, *, gpus_asked: bool):
        """Raises InputError for a request that no machine could meet. Says where there is no GPU to measure."""
        self._space, self._trials, self._gpus_asked = space, trials, gpus_asked
        self._cluster = read_cluster()
        self.share = share_of(space.resources, self._cluster, trials, gpus_asked)
        auto = space.resources.gpus_per_trial == AUTO
        self.measured = auto and self.share.gpus > 0
        if auto and not self.measured:
            print("gpus_per_trial auto: there is no GPU here, so trials run on CPUs", flush=True)

    def sharing_modes(self, address: str | None) -> AbstractContextManager[SharingModes]:
        """The ways of sharing a card that the study may take, while the block runs."""
        shared = self.measured or 0 < self.share.gpus < 1
        return sharing_modes(self._space.resources.sharing, shared=shared, measured=self.measured, address=address)

    def resolve(
        self, resolver: Resolver, journal: Journal, record: StudyRecord, data_dir: Path | None, found: SharingModes
    ) -> TrialResources:
        """The resources by one of the `found` sharing modes; measured where that is asked."""
        way, share = next(iter(found)), self.share
        if self.measured:
            placed = place(self._space, resolver, self._cluster, self._trials, journal, record, data_dir, found)
            share = share_of(self._space.resources, self._cluster, self._trials, self._gpus_asked, placed.gpus)
            way = placed.sharing
        return TrialResources(share, larger(share, self._cluster, self._trials), (way, found[way]))
