"""Reads botocore's descriptions of AWS's services once in a process instead of once for each client."""

from __future__ import annotations

import functools

from botocore.loaders import JSONFileLoader


@functools.cache
def keep_service_descriptions() -> None:
    """Share what the loaders of all clients read: megabytes of JSON, which nobody changes."""
    load_once = functools.cache(JSONFileLoader().load_file)
    JSONFileLoader.load_file = lambda loader, path: load_once(path)
