"""The research log: an entry for each run of a study's driver, for teachers and for compressed networks.

Entry points: `collect.collect_entries` and `document.write_log`. What people type between the markers of an entry is
kept (`handwritten`). It must not import `analysis.cli` or the commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from analysis.research_log.collect import (
        LogSources as LogSources,
        collect_entries as collect_entries,
        find_sources as find_sources,
    )
    from analysis.research_log.document import WrittenLog as WrittenLog, write_log as write_log

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "collect": "LogSources collect_entries find_sources",
        "document": "WrittenLog write_log",
    },
)
