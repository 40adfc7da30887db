"""The commands of `python -m analysis` that are no scripts, and the options that all commands share.

Every module but `arguments` has `add_arguments` and `run`. It must not import the scripts `analysis.report`, `compare`,
`export` and `collate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from analysis.cli.arguments import (
        add_source as add_source,
        add_stores as add_stores,
        group_members as group_members,
        load_from as load_from,
        open_page as open_page,
        output_folder as output_folder,
        run_script as run_script,
        source_folder as source_folder,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "arguments": ("add_source add_stores group_members load_from open_page output_folder run_script source_folder"),
    },
)
