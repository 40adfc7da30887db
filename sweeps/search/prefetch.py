"""Proposals made ahead of free slots: one thread owns the proposer, asks it for what comes next, and tells it outcomes.

A slot that falls free takes what lies ready; it never waits while a sampler thinks. What lies ready has been decided
without the outcomes that come in meanwhile, so no more is kept ready than there are slots. A proposal that is never
handed out is told as lost; after a kill the next driver does that (it is in Optuna's memory, but not in the journal).
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from sweeps.records.specification import Trial
from sweeps.search.proposer import Outcome
from sweeps.search.search import PreparedTrial, Search

PATIENCE = 30.0  # seconds that a driver with nothing running waits for one proposal before it asks again


class ProposalPrefetcher:
    """Keeps up to `depth` proposals of a search ready; use as a context manager."""

    def __init__(self, search: Search, depth: int):
        self.search, self.depth = search, max(1, depth)
        self._ready: deque[PreparedTrial] = deque()
        self._outcomes: deque[tuple[dict[str, Any], Outcome]] = deque()
        self._changed = threading.Condition()
        self._leaving = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="proposals", daemon=True)

    def __enter__(self) -> ProposalPrefetcher:
        self.search.report_outcome = self._tell
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Let the thread finish what it is at and tell what is left to tell; proposals not used are told as lost."""
        with self._changed:
            self._leaving = True
            self._changed.notify_all()
        self._thread.join()
        self.search.report_outcome = None
        for prepared in self._ready:
            self._let_go(prepared)
        self._ready.clear()
        if exc[0] is None:
            self._raise()

    def next(self, *, wait: bool) -> Trial | None:
        """The next trial to launch; None when none lies ready (with `wait`: when there is none to come)."""
        self._raise()
        trial = self.search.pop_waiting()
        while trial is None and not self.search.waiting:
            prepared = self._take(wait)
            if prepared is None:
                break
            trial = self.search.commit_proposal(prepared)
        return trial or self.search.next_repeat()

    def _take(self, wait: bool) -> PreparedTrial | None:
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._ready or self._error or not self._wanted(), PATIENCE)
            prepared = self._ready.popleft() if self._ready else None
            self._changed.notify_all()
        self._raise()
        return prepared

    def _tell(self, handle: dict[str, Any], outcome: Outcome) -> None:
        with self._changed:
            self._outcomes.append((handle, outcome))
            self._changed.notify_all()

    def _wanted(self) -> bool:
        return self.search.may_propose() and len(self._ready) < self.depth

    def _work(self) -> None:
        try:
            while self._wait():
                self._tell_all()
                if self._leaving or not self._wanted():
                    continue
                prepared = self.search.prepare()
                with self._changed:
                    self._ready.append(prepared)
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _wait(self) -> bool:
        """Until there is something to do; False when there is nothing more to tell and the driver is leaving."""
        with self._changed:
            self._changed.wait_for(lambda: self._leaving or self._outcomes or self._wanted())
            return bool(self._outcomes) or not self._leaving

    def _tell_all(self) -> None:
        """Outcomes come before proposals, which should know of them."""
        while self._outcomes:
            self.search.proposer.tell(*self._outcomes[0])
            self._outcomes.popleft()

    def _let_go(self, prepared: PreparedTrial) -> None:
        if prepared.trial is not None:
            self.search.reserved.pop(prepared.trial.trial_id, None)
            self.search.proposer.tell(prepared.handle, Outcome("lost"))

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
