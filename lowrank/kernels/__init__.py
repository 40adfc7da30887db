"""Triton kernels for operations that GPU libraries are slow at, and the pass that puts them into a compiled graph.

Entry points: `dispatch` tells what a machine supports and loads a module of kernels; `fx_rewrite.compile_graph` is the
backend for `torch.compile`. Modules of kernels need Triton: import them only where `dispatch` says that they can run.
Must not import any package of this project but `lowrank.errors` and `lowrank.utils`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lowrank.kernels.dispatch import (
        compile_obstacle as compile_obstacle,
        kernel_digest as kernel_digest,
        kernel_errors as kernel_errors,
        load_kernels as load_kernels,
    )
    from lowrank.kernels.fx_rewrite import compile_graph as compile_graph
    from lowrank.kernels.global_norm import (
        exchange_is_suspended as exchange_is_suspended,
        process_count as process_count,
        suspended_exchange as suspended_exchange,
    )
    from lowrank.kernels.side_by_side import compile_side_by_side as compile_side_by_side

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "dispatch": "compile_obstacle kernel_digest kernel_errors load_kernels",
        "fx_rewrite": "compile_graph",
        "global_norm": "exchange_is_suspended process_count suspended_exchange",
        "side_by_side": "compile_side_by_side",
    },
)
