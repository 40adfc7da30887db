"""Computes proposals in a thread before a slot asks for one, so that no slot waits while a sampler computes.

Only this thread calls the proposer, for proposals as well as for outcomes. A ready proposal does not know the outcomes
that came after it, so at most one is kept ready for each slot. What lies ready when a phase ends goes on to the next
(`Search.ready`); `Search.release_ready` reports it as lost when the driver ends. After a kill the next driver reports
it: the proposal is then in Optuna's storage, but not in the journal.
"""

from __future__ import annotations

import threading
from collections import deque

from lowrank.errors import HungError
from sweeps.records import Trial
from sweeps.search.proposer import Handle, Outcome
from sweeps.search.search import PreparedTrial, Search

SAMPLER_SECONDS = 600.0  # for the proposal that is being computed when a phase ends
PROPOSAL_TIMEOUT = 30.0  # seconds that a driver without running trials waits for a proposal; it then asks again


class ProposalPrefetcher:
    """Keeps up to `depth` proposals of a search ready; use as a context manager."""

    def __init__(self, search: Search, depth: int):
        """Create the thread; the `with` block starts it.

        Args:
            search: the search to propose for.
            depth: how many proposals to keep ready; less than 1 counts as 1.
        """
        self.search, self.depth = search, max(1, depth)
        self._ready = search.ready  # with what the last phase has not launched
        self._outcomes: deque[tuple[Handle, Outcome]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="proposals", daemon=True)

    def __enter__(self) -> ProposalPrefetcher:
        self.search.report_outcome = self._queue_outcome
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop the thread.

        It finishes the proposal that it computes and reports all queued outcomes. Unused proposals stay ready, for the
        next phase. An error of the thread is raised unless the block has raised another one. So is HungError, if the
        sampler computes for more than `SAMPLER_SECONDS`: a second thread must not call it at the same time.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(SAMPLER_SECONDS)
        self.search.report_outcome = None
        if exc[0] is None:
            if self._thread.is_alive():
                raise HungError(
                    f"the sampler has not given a proposal for {SAMPLER_SECONDS:.0f} s; the study ends here, and "
                    "--resume goes on with it"
                )
            self._raise_error()

    def next(self, *, wait: bool) -> Trial | None:
        """Return the next trial to launch.

        Args:
            wait: whether to wait for a proposal, up to `PROPOSAL_TIMEOUT` seconds.

        Returns:
            The trial. None if no proposal is ready; with `wait`, if the search has no more proposals or the wait timed
            out.

        Raises:
            BaseException: the thread failed with it; it is raised once.
        """
        self._raise_error()
        # Trials that wait need no proposal (references, repeats, interrupted ones). The loop ends when one is added:
        # that is a proposal whose initial weights are not trained yet
        trial = self.search.pop_waiting()
        while trial is None and not self.search.waiting:
            prepared = self._pop_ready(wait)
            if prepared is None:
                break
            trial = self.search.commit_proposal(prepared)
        return trial or self.search.next_repeat()

    def _pop_ready(self, wait: bool) -> PreparedTrial | None:
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._ready or self._error or not self._has_demand(), PROPOSAL_TIMEOUT)
            prepared = self._ready.popleft() if self._ready else None
            self._changed.notify_all()
        self._raise_error()
        return prepared

    def _queue_outcome(self, handle: Handle, outcome: Outcome) -> None:
        with self._changed:
            self._outcomes.append((handle, outcome))
            self._changed.notify_all()

    def _has_demand(self) -> bool:
        """Whether another proposal should be computed."""
        return self.search.may_propose() and len(self._ready) < self.depth

    def _run(self) -> None:
        """Compute proposals and report outcomes until the driver leaves the `with` block."""
        try:
            while self._wait_for_work():
                self._report_outcomes()
                if self._closing or not self._has_demand():
                    continue
                prepared = self.search.prepare()
                with self._changed:
                    self._ready.append(prepared)
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do; return False once the block has ended and all outcomes are reported."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._outcomes or self._has_demand())
            return bool(self._outcomes) or not self._closing

    def _report_outcomes(self) -> None:
        """Report the queued outcomes to the proposer, so that the next proposal takes them into account."""
        while self._outcomes:
            self.search.proposer.tell(*self._outcomes[0])
            self._outcomes.popleft()

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
