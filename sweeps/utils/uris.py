"""Addresses: a URI, or a folder of this machine."""

from __future__ import annotations


def is_uri(location: str) -> bool:
    """Tell a URI from a folder.

    Args:
        location: what --storage or --tracking-uri was given.

    Returns:
        Whether it names a scheme, e.g. `s3://bucket/prefix`.
    """
    return "://" in location
