"""Where caches of teachers lie. Every trial's config has it, so it is read without torch."""

from __future__ import annotations

from dataclasses import dataclass

CACHE_FOLDER = ".teacher_cache"  # in the folder of studies


@dataclass(frozen=True)
class CacheOptions:
    """Where teacher caches lie.

    `root` is the folder to read and fill (None: no cache, the live teacher answers), `sources` are further folders,
    from which finished cache epochs are copied.
    """

    root: str | None = None
    sources: tuple[str, ...] = ()


NO_CACHE = CacheOptions()
