"""The kinds of lines in a journal, and how a trial stands. The values are on disk and never change."""

from __future__ import annotations

from enum import StrEnum


class Event(StrEnum):
    """What a line of the journal says."""

    STUDY = "study"  # a driver took the study up (first start and every resume)
    PROPOSED = "proposed"  # a specification, its exact counts, and which proposal of the sampler it answers
    ALIAS = "alias"  # further settings that stand for a network already proposed
    INFEASIBLE = "infeasible"  # settings that cannot meet their constraints; never launched
    ATTEMPT = "attempt"  # a worker took the trial up
    ADOPTED = "adopted"  # another study of the series has trained it: which, and on what; its epochs and end follow
    EPOCH = "epoch"  # one epoch's metrics
    NOTICE = "notice"  # a line that a trial has for the user: a cache was built, or could not be read
    POSTPONED = "postponed"  # memory ran out: once more in a later phase, with a larger share
    FINISHED = "finished"  # the trial's end, with status and reason
    TESTED = "tested"  # the one look at the test split
    EXCLUDED = "marked"  # somebody found a trial to be broken (or, `broken` None, sound after all)
    ANNOTATED = "noted"  # a remark and tags of the user's own, on a trial or on the study
    RESOURCES = "room"  # the driver is ready to train: how many trials at once, on what, and how long that took
    PACKING = "placed"  # what sharing a card was measured to give, and the share that was chosen
    CLOSED = "closed"  # the driver left: finished, interrupted or out of time


class Status(StrEnum):
    """How a trial stands."""

    PROPOSED = "proposed"
    RUNNING = "running"
    COMPLETED = "completed"
    STOPPED = "stopped_early"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    FAILED = "failed"
    INFEASIBLE = "infeasible"


TERMINAL = frozenset(Status) - {Status.PROPOSED, Status.RUNNING}


class Role(StrEnum):
    """Why a trial is trained: proposed by the search, a reference network drawn beside it, or a repeat of either.

    A repeat differs from another trial in nothing but the seed; both have one `point_id`.
    """

    SEARCH = "search"
    REFERENCE = "reference"
    REPEAT = "repeat"
