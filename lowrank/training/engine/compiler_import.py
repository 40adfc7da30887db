"""Imports torch's compiler in a thread, while a trial loads its images: it takes as long as torch itself."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from importlib import import_module
from importlib.util import find_spec

# What the first compiled step imports beside what every optimizer's first step does
_MODULES = ("torch._dynamo.repro.after_dynamo", "torch._inductor.compile_fx")

_THREADS = "compiler-import"  # how their names begin
_lock = threading.Lock()
_imports: list[Future[None]] = []  # none before the first begins


def begin_compiler_import() -> None:
    """Begin to import the compiler, unless that has begun.

    The process must already see its own cards alone.
    """
    with _lock:
        if not _imports:
            os.register_at_fork(before=_wait_before_fork)
            pool = ThreadPoolExecutor(2, _THREADS)
            _imports.extend(pool.submit(function) for function in (_import_all, _hash_triton))
            pool.shutdown(wait=False)


def wait_for_compiler_import() -> None:
    """Wait until an import that has begun has ended.

    An error of it comes again where the compiler is used.

    Modules of the compiler import each other in circles, so two threads must not import them at the same time.
    """
    wait(_imports)


def _wait_before_fork() -> None:
    """Let no process be forked meanwhile: in it a module that is half imported would stay so, and block its import."""
    if not threading.current_thread().name.startswith(_THREADS):
        wait_for_compiler_import()


def _import_all() -> None:
    for module in _MODULES:
        import_module(module)


def _hash_triton() -> None:
    """Have Triton hash its own files, a second of work before a process's first kernel; it keeps the result."""
    if find_spec("triton") is not None:
        # First, for its modules import each other in circles: where another thread imports it too, one of them waits
        import_module("triton")
        import_module("triton.runtime.cache").triton_key()
