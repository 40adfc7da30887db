"""The kinds of lines in a journal, and the states and roles of a trial. The values are on disk and never change."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, TypedDict

EventFields = dict[str, Any]  # of a line of the journal, as JSON has them


class Event(StrEnum):
    """The kinds of lines in a journal."""

    STUDY = "study"  # a driver started or resumed the study
    PROPOSED = "proposed"  # a specification, its exact counts, and the sampler's proposal that it answers
    ALIAS = "alias"  # other settings that give a network already proposed
    INFEASIBLE = "infeasible"  # settings that cannot meet their constraints; never launched
    ATTEMPT = "attempt"  # a worker began or resumed the trial
    ADOPTED = "adopted"  # another study of the series has trained it: which one, on what; its epochs and end follow
    INITIAL = "initial"  # error and layers of a trial that starts from trained weights, before any training
    EPOCH = "epoch"  # one epoch's metrics
    NOTICE = "notice"  # a line of a trial for the user: a cache was built, or could not be read
    POSTPONED = "postponed"  # memory ran out: tried again in a later phase with a larger share
    FINISHED = "finished"  # the trial's end, with status and reason
    TESTED = "tested"  # the one evaluation on the test split
    EXCLUDED = "marked"  # the user excluded a trial as broken, or (`broken` None) included it again
    ANNOTATED = "noted"  # a note and tags of the user, on a trial or on the study
    RESOURCES = "room"  # the driver is ready to train: how many trials at once, on what, and how long that took
    PACKING = "placed"  # the throughput measured for trials that share a GPU, and the share chosen
    CLOSED = "closed"  # the driver ended: finished, interrupted, out of time or failed; and the error


class Status(StrEnum):
    """The state of a trial."""

    PROPOSED = "proposed"
    RUNNING = "running"
    COMPLETED = "completed"
    STOPPED = "stopped_early"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    FAILED = "failed"
    INFEASIBLE = "infeasible"


TERMINAL = frozenset(Status) - {Status.PROPOSED, Status.RUNNING}


class TestLook(TypedDict):
    """A look at the test split.

    Attributes:
        run: the time of the run of the driver.
        trials: whose test errors it wrote.
    """

    run: float | None
    trials: list[str]


class Role(StrEnum):
    """Why a trial is trained.

    A repeat differs from another trial in nothing but the seed; both have the same `point_id`.
    """

    SEARCH = "search"  # proposed by the sampler
    REFERENCE = "reference"  # a network to compare with
    REPEAT = "repeat"
