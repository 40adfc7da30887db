"""Imports torch's compiler in a thread, while a trial loads its images: it takes as long as torch itself."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from importlib import import_module

# What the first compiled step imports beside what every optimizer's first step does
_MODULES = ("torch._dynamo.repro.after_dynamo", "torch._inductor.compile_fx")

_lock = threading.Lock()
_imports: list[Future[None]] = []  # at most one


def begin_compiler_import() -> None:
    """Begin to import the compiler, unless that has begun.

    The process must already see its own cards alone.
    """
    with _lock:
        if not _imports:
            pool = ThreadPoolExecutor(1, "compiler-import")
            _imports.append(pool.submit(_import_all))
            pool.shutdown(wait=False)


def wait_for_compiler_import() -> None:
    """Wait until an import that has begun has ended.

    An error of it comes again where the compiler is used.
    Modules of the compiler import each other in circles, so two threads must not import them at the same time.
    """
    wait(_imports)


def _import_all() -> None:
    for module in _MODULES:
        import_module(module)
