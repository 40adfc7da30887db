"""What each trial of a study is given on this cluster: CPUs, cards or shares of one, and the mode of sharing a card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from lowrank.errors import InputError
from sweeps.records import EventFields, Journal, StudyRecord, Trial
from sweeps.resources.configurations import typical_and_largest
from sweeps.resources.gpu_packing import COUNTS
from sweeps.resources.gradual_packing import GradualPacking
from sweeps.resources.mps import StartingService, needs_service, sharing_modes
from sweeps.resources.packing_benchmark import choose_packing
from sweeps.resources.shares import Cluster, Share, choose_share, larger_share, read_cluster, share_for
from sweeps.resources.spreading import MeasureCards, Spreading, choose_cards
from sweeps.space import AUTO, ResourceSettings, Space, check_process_shards
from sweeps.trials import Resolver

SharingModes = Mapping[str, Mapping[str, str]]  # from the name of a mode to the environment that it needs
# From a trial, the folder of data sets, CPUs of a trial and the most cards
MeasureTrialOnCards = Callable[[Trial, Path | None, float, int], MeasureCards]


@dataclass(frozen=True)
class TrialResources:
    """What each trial of a study holds.

    `share` is that of a first attempt, `larger` that of a second one after memory ran out (None: there is no larger
    one), `sharing` the name of the sharing mode and the environment that it needs, `spreading` what was measured before
    a trial was given several cards. `cores_per_trial` are those of the cluster for each trial that runs at once: more
    than a trial asks for where cards, or the trials that there are, allow fewer at once than cores would. `growing`
    says how many of them share a card as long as that is not decided; then `share` is the smallest that is tried.
    """

    share: Share
    larger: Share | None
    sharing: tuple[str, Mapping[str, str]]
    spreading: Spreading | None = None
    cores_per_trial: int | None = None
    growing: GradualPacking | None = None

    @property
    def holds_places(self) -> bool:
        """Whether some places on cards are held while trials run, of which Ray alone knows."""
        return self.growing is not None and self.growing.cards > 1

    def as_event(self) -> EventFields:
        """Return the fields of the journal's event."""
        share = self.share
        event = {"slots": share.concurrent, "cpus": share.cpus, "gpus": share.gpus, "sharing": self.sharing[0]}
        return event if self.spreading is None else {**event, "spreading": self.spreading.to_event()}


@dataclass(frozen=True)
class ExpectedResources:
    """What a study on one machine will hold, before Ray is asked what the machine has.

    `workers` are the trials that can run at once; where the number of trials on a card is still to be decided, the
    most that are tried. `uses_service` says whether they share a card by the multi-process service where there is one.
    """

    workers: int
    uses_service: bool

    @classmethod
    def of(cls, space: Space, trials: int, cpus: float, cards: float, *, require_gpus: bool) -> ExpectedResources:
        """Plan for a machine.

        Args:
            space: the study's space with its `resources`.
            trials: trials of the study.
            cpus: of the machine.
            cards: of the machine.
            require_gpus: whether the command line asks for GPUs.

        Returns:
            What the study will hold.

        Raises:
            InputError: the machine could never meet the request.
        """
        settings, cluster = space.resources, Cluster(cpus, cards, cpus, cards)
        share = share_for(settings, cluster, trials, require_gpus, 1 / max(COUNTS))
        return cls(share.concurrent, needs_service(settings.sharing, **_card_sharing(settings, share)))

    def begin_service(self) -> AbstractContextManager[StartingService | None]:
        """Begin to start the multi-process service, beside other work.

        Returns:
            A context manager; None in it where none is used.
        """
        return StartingService() if self.uses_service else nullcontext()


