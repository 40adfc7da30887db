"""Compiles this project's Triton kernels side by side, before a step first runs with them.

Triton compiles a kernel when it is first launched, one after the other: for a ResNet-9 half a minute, while all cores
but one wait. The compiler behind `torch.compile` uses processes for its own kernels only.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

from lowrank.utils import usable_cores

MAX_THREADS = 16  # Triton's compiler holds the interpreter's lock for two fifths of its time
_OWN_MODULES = "lowrank."  # some methods of layers have kernels too


def compile_side_by_side(run: Callable[[], None]) -> int:
    """Compile the kernels of this project that a function launches.

    The function runs, but its kernels do not: what it computes is meaningless. A kernel that cannot be compiled raises
    its error where it is launched, as without this.

    Args:
        run: a step; the threads of its backward pass are served too. No result of a kernel may serve it as an index.

    Returns:
        The number of kernels; 0 without Triton, or with one that cannot compile in threads.
    """
    if find_spec("triton") is None:
        return 0
    try:  # no name of Triton's interface serves the threads of a backward pass
        from triton.runtime._async_compile import AsyncCompileMode, active_mode
        from triton.runtime.jit import JITFunction
    except ImportError:
        return 0

    launch = JITFunction.run
    with ThreadPoolExecutor(min(MAX_THREADS, usable_cores()), "kernels") as pool:
        mode = AsyncCompileMode(pool, ignore_errors=True)

        def compile_only(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
            if not kernel.module.startswith(_OWN_MODULES):
                return launch(kernel, *arguments, grid=grid, warmup=warmup, **options)
            before = active_mode.set(mode)  # of this thread alone, so that `with mode` would not serve others
            try:
                return launch(kernel, *arguments, grid=grid, warmup=True, **options)
            finally:
                active_mode.reset(before)

        JITFunction.run = compile_only
        try:
            run()
        finally:
            JITFunction.run = launch
        for kernel in mode.future_kernels.values():
            kernel.result(mode.ignore_errors)
    return len(mode.raw_futures)
