"""Layers whose weight consists of repeated or block-diagonal parts: hashed, Monarch, linear shuffle.

Entry points: the settings `hashed.Hashed` (with `HashedFull`, `HashedBoth`), `monarch.Monarch` and `shuffle.Shuffle`.
Must not import another family of layers.
"""