def _card_sharing(settings: ResourceSettings, share: Share) -> dict[str, bool]:
    """Whether trials share cards at all, and whether it is measured how many and by which mode."""
    measured = settings.gpus_per_trial == AUTO and share.gpus > 0
    return {"shared": measured or 0 < share.gpus < 1, "measured": measured}


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
        self.measured = _card_sharing(space.resources, self.share)["measured"]
        if space.resources.gpus_per_trial == AUTO and not self.measured:
            print("gpus_per_trial auto: there is no GPU here, so trials run on CPUs", flush=True)

    def sharing_modes(self, starting: StartingService | None = None) -> AbstractContextManager[SharingModes]:
        """Give the modes of sharing a card that the study may use, while the block runs.

        Args:
            starting: the multi-process service, if its start has begun.

        Returns:
            A context manager that starts and ends the multi-process service where it is needed.
        """
        settings = self._space.resources
        sharing = _card_sharing(settings, self.share)
        return sharing_modes(settings.sharing, **sharing, address=self._address, starting=starting)

    def resolve(
        self, resolver: Resolver, journal: Journal, record: StudyRecord, data_dir: Path | None, modes: SharingModes,
        measure_on_cards: MeasureTrialOnCards,
    ) -> TrialResources:  # fmt: skip
        """Decide what each trial holds; measured if the space says `auto`.

        Prints what was measured.

        Args:
            resolver: makes the trials to measure with.
            journal: takes the event of the measurement.
            record: of the study; an earlier measurement on such cards is used again.
            data_dir: folder of data sets.
            modes: the modes of sharing a card to choose from.
            measure_on_cards: returns what measures a trial on one card and on several.

        Returns:
            The resources of each trial.
        """
        mode, share = next(iter(modes)), self.share
        if self.measured:
            packing = choose_packing(
                self._space, resolver, self._cluster, self._trials, journal, record, data_dir, modes
            )  # fmt: skip
            if isinstance(packing, GradualPacking):
                return self._growing(packing, modes)
            share = share_for(self._space.resources, self._cluster, self._trials, self._require_gpus, packing.gpus)
            mode = packing.sharing
        share, spreading = self._spread(share, resolver, data_dir, measure_on_cards)
        if not self.measured:
            self._print_one_card_each(share, record)
        larger = larger_share(share, self._cluster, self._trials)
        cores = int(self._cluster.cpus / share.concurrent)
        return TrialResources(share, larger, (mode, modes[mode]), spreading, cores)

    def _growing(self, packing: GradualPacking, modes: SharingModes) -> TrialResources:
        """Let trials share cards, more and more of them; one that lacks memory gets a whole one at the end."""
        gpus = 1 / packing.max_slots
        share = share_for(self._space.resources, self._cluster, self._trials, self._require_gpus, gpus)
        where = "the card" if packing.cards == 1 else f"each of {packing.cards} cards"
        print(
            f"gpus_per_trial auto: one trial on {where}, then up to {packing.max_slots}, as long as all train more "
            "together",
            flush=True,
        )
        larger = Share(share.cpus, 1.0, packing.cards)
        cores = int(self._cluster.cpus / share.concurrent)
        mode = packing.sharing
        return TrialResources(share, larger, (mode, modes[mode]), cores_per_trial=cores, growing=packing)

    def _spread(
        self, share: Share, resolver: Resolver, data_dir: Path | None, measure_on_cards: MeasureTrialOnCards
    ) -> tuple[Share, Spreading | None]:  # fmt: skip
        """Give each trial several cards if `auto` is asked for, each can have several, and that is worth it.

        A number that the user has chosen is not measured: that would take longer than a short study.
        """
        cards = self._spare_cards(share, resolver) if self.measured else 1
        if cards < 2:
            return share, None
        settings = self._space.resources
        typical, _ = typical_and_largest(self._space, resolver)
        print(f"{cards} cards for each trial: measured with one trial on one card and on {cards}", flush=True)
        spreading = choose_cards(measure_on_cards(typical, data_dir, settings.cpus_per_trial, cards), cards)
        print(spreading, flush=True)
        share = choose_share(
            self._cluster, cpus=settings.cpus_per_trial, gpus=spreading.cards, trials=self._trials,
            max_concurrent=settings.max_concurrent,
        )  # fmt: skip
        return share, spreading

    def _print_one_card_each(self, share: Share, record: StudyRecord) -> None:
        """Say where the cards that the user gives to one trial could each train a trial of their own."""
        trials = self._trials - sum(trial.ended for trial in record.trials.values())
        if share.gpus <= 1 or trials < 1:
            return
        settings, cards = self._space.resources, int(share.gpus)
        alone = choose_share(
            self._cluster, cpus=settings.cpus_per_trial, gpus=1, trials=trials, max_concurrent=settings.max_concurrent
        )
        if alone.concurrent < cards * min(share.concurrent, trials):  # some cards would have no trial
            return
        print(
            f"{cards} cards for one trial wait for each other in every step, and train it at most {cards} times as "
            f"fast at the same batch; with --gpus-per-trial 1, {alone.concurrent} trials run at once, and none waits "
            f"for another. Keep {cards} where one trial takes too long or its batch does not fit on one card",
            flush=True,
        )

    def _spare_cards(self, share: Share, resolver: Resolver) -> int:
        """Count the cards of one machine that each trial could have, if all trials run at once."""
        if share.gpus < 1 or share.concurrent < self._trials:
            return 1
        largest = int(min(self._cluster.max_gpus, self._cluster.gpus // self._trials))
        for cards in range(largest, 1, -1):
            try:
                check_process_shards(self._space, cards, len(resolver.data.train))
            except InputError:  # a batch that so many processes cannot share evenly
                continue
            return cards
        return 1
