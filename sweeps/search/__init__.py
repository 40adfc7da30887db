"""Choose what is trained next, and learn from the results.

`Search` gives out trials and keeps a study's record; `make_proposer` gives it a grid or one of Optuna's samplers;
`ProposalPrefetcher` proposes ahead in a thread. Must not import Ray, MLflow, nor any package above `trials`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from sweeps.search.earlier_study import (
        absolute_names as absolute_names,
        earlier_studies as earlier_studies,
        warm_start as warm_start,
    )
    from sweeps.search.optuna_proposer import OptunaProposer as OptunaProposer, make_proposer as make_proposer
    from sweeps.search.prefetch import ProposalPrefetcher as ProposalPrefetcher
    from sweeps.search.proposer import EmptyProposer as EmptyProposer, Proposer as Proposer
    from sweeps.search.reuse import SiblingResults as SiblingResults
    from sweeps.search.search import Search as Search
    from sweeps.search.stopping_rules import DEFAULTS as DEFAULTS, StoppingRule as StoppingRule, make_rule as make_rule

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "earlier_study": "absolute_names earlier_studies warm_start",
        "optuna_proposer": "OptunaProposer make_proposer",
        "prefetch": "ProposalPrefetcher",
        "proposer": "EmptyProposer Proposer",
        "reuse": "SiblingResults",
        "search": "Search",
        "stopping_rules": "DEFAULTS StoppingRule make_rule",
    },
)
