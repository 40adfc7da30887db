"""A search of the small space over a journal of its own, and the settings of its execution."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeps.execution.callbacks import ExecutionConfig
from sweeps.records.journal import Journal
from sweeps.records.load import fold_journal
from sweeps.resources.shares import Share
from sweeps.resources.slots import TrialResources
from sweeps.search.optuna_proposer import make_proposer
from sweeps.search.search import Search
from sweeps.space.parse import parse_space
from sweeps.trials.resolver import Resolver

SMALL_SHARE, LARGER_SHARE = Share(1, 0.25, 2), Share(1, 0.5, 1)


@pytest.fixture
def open_search(content: dict[str, Any], digits: Any, tmp_path: Path) -> Iterator[Callable[..., Search]]:
    """Opens a search of the small space, with other sections where the test names some."""
    journal = Journal(tmp_path / "journal.jsonl")

    def opened(**sections: Any) -> Search:
        space = parse_space("small", {**content, **sections})
        record = fold_journal(journal.path)
        return Search(space, Resolver(space, digits), make_proposer(space, tmp_path), journal, record)

    yield opened
    journal.close()


@pytest.fixture
def execution(tmp_path: Path) -> Callable[..., ExecutionConfig]:
    """Makes the settings of an execution; fields of the resources and others by name."""

    def make(share: Share = SMALL_SHARE, larger: Share | None = LARGER_SHARE, **fields: Any) -> ExecutionConfig:
        defaults = {"max_concurrent": None, "seconds": None, "on_change": lambda: None}
        resources = TrialResources(share, larger, ("processes", {}))
        return ExecutionConfig(study_dir=tmp_path, data_dir=None, resources=resources, **{**defaults, **fields})

    return make
